"""Weights that are in memory already."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from triptych.errors import ModelError


class TensorSource:
    """A WeightSource over tensors by their checkpoint names."""

    def __init__(self, tensors: Mapping[str, Tensor], origin: str) -> None:
        self._tensors = dict(tensors)
        self.origin = origin

    def names(self) -> Collection[str]:
        return self._tensors

    def read(self, name: str) -> Tensor:
        try:
            return self._tensors[name]
        except KeyError:
            raise ModelError(f"{self.origin}: no tensor {name!r}") from None

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.read(name).shape)

    def read_entry(self, name: str, entry: int) -> Tensor:
        return self.read(name)[entry]
