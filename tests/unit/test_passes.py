"""Passes: who is let in by one, where and for how long; and that a server that has only them needs nothing else."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erhpc.experts.pass_guard import PassGuard
from erhpc.experts.vllm import write_guest_package
from erhpc.plan.passes import check_pass, sign_pass

KEY = "k-1"
VALID = sign_pass(KEY, "math-0", 1000)


def test_a_pass_is_its_end_and_the_hmac_of_replica_and_end():
    signed = hmac.new(b"k-1", b"math-0\n1000", hashlib.sha256).hexdigest()

    assert f"1000.{signed}" == VALID


@pytest.mark.parametrize(
    ("key", "replica", "now_s", "is_let_in"),
    [
        (KEY, "math-0", 999.5, True),
        (KEY, "math-0", 1000, True),
        (KEY, "math-0", 1000.1, False),
        (KEY, "math-1", 999.5, False),
        ("k-2", "math-0", 999.5, False),
    ],
)
def test_a_pass_counts_for_one_key_one_replica_and_until_its_end(key, replica, now_s, is_let_in):
    assert check_pass(key, replica, VALID, now_s) == is_let_in


@pytest.mark.parametrize(
    "value",
    [
        "",
        ".",
        "1000",
        "1000.",
        VALID.upper(),
        f"0{VALID}",
        f" {VALID}",
        f"{VALID} ",
        VALID.replace("1000.", "9000."),
        VALID.replace("1000.", "-1000."),
        VALID.replace("1000.", "١٠٠٠."),
        VALID.replace("1000.", "1" * 5000 + "."),
        VALID[:-1],
        f"{VALID[:-1]}\udcff",
        f"{VALID[:-1]}\u00e9",
    ],
)
def test_what_is_no_pass_lets_nobody_in(value):
    assert check_pass(KEY, "math-0", value, 0.0) is False


@given(st.text())
def test_no_text_breaks_the_check(value):
    assert check_pass(KEY, "math-0", value, 0.0) is False


def pass_through(guard_of, query, *fields):
    """What of a request's scope comes out behind a guard."""
    seen = []

    async def app(scope, receive, send):
        seen.append(scope)

    scope = {"type": "http", "query_string": query.encode(), "headers": list(fields)}
    asyncio.run(guard_of(app)({**scope}, None, None))
    return seen[0], scope


@pytest.fixture
def guarded(monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    monkeypatch.setenv("ERHPC_REPLICA", "math-0")
    return PassGuard


def test_a_request_with_a_pass_comes_with_the_key(guarded):
    value = sign_pass(KEY, "math-0", int(time.time()) + 60)
    accept = (b"accept", b"text/event-stream")

    seen, before = pass_through(guarded, f"a=1&erhpc_pass={value}", accept, (b"authorization", b"Bearer stale"))

    assert seen == before | {"headers": [accept, (b"authorization", b"Bearer k-1")]}


@pytest.mark.parametrize("replica", ["math-0", "math-1"])
@pytest.mark.parametrize("left_s", [-5, 60])
def test_a_request_without_a_valid_pass_passes_as_it_came(guarded, replica, left_s):
    value = "" if (replica, left_s) == ("math-0", 60) else sign_pass(KEY, replica, int(time.time()) + left_s)

    seen, before = pass_through(guarded, f"erhpc_pass={value}", (b"authorization", b"Bearer k-1"))

    assert seen == before


def test_a_server_without_a_key_has_no_use_for_passes(monkeypatch):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    monkeypatch.setenv("ERHPC_REPLICA", "math-0")

    seen, before = pass_through(PassGuard, f"erhpc_pass={sign_pass('', 'math-0', int(time.time()) + 60)}")

    assert seen == before


def test_what_runs_inside_vllm_needs_nothing_but_python(tmp_path):
    write_guest_package(tmp_path / "guest")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'guest')!r}); "
        "from erhpc.experts.pass_guard import PassGuard; print(sys.modules['erhpc'].__file__)"
    )

    # -I and -S: no PYTHONPATH, no working folder, no site-packages.
    run = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)

    assert run.stdout.strip() == str(tmp_path / "guest" / "erhpc" / "__init__.py")
