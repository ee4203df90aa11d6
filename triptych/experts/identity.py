"""What an FFN worker and those who send it rows must agree on."""

from __future__ import annotations

import json
from pathlib import Path

from triptych.engine.backend import Backend
from triptych.fingerprint import weight_fingerprint


def unit_identity(path: Path, backend: Backend, rows: str) -> str:
    """Canonical JSON. Workers with different ones would give different bits for the same row.

    `rows`: how rows travel, see ExpertsConfig.
    """
    parts = {"weights": weight_fingerprint(path), "compute": backend.identity, "rows": rows}
    return json.dumps(parts, sort_keys=True)
