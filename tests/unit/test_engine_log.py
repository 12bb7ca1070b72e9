"""The line of a failed engine's log that a person needs; the logs are vLLM 0.32's own, shortened."""

from __future__ import annotations

import pytest

from erhpc.experts.engine_log import first_error

MISSING_MODEL = """\
Triton is installed, but doesn't include CPU backend. Disabling Triton.
(APIServer pid=12318) INFO 11-23 04:06:38 [api_utils.py:286] non-default args: {'host': '127.0.0.1', 'port': 21012}
(APIServer pid=12318) WARNING 11-23 04:06:38 [system_utils.py:255] Found ulimit of 20000 and failed to automatically \
increase. This can cause fd limit errors like `OSError: [Errno 24] Too many open files`. Consider increasing it.
Traceback (most recent call last):
  File "<frozen runpy>", line 198, in _run_module_as_main
  File "/env/site-packages/vllm/transformers_utils/repo_utils.py", line 301, in get_model_path
    return hf_api().snapshot_download(
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/env/site-packages/huggingface_hub/utils/_validators.py", line 133, in validate_repo_id
    raise HFValidationError(
huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name' or 'namespace/repo_name': '/models/x'.
"""

NO_CONFIG = """\
Traceback (most recent call last):
  File "/env/site-packages/pydantic/_internal/_dataclasses.py", line 121, in __init__
    s.__pydantic_validator__.validate_python(ArgsKwargs(args, kwargs), self_instance=s)
pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
  Value error, Invalid repository ID or local directory specified: '/models/empty'.
Please verify the following requirements:
1. Provide a valid Hugging Face repository ID.
2. Specify a local directory that contains a recognized configuration file.
 [type=value_error, input_value=ArgsKwargs((), {'model': ...nderer_num_workers': 1}), input_type=ArgsKwargs]
    For further information visit https://errors.pydantic.dev/2.14/v/value_error
"""

TOO_LONG_FOR_THE_CACHE = """\
(Worker pid=12703) INFO 11-23 04:07:53 [cpu_worker.py:260] Explicitly set (1.0/12.09) GiB for KV cache on node 0.
(EngineCore pid=12678) ERROR 11-23 04:07:53 [core.py:1510] EngineCore failed to start.
(EngineCore pid=12678) ERROR 11-23 04:07:53 [core.py:1510] Traceback (most recent call last):
(EngineCore pid=12678) ERROR 11-23 04:07:53 [core.py:1510]   File "/env/vllm/v1/engine/core.py", line 1482, in run
(EngineCore pid=12678) ERROR 11-23 04:07:53 [core.py:1510]     raise ValueError(
(EngineCore pid=12678) ERROR 11-23 04:07:53 [core.py:1510] ValueError: To serve at least one request with the model's \
max seq len (4000000), (3.81 GiB KV cache is needed, which is larger than the available KV cache memory (1.0 GiB).
Process EngineCore:
(EngineCore pid=12678) ERROR 11-23 04:07:57 [multiproc_executor.py:315] Worker proc VllmWorker-0 died unexpectedly
Traceback (most recent call last):
  File "/env/vllm/v1/engine/utils.py", line 1431, in wait_for_engine_startup
    raise RuntimeError(
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}
/python/multiprocessing/resource_tracker.py:254: UserWarning: resource_tracker: There appear to be 1 leaked objects
  warnings.warn('resource_tracker: There appear to be %d '
"""

PORT_IN_USE = """\
(APIServer pid=12522) INFO 11-23 04:07:10 [api_utils.py:286] non-default args: {'host': '127.0.0.1', 'port': 21012}
Traceback (most recent call last):
  File "/env/vllm/entrypoints/launchers/launcher.py", line 348, in create_server_socket
    sock.bind(addr)
OSError: [Errno 98] Address already in use
"""

NO_WEIGHTS = """\
(Worker pid=13168) INFO 11-23 04:08:29 [cpu_model_runner.py:68] Starting to load model /models/none...
(Worker pid=13168) ERROR 11-23 04:08:29 [multiproc_executor.py:953] WorkerProc failed to start.
(Worker pid=13168) ERROR 11-23 04:08:29 [multiproc_executor.py:953] Traceback (most recent call last):
(Worker pid=13168) ERROR 11-23 04:08:29 [multiproc_executor.py:953]     raise RuntimeError(
(Worker pid=13168) ERROR 11-23 04:08:29 [multiproc_executor.py:953] RuntimeError: Cannot find any model weights with \
`/models/none`
(EngineCore pid=13140) ERROR 11-23 04:08:31 [core.py:1510] EngineCore failed to start.
(EngineCore pid=13140) ERROR 11-23 04:08:31 [core.py:1510] Traceback (most recent call last):
(EngineCore pid=13140) ERROR 11-23 04:08:31 [core.py:1510] Exception: WorkerProc initialization failed due to an \
exception in a background process. See stack trace for root cause.
Traceback (most recent call last):
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""

UNKNOWN_FLAG = """\
usage: api_server.py [-h] [--headless] [--enable-log-requests | --no-enable-log-requests]
                     [model_tag]
api_server.py: error: unrecognized arguments: --no-such-flag
"""


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (MISSING_MODEL, "huggingface_hub.errors.HFValidationError: Repo id must be in the form"),
        (NO_CONFIG, "ValueError: Invalid repository ID or local directory specified: '/models/empty'."),
        (TOO_LONG_FOR_THE_CACHE, "ValueError: To serve at least one request with the model's max seq len (4000000)"),
        (PORT_IN_USE, "OSError: [Errno 98] Address already in use"),
        (NO_WEIGHTS, "RuntimeError: Cannot find any model weights with `/models/none`"),
        (UNKNOWN_FLAG, "api_server.py: error: unrecognized arguments: --no-such-flag"),
    ],
)
def test_the_cause_is_found_behind_the_errors_it_led_to(log, expected):
    assert first_error(log).startswith(expected)


def test_what_pydantic_was_given_is_left_out():
    heading = "pydantic_core.ValidationError: 1 validation error for ModelConfig"
    log = f"{heading}\n  Value error, too long. [type=value_error, input_value=ArgsKwargs(())]"

    assert first_error(log) == "ValueError: too long."


def test_ranks_and_colours_are_stripped():
    log = "\x1b[1;36m(Worker pid=7)\x1b[0;0m [rank3]: torch.OutOfMemoryError: CUDA out of memory. Tried 2.00 GiB."

    assert first_error(log) == "torch.OutOfMemoryError: CUDA out of memory. Tried 2.00 GiB."


def test_an_exception_logged_as_a_warning_is_no_cause():
    log = "WARNING 11-23 04:00:00 [a.py:1] ImportError: no plugin\nERROR 11-23 04:00:01 [a.py:2] ValueError: the cause"

    assert first_error(log) == "ValueError: the cause"


def test_a_symptom_is_better_than_nothing():
    log = "RuntimeError: Engine core initialization failed. See root cause above.\ncleaning up"

    assert first_error(log).startswith("RuntimeError: Engine core")


def test_without_an_exception_the_first_line_of_level_error_counts():
    log = "INFO 11-23 04:00:00 [a.py:1] loading\nERROR 11-23 04:00:01 [a.py:2] GPU is lost\nbye"

    assert first_error(log) == "GPU is lost"


def test_without_any_error_the_last_line_counts():
    assert first_error("loading\nKilled\n\n") == "Killed"


@pytest.mark.parametrize("log", ["", "\n \n"])
def test_an_empty_log_has_no_error(log):
    assert first_error(log) is None
