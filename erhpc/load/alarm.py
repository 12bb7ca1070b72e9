"""Wakes a coroutine at an absolute time, as precisely as the kernel's timers: uvloop's own go by the millisecond.

Linux only (timerfd_create(2), which Python names from 3.13 on); elsewhere, and if the system refuses, asyncio sleeps.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import time
from types import TracebackType
from typing import Any, Self

_CLOCK_MONOTONIC = 1
_TFD_TIMER_ABSTIME = 1
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Alarm:
    """One timer, for one coroutine at a time; open while the context is. Times are of CLOCK_MONOTONIC."""

    def __enter__(self) -> Self:
        self._libc: Any = ctypes.CDLL(None, use_errno=True)
        create = getattr(self._libc, "timerfd_create", None)
        self._timer: int = create(_CLOCK_MONOTONIC, _FLAGS) if create is not None else -1
        self._rang = asyncio.Event()
        if self._timer >= 0:
            asyncio.get_running_loop().add_reader(self._timer, self._ring)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer >= 0:
            asyncio.get_running_loop().remove_reader(self._timer)
            os.close(self._timer)

    @property
    def is_precise(self) -> bool:
        """Whether the kernel's timer is used."""
        return self._timer >= 0

    async def wait_until(self, due_ns: int) -> None:
        """Return at `due_ns`, at once if that has passed."""
        now_ns = time.monotonic_ns()
        if due_ns <= now_ns:
            return
        if self._timer < 0:
            await asyncio.sleep((due_ns - now_ns) / 1e9)
            return
        self._rang.clear()
        due = _TimerSpec(_Timespec(0, 0), _Timespec(*divmod(due_ns, 1_000_000_000)))
        if self._libc.timerfd_settime(self._timer, _TFD_TIMER_ABSTIME, ctypes.byref(due), None):
            raise OSError(ctypes.get_errno(), f"timerfd_settime refused {due_ns} ns")
        await self._rang.wait()

    def _ring(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._timer, 8)
            self._rang.set()
