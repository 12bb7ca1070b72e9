"""What is found out about prompts before a job is queued, and what the manifest says of them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from erhpc.cluster.preparation import check_inputs, check_workload, describe_source, prepare_artefact
from erhpc.composition import compose_experiment, to_config
from erhpc.config import ExperimentConfig, WorkloadConfig
from erhpc.corpus.prompts import hash_source
from erhpc.errors import ConfigError, InputError
from erhpc.plan.building import build_plan
from erhpc.plan.site import decide_setting
from erhpc.routing.artefact import read_artefact, read_metadata
from erhpc.routing.features import Reading
from tests.fakes.embedding import write_embedding
from tests.unit.experiments import GPU_CLUSTER, LAPTOP, plan


@pytest.fixture
def dataset(tmp_path):
    """A dataset with the splits train and test, whose columns have names of their own."""
    for split in ("train", "test"):
        pq.write_table(pa.table({"question": [split], "topic": ["law"]}), tmp_path / f"{split}.parquet")
    return str(tmp_path)


def test_a_dataset_is_described_by_the_split_and_the_files_that_are_read(dataset):
    assert describe_source(dataset) == {
        "source": dataset,
        "sha256": hash_source(dataset),
        "split": "train",
        "other_splits": ["test"],
        "files": ["train.parquet"],
    }


def test_the_shipped_corpus_is_described_by_its_hash(tmp_path, monkeypatch):
    # A folder of that name is not meant.
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)

    assert describe_source("demo") == {"source": "demo", "sha256": hash_source("demo")}


def test_the_prompts_of_a_workload_are_looked_for_in_its_columns(dataset):
    columns = {"prompt_column": "question", "domain_column": "topic", "mixture": {"law": 1}}
    check_workload(WorkloadConfig(prompts=dataset, format="dataset", **columns))

    with pytest.raises(InputError, match="no column 'prompt'"):
        check_workload(WorkloadConfig(prompts=dataset, format="dataset"))


def test_a_mixture_of_domains_that_no_prompt_has_is_found_before_the_run():
    with pytest.raises(InputError, match=r"domain alchemy\."):
        check_workload(WorkloadConfig(mixture={"alchemy": 1}))


def test_synthetic_texts_need_no_file():
    assert check_workload(WorkloadConfig(format="synthetic", prompts="nowhere")) is None


def test_a_run_without_an_artefact_fits_one_by_the_method_of_its_router(tmp_path):
    overrides = ["+experiment=quickstart", "router.method=full_text", "router.dimensions=8"]
    prepare_artefact(to_config(compose_experiment(overrides), ExperimentConfig), tmp_path / "router")

    assert read_metadata(tmp_path / "router").settings["method"] == "full_text"
    assert read_artefact(tmp_path / "router").reading == Reading(tokens="all", counts="log")


def compose_embedding(folder):
    overrides = ["+experiment=quickstart", "router=embedding", f"router.embedding={folder}"]
    return to_config(compose_experiment(overrides), ExperimentConfig)


def test_a_run_fits_the_embedding_of_its_router(tmp_path):
    words = dict(zip(("the", "a", "of", "is", "what", "?"), np.eye(6), strict=True))
    embedding = write_embedding(tmp_path / "embedding", words)

    prepare_artefact(compose_embedding(embedding), tmp_path / "router")

    assert read_artefact(tmp_path / "router").vocabulary.find("What of?") == [5, 3, 6]


def test_a_file_of_keys_that_is_not_there_is_found_before_the_run_near_whoever_named_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    planned = plan("quickstart", "router=round_robin", "gateway.keys=mine.keys")

    with pytest.raises(InputError, match=f"gateway.keys={tmp_path}/mine.keys cannot be read"):
        check_inputs(planned)

    (tmp_path / "mine.keys").write_text("ann for-ann\n")
    check_inputs(planned)


def test_an_embedding_that_is_not_there_is_found_before_the_run(tmp_path):
    experiment = compose_embedding(tmp_path / "nowhere")
    planned = build_plan(experiment, decide_setting(experiment, LAPTOP), python="python")

    with pytest.raises(InputError, match=r"nowhere has no tokenizer\.json"):
        check_inputs(planned)


@pytest.mark.parametrize(
    ("override", "given", "allowed"),
    [
        ("experts.expert_2.kernel=cutlass", "cutlass", "marlin"),
        ("engine.profile=sglang", "sglang", "vllm-v1-async"),
        ("+experts.expert_0.engine_args={stream-interval:often}", "often", "0, 1, 2"),
    ],
)
def test_emulated_experts_that_the_twin_has_no_model_of_are_found_before_the_run(override, given, allowed):
    with pytest.raises(ConfigError) as caught:
        check_inputs(plan("quickstart", override))

    assert given in str(caught.value)
    assert allowed in str(caught.value)


def test_the_same_names_mean_nothing_to_vllm():
    with pytest.raises(InputError, match="no vLLM interpreter"):
        check_inputs(plan("llama3_70b_tp4", "engine.profile=sglang", site=GPU_CLUSTER))
