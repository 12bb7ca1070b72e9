"""One miniature Slurm cluster for all tests of this folder; each test finds it idle and its environment set."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.miniature import MiniatureCluster, describe_missing


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("slurm")


@pytest.fixture(scope="session")
def slurm() -> Iterator[MiniatureCluster]:
    missing = describe_missing()
    if missing and not os.environ.get("ERHPC_REQUIRE_ALL"):
        pytest.skip(missing)
    logging.getLogger("submitit").setLevel(logging.ERROR)  # it warns at each poll where sacct has no database
    with MiniatureCluster() as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def _idle_slurm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Point the test's own client calls at the cluster; end the jobs it left."""
    if "slurm" not in request.fixturenames:
        yield
        return
    cluster: MiniatureCluster = request.getfixturevalue("slurm")
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    yield
    cluster.cancel_all()
    cluster.wait_until_idle()
