"""Sees to it that nothing of a miniature cluster outlives it: its folder, its processes, its node names.

It does not know how a cluster is configured or started. A cluster's folder identifies it; a lock in the folder says
that its owner lives.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path

from tests.slurm.host_names import list_owners, remove_names

HOSTS = Path("/etc/hosts")

_FOLDER_PREFIX = "erhpc-slurm-"
_DAEMONS = frozenset({"munged", "slurmctld", "slurmd", "slurmscriptd", "slurmstepd"})


def create_folder(undo: ExitStack) -> Path:
    """Return a new folder, marked alive until `undo` runs, which removes it."""
    # not $TMPDIR: the path of a Unix socket ends at 107 bytes
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX, dir="/tmp"))
    undo.callback(shutil.rmtree, folder, ignore_errors=True)
    lock = undo.enter_context((folder / "alive").open("w"))
    fcntl.flock(lock, fcntl.LOCK_EX)
    (folder / "state").mkdir()
    return folder


def clear_crashed() -> None:
    """End and remove clusters whose process died without a chance to tidy: nobody holds their lock any more."""
    for folder in list_owners(HOSTS):
        if folder.name.startswith(_FOLDER_PREFIX) and not _is_alive(folder):
            end_leftovers(folder)
            remove_names(HOSTS, folder)
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(folder: Path) -> bool:
    try:
        with (folder / "alive").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


def end_leftovers(folder: Path) -> None:
    """Kill what daemons and jobs of the cluster in `folder` left; a shell that only exported SLURM_CONF stays."""
    ours = as_variable({"SLURM_CONF": str(folder / "slurm.conf")})
    for pid, command, variables in list_processes():
        is_daemon = not _DAEMONS.isdisjoint(Path(word).name for word in command.replace(":", " ").split()[:1])
        if ours in variables and (is_daemon or b"\0SLURM_JOB_ID=" in variables):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def list_processes() -> list[tuple[int, str, bytes]]:
    """Return (pid, command line, environment as \\0NAME=value...\\0) of every process on this machine."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            found.append((int(folder.name), command, b"\0" + (folder / "environ").read_bytes()))
    return found


def as_variable(environment: dict[str, str]) -> bytes:
    """Return `environment` as it appears within a process's."""
    return "".join(f"\0{name}={value}\0" for name, value in environment.items()).encode()
