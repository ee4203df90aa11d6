"""How an attention process (A) introduces itself to a worker (F), and how F answers.

A offers who it is (opaque to this package), its incarnation and the shape of the segment it wants.
F's callback looks at who it is; F's door counts the memory.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from transport.rows.base import RowsRefused, RowsUnusable
from transport.rows.library import CELL_TYPES, ROW_TYPES, RowsLibrary, SegmentShape
from transport.rows.segment import segment_bytes

Welcome = Callable[[dict[str, Any]], dict[str, Any]]
"""Looks at who asks and returns what A should know of us. Raises RowsRefused with a reason."""

MAX_INC = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Offer:
    """What A brings."""

    shape: SegmentShape
    a_inc: int  # u64, another one whenever A starts
    hello: Mapping[str, Any] = field(default_factory=dict)  # JSON: who, digests, …

    def to_json(self) -> dict[str, Any]:
        shape = dataclasses.asdict(self.shape)
        return {"shape": shape, "a_inc": self.a_inc, "hello": dict(self.hello)}


def read_offer(head: Mapping[str, Any]) -> Offer:
    """Raises RowsRefused when it is none."""
    shape, a_inc, hello = (head.get(name) for name in ("shape", "a_inc", "hello"))
    if not isinstance(shape, dict) or not isinstance(hello, dict) or not _is_inc(a_inc):
        raise RowsRefused("not an offer of an attention process, or of another version")
    fields = {field.name: shape.get(field.name) for field in dataclasses.fields(SegmentShape)}
    numbers = [value for name, value in fields.items() if not name.endswith("_type")]
    types_known = fields["row_type"] in ROW_TYPES and fields["cell_type"] in CELL_TYPES
    if not types_known or not all(type(n) is int and 0 < n < 1 << 20 for n in numbers):
        raise RowsRefused(f"no shape of a segment: {shape}")
    assert isinstance(a_inc, int)
    return Offer(SegmentShape(**fields), a_inc, hello)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Answer:
    """What F replies."""

    reply: Mapping[str, Any]
    f_inc: int

    def to_json(self) -> dict[str, Any]:
        return {"reply": dict(self.reply), "f_inc": self.f_inc}


def read_answer(head: Mapping[str, Any]) -> Answer:
    """Raises RowsRefused with F's reason, or RowsUnusable."""
    if "refused" in head:
        raise RowsRefused(str(head["refused"]))
    reply, f_inc = head.get("reply"), head.get("f_inc")
    if not isinstance(reply, dict) or not _is_inc(f_inc):
        raise RowsUnusable("the worker's answer makes no sense")
    assert isinstance(f_inc, int)
    return Answer(reply, f_inc)


class Door:
    """Who may come in: as many segments as fit into `budget_bytes`."""

    def __init__(
        self, library: RowsLibrary, hidden: int, f_inc: int, welcome: Welcome, budget_bytes: int
    ) -> None:
        self._library = library
        self._hidden = hidden
        self._f_inc = f_inc
        self._welcome = welcome
        self._budget = budget_bytes
        self._lock = threading.Lock()

    @contextmanager
    def admit(self, offer: Offer) -> Iterator[Answer]:
        """Holds the segment's bytes while the block runs. Raises RowsRefused."""
        if offer.shape.hidden != self._hidden:
            raise RowsRefused(f"rows have {self._hidden} columns here, not {offer.shape.hidden}")
        try:
            size = segment_bytes(self._library, offer.shape)
        except RowsUnusable as error:
            raise RowsRefused(str(error)) from error
        self._take(size)
        try:
            yield Answer(self._welcome(dict(offer.hello)), self._f_inc)
        finally:
            self._take(-size)

    def _take(self, size: int) -> None:
        with self._lock:
            if size > self._budget:
                raise RowsRefused(f"a segment of {size} bytes, {self._budget} are left here")
            self._budget -= size


def _is_inc(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_INC
