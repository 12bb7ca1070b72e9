"""What the constants rest on: at most one fitted number per GPU, kernel and engine profile, all else said."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from erhpc.errors import ConfigError
from erhpc.twin.evidence import BASES, read_evidence
from erhpc.twin.hardware import load_constants, load_gpu_timing, load_profile, read_constant
from erhpc.twin.measured import read_facts
from erhpc.twin.validation import is_own
from tests.bench.twin.__main__ import main
from tests.bench.twin.constants import list_constants, list_fitted, list_sharers
from tests.bench.twin.leaving_out import Refit

NUMBERS = {"value": 1.0, "low": 0.5, "high": 2.0, "source": "here"}


@pytest.mark.parametrize("constant", list_constants(), ids=lambda one: f"{one.entry}-{one.name}")
def test_every_shipped_constant_says_what_it_rests_on_and_where_that_stands(constant):
    assert constant.has_basis
    assert constant.evidence.basis in BASES
    assert constant.evidence.basis != "calibrated"
    # What is known leaves no range, and what is not known does.
    assert (constant.evidence.low == constant.evidence.high) == (
        constant.evidence.basis == "known" or constant.evidence.value == 0
    )


def test_no_gpu_kernel_or_profile_has_more_than_one_fitted_number_and_each_has_a_reason():
    fitted = list_fitted()
    counts = Counter((constant.kind, constant.entry) for constant in fitted)

    assert len(fitted) > 10
    assert [entry for entry, count in counts.items() if count > 1] == []
    assert all(len(constant.evidence.reason) > 20 for constant in fitted)


def test_a_shared_constant_is_shared_by_several():
    for constant in list_constants():
        if constant.kind == "shared":
            assert len(list_sharers(constant.name)) > 1, constant.name


def test_a_fitted_number_without_a_reason_is_refused():
    with pytest.raises(ConfigError, match=r"speed is fitted and gives no reason"):
        read_evidence("speed", NUMBERS | {"basis": "fitted"})


@pytest.mark.parametrize("raw", [NUMBERS | {"basis": "guessed"}, {"shared": "luck"}])
def test_an_unknown_basis_or_shared_constant_is_refused_with_what_is_known(raw):
    with pytest.raises(ConfigError, match=r"speed.*Allowed: .*(published|frame_s)"):
        read_constant("speed", raw)


def test_what_is_derived_is_what_it_is_derived_from():
    profiles = {name: load_profile(name) for name in ("vllm-v0", "vllm-v0-online", "vllm-v1-async", "trt-llm-1.0")}
    online, offline, ahead = profiles["vllm-v0-online"], profiles["vllm-v0"], profiles["vllm-v1-async"]

    assert offline.tensor_parallel_s == offline.step_s == online.tensor_parallel_s == load_profile("trt-llm").step_s
    assert online.seq_s == pytest.approx(offline.seq_s + offline.frame_s)
    assert ahead.request_s + ahead.http_s == pytest.approx(15.6e-3)
    for name in ("step_s", "tensor_parallel_s", "seq_s", "gap_s"):
        assert getattr(profiles["trt-llm-1.0"], name) == getattr(ahead, name)
    for same, as_that in (("a100_80", "a100_40"), ("h200_141", "h100_80")):
        assert load_gpu_timing(same).compute_share == load_gpu_timing(as_that).compute_share
    older, newer = load_profile("trt-llm"), load_profile("trt-llm-0.14")
    assert (older.tensor_parallel_s, older.seq_s) == (newer.tensor_parallel_s, newer.seq_s)


def test_the_api_server_costs_the_same_in_every_profile_of_vllm():
    frames_s = {load_profile(name).frame_s for name in ("vllm-v0", "vllm-v0-online", "vllm-v1-sync", "vllm-v1-async")}

    assert len(frames_s) == 1
    assert 1 / 16_000 < frames_s.pop() < 1 / 12_000  # tests/data/own_h200/README.md


def test_the_bench_lists_every_constant_with_its_basis(capsys):
    main(["--constants"])

    printed = capsys.readouterr().out
    assert all(re.search(rf"{one.entry} +{one.name} ", printed) for one in list_constants())
    assert re.search(r"\d+ constants: .*\d+ fitted", printed)


def test_a_source_is_predicted_from_the_others():
    facts = [
        fact for fact in read_facts()
        if fact.profile == "vllm-v0" and fact.load in ("static", "burst") and fact.kernel == "plain"
    ]  # fmt: skip
    refit = Refit(facts)
    left = refit.leave_out("LLM-Inference-Bench h100_80 vllm-v0")

    assert len(left.refitted) == len(left.shipped) > 50
    # Numbers moved, and those of the source that is left out follow those that others tell.
    assert [one.predicted for one in left.refitted] != [one.predicted for one in left.shipped]
    assert {constant.entry for constant in left.untold} == {"h100_80"}
    for constant, value in left.values.items():
        assert constant.evidence.low * 0.999 <= value <= constant.evidence.high * 1.001


def test_nothing_is_fitted_to_what_this_project_measured():
    facts = [fact for fact in read_facts() if is_own(fact) and fact.level <= 8]

    values = Refit(facts).fit_all()

    assert all(value == pytest.approx(constant.evidence.value) for constant, value in values.items())


def test_constants_are_loaded_with_the_value_that_is_chosen():
    doubled = load_constants("h100_80", quantization=None, choose=lambda evidence: 2 * evidence.value)

    assert doubled.profile.frame_s == 2 * load_profile("vllm-v1-async").frame_s
