"""Addresses a server listens on: "unix:/run/worker.sock", or "host:port" (0: any free port)."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat

_MAX_UNIX_PATH_BYTES = 107  # sun_path holds 108 with the terminating zero


def bound_address(address: str, port: int) -> str:
    """What clients on this host connect to, once gRPC told the `port` it bound."""
    if address.startswith("unix:"):
        return address
    return f"{address.rpartition(':')[0]}:{port}"


def host_port(host: str, port: int) -> str:
    """The two as one address; an IPv6 host gets its brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def claim_address(address: str) -> None:
    """Removes a dead server's socket file; gRPC alone would take a living server's path as well.

    Raises ValueError when the path is too long for a socket, OSError when it is taken.
    """
    if not address.startswith("unix:"):
        return
    path = address.removeprefix("unix:").removeprefix("//")
    length = len(os.fsencode(path))
    if length > _MAX_UNIX_PATH_BYTES:
        raise ValueError(
            f"{path}: a socket path may have {_MAX_UNIX_PATH_BYTES} bytes, this one has {length}; "
            "choose a shorter run directory"
        )
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "not a socket, so it is not replaced", path)
        if _somebody_listens(path):
            raise OSError(errno.EADDRINUSE, "another server listens on this socket", path)
        os.unlink(path)


def _somebody_listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except BlockingIOError:
            return True  # a full backlog is somebody's
        return True
