"""A segment's memory and a process's doorbell, as descriptors that travel to peers.

The native side maps them by itself, so a segment may be closed as soon as it was added. Both are
sealed: nobody can cut a page away that another process reads.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from dataclasses import dataclass

from transport.kv.memory import available_bytes
from transport.rows.base import RowsUnusable
from transport.rows.library import RowsLibrary, SegmentShape

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Doorbell:
    """The word that peers change to be noticed by this process. Close it last."""

    def __init__(self, library: RowsLibrary) -> None:
        self._library = library
        self.handle: int | None = library.bell_new()
        if self.handle is None:
            raise OSError(errno.ENOMEM, "no memory for a doorbell")

    @property
    def fd(self) -> int:
        """Ours; hand it to peers."""
        return int(self._library.bell_fd(self.handle))

    def ring(self) -> None:
        self._library.bell_ring(self.handle)

    def close(self) -> None:
        handle, self.handle = self.handle, None
        if handle is not None:
            self._library.bell_free(handle)


@dataclass(slots=True)
class Segment:
    """Memory between one incarnation of A and one of F, and how to ring the other one.

    `fd` and `peer_bell` are owned; -1 once closed.
    """

    fd: int
    shape: SegmentShape
    a_inc: int  # u64, another one whenever a process starts
    f_inc: int
    peer_bell: int

    def close(self) -> None:
        for fd in (self.fd, self.peer_bell):
            if fd >= 0:
                os.close(fd)
        self.fd = self.peer_bell = -1


def segment_bytes(library: RowsLibrary, shape: SegmentShape) -> int:
    """Raises RowsUnusable when there can be no such segment."""
    size = int(library.segment_bytes(ctypes.byref(shape.struct())))
    if not size:
        raise RowsUnusable(f"there can be no such segment: {shape}")
    return size


def create_memory(library: RowsLibrary, shape: SegmentShape) -> int:
    """A sealed memfd with an empty segment, reserved up front. Raises RowsUnusable or OSError."""
    size = segment_bytes(library, shape)
    if size > available_bytes():
        raise OSError(errno.ENOMEM, f"a segment of {size} bytes does not fit")
    header = (ctypes.c_uint8 * mmap.PAGESIZE)()
    library.segment_header(ctypes.byref(shape.struct()), header)
    fd = os.memfd_create("triptych-rows", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(fd, 0, size)
        os.pwrite(fd, bytes(header), 0)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd
