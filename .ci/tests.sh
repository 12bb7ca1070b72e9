#!/usr/bin/env bash
# Runs the tests in three workers while vLLM's environment is built; the tests that need it come late and wait for it.
#
#   .ci/tests.sh [ARGUMENT OF PYTEST...]
#
# `--numprocesses 0` runs all in one process, e.g. for `--pdb`. A build that no test has waited for ends with the tests.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# A group of its own, so that pip and its children can be ended too; the lowest priority, for the tests measure times.
setsid nice -n 19 bash .ci/vllm_env.sh > /dev/null &
build=$!
trap 'kill -- "-$build" 2> /dev/null || true' EXIT
.venv/bin/python -m pytest --numprocesses 3 "$@"
