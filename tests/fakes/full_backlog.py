"""A server that takes no connection and refuses none."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager


@contextmanager
def full_backlog() -> Iterator[int]:
    """The port of a listener who accepts nobody and whose queue is full: the kernel drops who knocks."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        callers = []
        try:
            for _ in range(8):
                caller = socket.socket()
                callers.append(caller)
                caller.setblocking(False)
                caller.connect_ex(("127.0.0.1", port))
            yield port
        finally:
            for caller in callers:
                caller.close()
