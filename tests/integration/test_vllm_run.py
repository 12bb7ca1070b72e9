"""A whole run on real vLLM: two servers on the CPU behind the gateway, asked by erhpc's users and by `openai`."""

from __future__ import annotations

import json
import os
import signal

import pytest
from openai import OpenAI

from erhpc.results.store import read_levels
from tests import runs

pytestmark = pytest.mark.vllm

OVERRIDES = ("workload.users=[1,2]", "workload.measure_s=6", "workload.drain_s=60")


@pytest.mark.usefixtures("vllm_python")
def test_two_real_servers_answer_users_and_the_openai_client_through_the_gateway(tmp_path):
    launch = runs.start_verb(
        "launch", "+experiment=vllm_cpu_tiny", *OVERRIDES, f"output_root={tmp_path}", start_new_session=True
    )
    try:
        run = runs.wait_until(lambda: next(iter(tmp_path.glob("*/*/plan.json")), None), what="the run folder")
        run = runs.RunPaths(run.parent)
        runs.wait_until(run.endpoints.exists, deadline_s=300, what="the gateway")
        answers = [ask(run, model) for model in ("expert_0", "expert_1", "auto")]
        output, _ = launch.communicate(timeout=240)
    finally:
        if launch.poll() is None:
            os.killpg(launch.pid, signal.SIGINT)
            launch.communicate(timeout=60)

    assert launch.returncode == 0, output
    assert [answer["expert"] for answer in answers[:2]] == ["expert_0", "expert_1"]
    for answer in answers:
        assert answer["completion_tokens"] == 8
        assert answer["text"]
    records_plus_ours = runs.count_gateway_requests(run)
    levels = read_levels(run.root)
    assert set(levels["engine"]) == {"vllm"}
    assert list(levels["users"]) == [1, 2]
    assert (levels["requests_ok"] > 0).all()
    assert (levels["requests_failed"] == 0).all()
    assert "EMULATED" not in output
    records = runs.read_records(run.root)
    assert len(runs.choose_counted(records)) <= records_plus_ours - len(answers) <= len(records)
    assert set(records.loc[records["status"] == "ok", "tokens_out"]) == {16}
    assert runs.find_processes(run) == []


def ask(run, model):
    """One streamed chat through the gateway with the official client."""
    client = OpenAI(
        base_url=json.loads(run.endpoints.read_text())["gateway"] + "/v1",
        api_key=run.key.read_text().strip(),
        timeout=120,
    )
    raw = client.chat.completions.with_raw_response.create(
        model=model,
        messages=[{"role": "user", "content": "Solve the equation for x and explain each step."}],
        max_tokens=8,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    chunks = list(raw.parse())
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    usage = next(chunk.usage for chunk in reversed(chunks) if chunk.usage)
    return {"expert": raw.headers["x-erhpc-expert"], "text": text, "completion_tokens": usage.completion_tokens}
