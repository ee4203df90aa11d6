"""What every process of a cluster does first."""

from __future__ import annotations

import faulthandler
from collections.abc import Callable

from triptych.config import ClusterConfig
from triptych.obs.log import setup_logging
from triptych.obs.trace import setup_tracing
from triptych.tls import setup_tls

_STDERR = 2  # the descriptor: sys.stderr may be a file in memory


def set_up_process(config: ClusterConfig, name: str) -> Callable[[], None]:
    """Log, traces and certificates of the process `name`; call what is returned at its end.

    Raises ConfigError.
    """
    faulthandler.enable(_STDERR)  # a crash in native code leaves its stacks there
    setup_logging(config.log.level, config.log.format, name)
    flush_traces = setup_tracing(config.tracing, name)
    setup_tls(config)
    return flush_traces
