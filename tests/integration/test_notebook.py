from __future__ import annotations

from base64 import b64decode
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from .synthetic_results import write_run

NOTEBOOK = Path(__file__).resolve().parents[2] / "analysis" / "compare_runs.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


async def test_the_notebook_shows_the_table_and_both_figures_of_the_runs_it_is_given(notebook, tmp_path, monkeypatch):
    first = write_run(tmp_path / "quickstart" / "20260101-120000-ab12", users=(1, 4))
    second = write_run(tmp_path / "baseline" / "20260101-130000-cd34", experiment="baseline", engine="vllm", users=(1,))
    monkeypatch.setenv("ERHPC_RUNS", f"{first.root}:{second.root}")

    await NotebookClient(notebook, timeout=120, resources={"metadata": {"path": tmp_path}}).async_execute()

    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [output["data"] for output in outputs if "data" in output]
    assert not [output for output in outputs if output.output_type in ("stream", "error")]
    assert any("20260101-130000-cd34" in data.get("text/plain", "") for data in shown)
    images = [b64decode(data["image/png"]) for data in shown if "image/png" in data]
    assert [image[:4] for image in images] == [b"\x89PNG"] * 2


def test_the_notebook_begins_with_how_to_open_it(notebook):
    title, _, first_line = notebook.cells[0].source.splitlines()[:3]

    assert title == "# Compare runs"
    assert "`pip install jupyterlab`" in first_line
    assert f"`jupyter lab analysis/{NOTEBOOK.name}`" in first_line


def test_the_notebook_is_kept_without_outputs(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]

    assert [cell.outputs for cell in code] == [[]] * len(code)
    assert [cell.execution_count for cell in code] == [None] * len(code)
