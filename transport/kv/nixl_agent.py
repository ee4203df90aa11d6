"""One NIXL agent over one pool: the only module that knows the library.

Lives in a transport process, never in a worker: releasing a NIXL handle does not stop its transfer,
and UCX aborts the process on some errors. There is no progress thread, because it would keep a core
busy for ever; a source has to call `progress` often instead, and homes tell it when.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transport.kv.base import KvLinkError, PeerGone
from transport.kv.reads import Positions
from transport.kv.region import PAGE, Region

LIBRARY = "nixl_cu12"  # pinned by name: two variants cannot live in one process
REMEDY = "the NIXL library is missing: pip install 'triptych-runtime[nixl]'"
_HINT = b"reading"
_HINT_EVERY_S = 0.005
_SPIN_S = 1.0  # longer transfers are waited for with small sleeps


def library_present() -> bool:
    return importlib.util.find_spec(LIBRARY) is not None


class PoolAgent:
    """An agent of a new name; the pool is registered as one piece of memory. For one thread."""

    def __init__(self, region: Region) -> None:
        """Raises KvLinkError when the library cannot work here."""
        # UCX reads it once: by default it keeps registrations without bound.
        os.environ.setdefault("UCX_RCACHE_MAX_UNRELEASED", "1024")
        nixl: Any = importlib.import_module(LIBRARY)
        bindings: Any = importlib.import_module(f"{LIBRARY}._bindings")
        logging.getLogger("nixl").setLevel(logging.WARNING)
        # The library's errors have no base of their own.
        names = [name for name in dir(bindings) if name.startswith("nixl") and "Error" in name]
        self._errors: tuple[type[Exception], ...] = tuple(getattr(bindings, n) for n in names)
        self._disconnected: type[Exception] = bindings.nixlRemoteDisconnectError
        with self._as_link_errors():
            config = nixl.nixl_agent_config(enable_prog_thread=False, backends=[])
            self._agent: Any = nixl.nixl_agent(uuid.uuid4().hex, config)
            self._agent.create_backend("UCX", {})
            self.base: int = region.probe.ctypes.data - PAGE  # address of the pool's first byte
            self._agent.register_memory([(self.base, region.shape.total_bytes, 0, "")], "DRAM")
            self.metadata: bytes = self._agent.get_agent_metadata()

    def add_memory(self, array: NDArray[np.uint8]) -> None:
        """Lets reads land in `array`, which must outlive the agent."""
        with self._as_link_errors():
            self._agent.register_memory([(array.ctypes.data, array.nbytes, 0, "")], "DRAM")

    def connect(self, metadata: bytes) -> str:
        """Returns the peer's name for `read`. Raises PeerGone."""
        try:
            with self._as_link_errors():
                name: bytes = self._agent.add_remote_agent(metadata)
        except KvLinkError as error:  # the library does not tell a dead peer from a distant one
            raise PeerGone(f"cannot connect to the peer's agent: {error}") from error
        return name.decode()

    def read(self, peer: str, lengths: Positions, remote: Positions, local: Positions) -> None:
        """Copies runs between addresses; returns when every byte landed, however long that takes.

        After an error some bytes may still land. Raises PeerGone, KvLinkError.
        """
        with self._as_link_errors():
            handle = self._agent.initialize_xfer(
                "READ", self._runs(local, lengths), self._runs(remote, lengths), peer
            )
            state = self._agent.transfer(handle)
            began = time.monotonic()
            hinted = began - _HINT_EVERY_S
            while state == "PROC":
                now = time.monotonic()
                if now - hinted >= _HINT_EVERY_S:
                    self._agent.send_notif(peer, _HINT)
                    hinted = now
                time.sleep(0 if now - began < _SPIN_S else 0.001)
                state = self._agent.check_xfer_state(handle)
            handle.release()
        if state != "DONE":
            raise KvLinkError(f"NIXL ended a read in state {state}")

    def progress(self) -> bool:
        """Answers what peers asked for. True: some peer is reading, call again at once."""
        with self._as_link_errors():
            return bool(self._agent.get_new_notifs())

    def _runs(self, addresses: Positions, lengths: Positions) -> Any:
        rows = np.zeros((len(lengths), 3), dtype=np.uint64)  # address, length, device
        rows[:, 0] = addresses
        rows[:, 1] = lengths
        return self._agent.get_xfer_descs(rows, "DRAM")

    @contextmanager
    def _as_link_errors(self) -> Iterator[None]:
        try:
            yield
        except self._disconnected as error:
            raise PeerGone(f"NIXL lost its peer: {error}") from error
        except self._errors as error:
            raise KvLinkError(f"NIXL: {type(error).__name__}: {error}") from error
