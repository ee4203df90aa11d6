"""Ids of calls, as templates want them back."""

from __future__ import annotations

import secrets
import string

_LETTERS = string.ascii_letters + string.digits


def long_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def short_id() -> str:
    """Nine letters or digits: Mistral's templates refuse anything else."""
    return "".join(secrets.choice(_LETTERS) for _ in range(9))
