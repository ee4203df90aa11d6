"""Who wants to know of a forward while it runs: that a layer's KV is final, what its rows are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True, slots=True)
class LayerTap:
    """`call(layer, hidden)` after each of `layers`, in ascending order.

    The layer's KV of all rows is then in the pool, later layers' is not. hidden [M, H] float32 is
    the residual stream of all rows of the forward; it changes when the call has returned.
    """

    layers: Sequence[int]
    call: Callable[[int, Tensor], None]


class StatesWanted(NamedTuple):
    """Of a prompt's last `rows` rows the residual stream behind each of `layers`, ascending."""

    layers: tuple[int, ...] = ()
    rows: int = 0


NO_STATES = StatesWanted()


def pick_layers(states: Tensor, layers: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """states [m, layers · H] → [m, wanted · H]; `wanted` are some of `layers`."""
    by_layer = states.view(len(states), len(layers), -1)
    return by_layer[:, [layers.index(layer) for layer in wanted]].flatten(1)


def runs_of(num_layers: int, taps: Sequence[LayerTap]) -> Iterator[tuple[int, int]]:
    """Layers [first, end) that run without a stop, one after the other, up to the last layer."""
    stops = {layer + 1 for tap in taps for layer in tap.layers if layer < num_layers}
    first = 0
    for end in sorted(stops | {num_layers}):
        yield first, end
        first = end


def tell(taps: Sequence[LayerTap], layer: int, hidden: Tensor) -> None:
    for tap in taps:
        if layer in tap.layers:
            tap.call(layer, hidden)
