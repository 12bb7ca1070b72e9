"""A real Slurm cluster on this machine: four nodes with eight GPUs each, in a temporary folder, for root on Debian.

It does not know erhpc. The GPUs are device files that Slurm allocates but no job opens. By hand:
`python -m tests.slurm.miniature` starts one and holds it until Ctrl-C.
"""

from __future__ import annotations

import atexit
import os
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeVar

from tests.slurm.configuration import NODES, missing_host_name, write_configuration
from tests.slurm.host_names import add_names, remove_names
from tests.slurm.leftovers import HOSTS, as_variable, clear_crashed, create_folder, end_leftovers, list_processes

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "setpriv")
ENDED_STATES = frozenset(
    ["BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"]
)

_START_DEADLINE_S = 40.0
_POLL_S = 0.1
_JOB_FIELD = re.compile(r"(?:^|\s)([A-Z][A-Za-z/:]*)=(.*?)(?=\s+[A-Z][A-Za-z/:]*=|\s*$)")
_T = TypeVar("_T")


class MiniatureCluster:
    """Four nodes n1..n4 with 8 GPUs and 8 CPUs each; a context manager that leaves nothing behind.

    Enter it on a thread that lives as long as the cluster: the daemons die with that thread, so that even a killed
    process leaves none. When it cannot start: RuntimeError (a daemon ended) or TimeoutError, with the daemons' logs.
    """

    def __init__(self) -> None:
        self.folder = Path()
        """Configuration, keys, state and logs, from entry to exit."""
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._undo = ExitStack()

    @property
    def environment(self) -> dict[str, str]:
        """What a client (sbatch, srun, submitit) needs in its environment to reach this cluster."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def __enter__(self) -> MiniatureCluster:
        """Start the cluster; return when all its nodes are idle."""
        atexit.register(self._undo.close)
        self._undo.callback(atexit.unregister, self._undo.close)
        try:
            self._start()
        except BaseException:
            self._undo.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        """Cancel all jobs, stop all daemons, and remove the folder and the node names."""
        self._undo.close()

    def run(self, argv: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a client command and return its text output; `options` are those of subprocess.run.

        Default: check=True, timeout=60. CalledProcessError carries stderr as a note.
        """
        environment = {**(options.pop("env", None) or os.environ), **self.environment}
        defaults = {"capture_output": "stdout" not in options and "stderr" not in options, "check": True, "timeout": 60}
        try:
            return subprocess.run(argv, text=True, env=environment, **{**defaults, **options})
        except subprocess.CalledProcessError as error:
            error.add_note(f"stderr: {error.stderr}")
            raise

    def job(self, job_id: int | str) -> dict[str, str]:
        """Return the fields of `scontrol show job`, e.g. JobState, NodeList, ExitCode; jobs stay known for 15 min."""
        shown = self.run(["scontrol", "show", "job", str(job_id), "--oneliner"]).stdout
        return dict(_JOB_FIELD.findall(shown.splitlines()[0]))

    def wait_for_job(self, job_id: int | str, states: str | Sequence[str], deadline_s: float = 30) -> dict[str, str]:
        """Return the job's fields once its state is one of `states`; AssertionError if it ends in another one."""
        wanted = {states} if isinstance(states, str) else set(states)

        def reached() -> dict[str, str] | None:
            job = self.job(job_id)
            assert job["JobState"] in wanted or job["JobState"] not in ENDED_STATES, f"job ended otherwise: {job}"
            return job if job["JobState"] in wanted else None

        return _wait(reached, deadline_s, lambda: f"Job {job_id} did not become {wanted}: {self.job(job_id)}")

    def wait_until_idle(self, deadline_s: float = 30) -> None:
        """Wait until no job is queued or running and every node is idle."""
        _wait(self._is_idle, deadline_s, lambda: f"The cluster is not idle.\n{self._describe()}")

    def cancel_all(self) -> None:
        """Cancel every job, without waiting for its end."""
        self.run(["scancel", "--user=root"])

    def job_processes(self) -> dict[int, str]:
        """Return pid -> command line of every process that jobs of this cluster have on this machine."""
        marks = (as_variable(self.environment), b"\0SLURM_JOB_ID=")
        return {
            pid: command for pid, command, variables in list_processes() if all(mark in variables for mark in marks)
        }

    def _start(self) -> None:
        if missing := describe_missing():
            raise RuntimeError(missing)
        clear_crashed()
        self.folder = create_folder(self._undo)
        add_names(HOSTS, self.folder, NODES | missing_host_name())
        self._undo.callback(remove_names, HOSTS, self.folder)
        self._undo.callback(end_leftovers, self.folder)
        self._undo.callback(self._stop_daemons)
        write_configuration(self.folder)
        self._start_munged()
        self._start_daemon("slurmctld", "slurmctld", "-D")
        for node in NODES:
            self._start_daemon(f"slurmd-{node}", "slurmd", "-D", "-N", node)
        self._wait_for_start(self._is_idle)
        self._undo.callback(self._end_jobs)

    def _start_munged(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        places = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={self.folder}/munge.{suffix}" for option, suffix in places.items()]
        self._start_daemon("munged", "munged", "--foreground", "--force", *options)
        self._wait_for_start((self.folder / "munge.socket").exists)

    def _start_daemon(self, name: str, *argv: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self._daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", *argv],
                env=os.environ | self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the tests; they stop the daemons in the right order
            )

    def _wait_for_start(self, condition: Callable[[], bool]) -> None:
        def holds() -> bool:
            ended = [name for name, daemon in self._daemons.items() if daemon.poll() is not None]
            if ended:
                raise RuntimeError(f"{', '.join(ended)} ended at start.\n{self._read_logs()}")
            return condition()

        _wait(holds, _START_DEADLINE_S, lambda: f"Slurm did not start.\n{self._describe()}")

    def _is_idle(self) -> bool:
        states = self.run(["sinfo", "--noheader", "--Node", "--format=%N %T"], check=False).stdout.splitlines()
        idle = sorted(states) == [f"{node} idle" for node in NODES]
        return idle and not self.run(["squeue", "--noheader"]).stdout

    def _describe(self) -> str:
        views = [self.run(argv, check=False) for argv in (["sinfo", "-N", "-l"], ["squeue"])]
        return "\n".join([*(view.stdout + view.stderr for view in views), self._read_logs()])

    def _read_logs(self) -> str:
        return "\n".join(f"--- {path.name}\n{_tail(path)}" for path in sorted(self.folder.glob("*.log")))

    def _end_jobs(self) -> None:
        with suppress(TimeoutError, subprocess.SubprocessError):
            self.cancel_all()
            self.wait_until_idle(deadline_s=15)

    def _stop_daemons(self) -> None:
        for name in reversed(self._daemons):
            if name != "munged":  # the others need it to say goodbye to each other
                self._daemons[name].terminate()
        for name, daemon in reversed(self._daemons.items()):
            if name == "munged":
                daemon.terminate()
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons.clear()


def describe_missing() -> str:
    """Say what this machine lacks for a miniature cluster; an empty string: nothing."""
    missing = [program for program in PROGRAMS if not shutil.which(program)]
    if missing:
        return (
            f"A miniature Slurm needs {', '.join(missing)}. On Debian: "
            "apt-get install --no-install-recommends slurm-wlm slurmctld slurmd slurm-client munge."
        )
    return "" if os.geteuid() == 0 else f"A miniature Slurm needs root, the user id is {os.geteuid()}."


def _wait(condition: Callable[[], _T | None], deadline_s: float, describe: Callable[[], str]) -> _T:
    """Return the first true value of `condition`; TimeoutError with a description after `deadline_s`."""
    end_s = time.monotonic() + deadline_s
    while not (value := condition()):
        if time.monotonic() > end_s:
            raise TimeoutError(f"After {deadline_s} s: {describe()}")
        time.sleep(_POLL_S)
    return value


def _tail(path: Path, lines: int = 15) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def main() -> None:
    """Start a cluster, say how to use it, and hold it until Ctrl-C."""
    with MiniatureCluster() as cluster, suppress(KeyboardInterrupt):
        for name, value in cluster.environment.items():
            print(f"export {name}={value}", flush=True)
        print("# 4 nodes n1..n4 with 8 GPUs each are idle; Ctrl-C ends the cluster and its jobs.", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
