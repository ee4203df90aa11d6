"""Where heads are kept that nobody named a place for."""

from __future__ import annotations

from pathlib import Path

from triptych.config import cache_dir
from triptych.drafters.heads.head_config import HeadKind


def head_dir(fingerprint: str, kind: HeadKind) -> Path:
    """By the weights that it was trained on: a head is of no use to others."""
    return cache_dir() / "heads" / fingerprint / kind
