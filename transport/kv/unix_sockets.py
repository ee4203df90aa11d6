"""Unix sockets in a directory: names of any length, no half-open ones, none left by the dead."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def listen_at(path: Path) -> socket.socket:
    """A listener that only our own user may connect to. Raises OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    unborn = path.with_suffix(".new")  # a name that is there can be connected to
    try:
        with _address(unborn) as address:
            listener.bind(address)
        os.chmod(unborn, 0o600)
        listener.listen()
        os.rename(unborn, path)
    except BaseException:
        listener.close()
        unborn.unlink(missing_ok=True)
        raise
    return listener


def connect_to(path: Path) -> socket.socket:
    """Raises OSError; ConnectionRefusedError when the listener is no more."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _address(path) as address:
            connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection


def sweep_sockets(directory: Path, pattern: str = "kv-*.sock") -> None:
    """Removes the sockets of processes that were killed. Raises OSError."""
    for path in directory.glob(pattern):
        with suppress(OSError):  # nor ours to judge
            try:
                connect_to(path).close()
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)


@contextmanager
def _address(path: Path) -> Iterator[str]:
    """Leads through an open directory: a socket's address has 107 bytes at most."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
