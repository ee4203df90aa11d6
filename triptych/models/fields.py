"""Typed reading of a checkpoint's configuration: every complaint names the file and the key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from triptych.errors import ModelError


class Fields:
    """Keys and values as found in config.json or GGUF metadata. A null counts as absent.

    Accessors take a default; without one the key is required. Raises ModelError.
    """

    def __init__(self, values: Mapping[str, Any], origin: str) -> None:
        self._values = values
        self.origin = origin  # for messages: the file, and the section in it

    def with_defaults(self, **defaults: Any) -> Fields:
        given = {key: value for key, value in self._values.items() if value is not None}
        return Fields(defaults | given, self.origin)

    def replaced(self, **values: Any) -> Fields:
        """With other values, whatever is there."""
        return Fields({**self._values, **values}, self.origin)

    def get(self, key: str) -> Any:
        return self._values.get(key)

    def is_null(self, key: str) -> bool:
        """Whether the key is there, and null."""
        return key in self._values and self._values[key] is None

    def size(self, key: str, default: int | None = None, *, minimum: int = 1) -> int:
        """An integer from `minimum` up."""
        value = self._value(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise self.error(key, f"expected an integer ≥ {minimum}, found {value!r}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._value(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.error(key, f"expected a number, found {value!r}")
        return float(value)

    def positive(self, key: str, default: float | None = None) -> float:
        value = self.number(key, default)
        if not 0 < value < math.inf:
            raise self.error(key, f"expected a positive number, found {value!r}")
        return value

    def flag(self, key: str, default: bool | None = None) -> bool:
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.error(key, f"expected true or false, found {value!r}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self.error(key, f"expected a string, found {value!r}")
        return value

    def optional_size(self, key: str) -> int | None:
        return None if self.get(key) is None else self.size(key)

    def optional_positive(self, key: str) -> float | None:
        return None if self.get(key) is None else self.positive(key)

    def token_ids(self, key: str) -> tuple[int, ...]:
        """One token id, a list of them, or none at all."""
        value = self.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) for item in ids):
            raise self.error(key, f"expected a token id or a list of them, found {value!r}")
        return tuple(dict.fromkeys(ids))

    def section(self, key: str) -> Fields | None:
        """A nested mapping; None when absent."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(key, f"expected a mapping, found {value!r}")
        return Fields(value, f"{self.origin}: {key}")

    def error(self, key: str, problem: str) -> ModelError:
        return ModelError(f"{self.origin}: {key}: {problem}")

    def _value(self, key: str, default: Any) -> Any:
        value = self.get(key)
        if value is not None:
            return value
        if default is None:
            raise ModelError(f"{self.origin}: key {key!r} is missing")
        return default
