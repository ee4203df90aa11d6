"""A worker's handle on its transport process: starts it, talks to it, ends it for certain."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from transport.kv.base import LinkUnusable, PeerGone
from transport.kv.frames import FrameError, recv_frame, send_frame
from transport.kv.region import Region
from transport.kv.sockets import limit_stalls

OPEN_S = 60.0  # loading the library from a cold disk takes seconds
ANSWER_S = 15.0
FENCE_S = 5.0  # a killed process is gone within milliseconds
ProcessRole = Literal["source", "home"]
_IMPORT_ROOT = Path(__file__).resolve().parents[2]  # where `transport` lies


class TransportProcess:
    """Maps `region` in a process of its own. `end` is the fence: afterwards it moves no byte."""

    def __init__(self, role: ProcessRole, region: Region) -> None:
        """Raises LinkUnusable when the process cannot be started."""
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "transport.kv.nixl_process", role]
        command += ["--socket", str(theirs.fileno()), "--pool", str(region.fd)]
        command += ["--block-bytes", str(region.shape.block_bytes)]
        command += ["--num-blocks", str(region.shape.num_blocks)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=2,  # the library logs to its output
                cwd=_IMPORT_ROOT,
                pass_fds=(theirs.fileno(), region.fd),
            )
        except OSError as error:
            ours.close()
            raise LinkUnusable(f"cannot start a transport process: {error}") from error
        finally:
            theirs.close()
        self._socket = ours
        self._lock = threading.Lock()
        limit_stalls(ours, send_s=OPEN_S, receive_s=OPEN_S)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def ask(self, question: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The answer to `question`, or how the start went. Raises LinkUnusable, PeerGone."""
        try:
            if question is not None:
                limit_stalls(self._socket, send_s=ANSWER_S, receive_s=ANSWER_S)
                send_frame(self._socket, question)
            head, _ = recv_frame(self._socket)
        except BlockingIOError as error:
            raise PeerGone("the transport process or its peer did not answer in time") from error
        except (OSError, FrameError) as error:
            raise LinkUnusable(f"the transport process did not answer: {error}") from error
        if "gone" in head:
            raise PeerGone(head["gone"])
        if "failed" in head:
            raise LinkUnusable(head["failed"])
        return head

    def send(self, head: Mapping[str, Any], blob: bytes = b"") -> None:
        """Raises OSError when the process is gone."""
        with self._lock:
            send_frame(self._socket, head, blob)

    def wait_for_ever(self) -> None:
        """From now on `receive` waits as long as the process lives."""
        limit_stalls(self._socket, send_s=OPEN_S, receive_s=0)

    def receive(self) -> dict[str, Any]:
        """Raises OSError when the process is gone."""
        return recv_frame(self._socket)[0]

    def end(self) -> bool:
        """Kills it and waits. True: it is gone, and with it every transfer."""
        self._process.send_signal(signal.SIGKILL)
        try:
            self._process.wait(FENCE_S)
        except subprocess.TimeoutExpired:
            return False
        return True

    def close(self) -> None:
        """Ends it and gives the socket back; nobody may use the handle any more."""
        self.end()
        self._socket.close()
