"""The native row exchange, where it can be had."""

from __future__ import annotations

from transport.rows.library import RowsLibrary
from triptych.errors import ConfigError
from triptych_kernels.cpu.native import Library, native


def need_native() -> Library:
    """Raises ConfigError where the native kernels cannot be had."""
    library = native()
    if library is None:
        raise ConfigError(
            "experts.run: FFN workers, and those who send them rows, need the native kernels, "
            "which cannot be had here; set experts.run to local, or install a C++ compiler"
        )
    return library


def rows_library() -> RowsLibrary:
    """Raises ConfigError like `need_native`."""
    return RowsLibrary(need_native().bind)
