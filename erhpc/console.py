"""Opens the console of a verb: as wide as the terminal, and on a pipe so wide that no line is broken."""

from __future__ import annotations

import sys

from rich.console import Console

PIPE_WIDTH = 2000


def open_console() -> Console:
    """The console on stdout; numbers are not coloured, paths are not split."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
