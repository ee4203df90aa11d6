"""The loaded library: which level it is, its threads, and how its functions get their signatures.

Nothing here is required: where no level fits or none can be compiled, `native()` logs one line and
is None, and callers take the torch reference.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych_kernels.cpu.build import BuildError, build_library, default_cache
from triptych_kernels.cpu.levels import Level, usable_levels

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Library:
    level: Level
    dll: ctypes.CDLL

    def bind(self, name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
        """A function of the library with its C signature. Calls of it release the GIL."""
        function = self.dll[name]
        function.restype, function.argtypes = result, arguments
        return function


@functools.cache
def native() -> Library | None:
    """The best level that works here, compiled first if need be (some seconds, once)."""
    reason: Exception | str = "no instruction set of this CPU is supported"
    for level in usable_levels():
        try:
            return load_library(level, default_cache())
        except (BuildError, OSError) as error:
            reason = error
    _log.warning("no native CPU kernels, the slower torch reference is used: %s", reason)
    return None


def load_library(level: Level, cache: Path) -> Library:
    """Raises BuildError or OSError; among them when the system does not let us use the CPU's
    tiles.
    """
    library = Library(level, ctypes.CDLL(str(build_library(level, cache))))
    if not library.bind("tk_ready", ctypes.c_int)():
        raise BuildError(f"the system does not allow the instructions of level {level.name!r}")
    return library


def set_threads(count: int) -> None:
    """Threads that share one op, the caller's included. Never changes a result."""
    library = native()
    if library is not None:
        library.bind("tk_set_threads", None, ctypes.c_int)(count)
