"""The seam through which KV blocks travel: a source registers its pool, a home fetches from it.

The home moves the bytes: it reads announced blocks into its own memory, so nobody else ever writes
into a pool. A link knows blocks, generations and bytes; it knows nothing of models, requests or
gRPC.

KvLinkError
├── StaleBlock     the source handed the block out again before or while it was read
├── TransferTimeout
├── DigestMismatch   what arrived is not what was announced
├── WriterNotQuiet   a failed fetch may still write into its target blocks
├── PeerGone       the source process, its socket or its agent is no more
└── LinkUnusable   this link cannot reach this peer at all (other host, missing library, probe
failed)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from transport.kv.region import Region


class KvLinkError(Exception):
    """A fetch failed; what already landed in the target blocks is garbage."""


class StaleBlock(KvLinkError):
    pass


class TransferTimeout(KvLinkError):
    pass


class PeerGone(KvLinkError):
    pass


class LinkUnusable(KvLinkError):
    pass


class DigestMismatch(KvLinkError):
    pass


class WriterNotQuiet(KvLinkError):
    """A failed fetch could not be fenced: its target blocks must not be used again."""


@dataclass(frozen=True, slots=True)
class BlockRead:
    """Bytes [offset, offset + length) of block `source` of the peer into the same bytes of `target`
    here.
    """

    source: int
    generation: int  # of `source`, as announced
    target: int
    offset: int
    length: int


class Transfer(Protocol):
    """One fetch under way. `wait` may be called from any one thread; `fence` from any thread."""

    def wait(self, timeout_s: float) -> None:
        """Returns when every byte landed and every source generation was found unchanged *after*
        the copy.

        Raises KvLinkError otherwise. After an error (time-out included) call `fence` before the
        target blocks go to anybody else.
        """

    def fence(self) -> bool:
        """Stops the transfer. True: no byte of it can land any more (exact for shm and tcp).

        Idempotent, safe after completion. A fence may take other transfers of the same session with
        it (NIXL: it ends the transport process); those fail with PeerGone and can be started again.
        """


class KvSession(Protocol):
    """A proven path from one peer's pool (one boot epoch of it) into ours."""

    @property
    def path(self) -> str:
        """What the bytes really take, as proven by the probe: "shm", "tcp", "nixl:cma", "nixl:tcp"
        …
        """

    @property
    def alive(self) -> bool:
        """False: every further transfer fails with PeerGone; open another session."""

    def start(self, reads: Sequence[BlockRead]) -> Transfer:
        """Begins to copy; never blocks for the copy itself. What goes wrong, `wait` raises."""

    def close(self) -> None: ...


class KvSource(Protocol):
    """A pool being served to homes."""

    @property
    def endpoint(self) -> str:
        """JSON for `KvLink.connect`; travels over the authenticated control plane.

        Read it for each peer that asks: it changes when a part of the source had to be replaced.
        """

    def close(self) -> None: ...


class KvLink(Protocol):
    """One way to move blocks."""

    @property
    def name(self) -> str: ...

    def serve(self, region: Region) -> KvSource:
        """Makes this process's pool readable. Raises LinkUnusable when that cannot work here."""

    def connect(self, endpoint: str, region: Region) -> KvSession:
        """Opens a session that copies from the peer behind `endpoint` into `region` (ours).

        Moves a probe through the real path before it returns. Raises KvLinkError; LinkUnusable
        means that it is no use to try again.
        """
