"""Who wants to know of a forward while it runs: that a layer's KV is final, what its rows are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Tap(Protocol):
    """`call(layer, hidden)` after each of `layers`, in ascending order.

    The layer's KV of all rows is then in the pool, later layers' is not. hidden [M, H] float32 is
    the residual stream of all rows of the forward; it changes when the call has returned.
    """

    @property
    def layers(self) -> Sequence[int]: ...

    @property
    def call(self) -> Callable[[int, Tensor], None]: ...


@dataclass(frozen=True, slots=True)
class LayerTap:
    """One that runs anything."""

    layers: Sequence[int]
    call: Callable[[int, Tensor], None]


class StateTap:
    """One that copies the residual stream: what most want of it. Runners may do that on their own
    way, by `room`, instead of stopping for a call.
    """

    def __init__(self, layers: Sequence[int]) -> None:
        """At least one, ascending."""
        self.layers = layers
        self.states: Tensor | None = None  # bfloat16 [M, layers, H], when the forward is done

    def room(self, rows: int, hidden_size: int) -> Tensor:
        self.states = torch.empty(rows, len(self.layers), hidden_size, dtype=torch.bfloat16)
        return self.states

    def call(self, layer: int, hidden: Tensor) -> None:
        place = self.layers.index(layer)
        states = self.room(*hidden.shape) if place == 0 else self.states
        assert states is not None, "layers come in order"
        states[:, place] = hidden


class StatesWanted(NamedTuple):
    """Of a prompt's last `rows` rows the residual stream behind each of `layers`, ascending."""

    layers: tuple[int, ...] = ()
    rows: int = 0


NO_STATES = StatesWanted()


def pick_layers(states: Tensor, layers: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """states [m, layers · H] → [m, wanted · H]; `wanted` are some of `layers`."""
    if list(layers) == list(wanted):
        return states
    by_layer = states.view(len(states), len(layers), -1)
    return by_layer[:, [layers.index(layer) for layer in wanted]].flatten(1)


def runs_of(num_layers: int, taps: Sequence[Tap]) -> Iterator[tuple[int, int]]:
    """Layers [first, end) that run without a stop, one after the other, up to the last layer."""
    stops = {layer + 1 for tap in taps for layer in tap.layers if layer < num_layers}
    first = 0
    for end in sorted(stops | {num_layers}):
        yield first, end
        first = end


def tell(taps: Sequence[Tap], layer: int, hidden: Tensor) -> None:
    for tap in taps:
        if layer in tap.layers:
            tap.call(layer, hidden)
