"""Units that a home computes by itself."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from triptych.errors import ModelError
from triptych.experts.home import HomeUnits
from triptych.experts.units import Unit


@dataclass
class Doubling:
    """A unit that is `nbytes` large."""

    nbytes: int

    def __call__(self, rows: Tensor) -> Tensor:
        return 2 * rows


@dataclass
class Checkpoint:
    nbytes: int = 10
    read: list[Unit] = field(default_factory=list)

    def load(self, unit: Unit) -> Doubling:
        self.read.append(unit)
        return Doubling(self.nbytes)


ROWS = torch.ones(2, 3)


def compute(home: HomeUnits, *experts: int) -> None:
    for expert in experts:
        assert torch.equal(home.compute(Unit(0, expert), ROWS), 2 * ROWS)


def test_a_unit_is_read_once_and_kept() -> None:
    checkpoint = Checkpoint()
    compute(HomeUnits(checkpoint.load, 100), 1, 1, 2, 1)
    assert checkpoint.read == [Unit(0, 1), Unit(0, 2)]


def test_those_used_last_are_kept_within_the_memory() -> None:
    checkpoint = Checkpoint()
    home = HomeUnits(checkpoint.load, 30)
    compute(home, 1, 2, 3, 1, 4)  # 2 has to go
    checkpoint.read.clear()
    compute(home, 1, 3, 4)
    assert checkpoint.read == []
    compute(home, 2, 3, 4)  # 1 goes
    assert checkpoint.read == [Unit(0, 2)]


def test_one_unit_is_kept_however_large_it_is() -> None:
    checkpoint = Checkpoint(nbytes=100)
    home = HomeUnits(checkpoint.load, 30)
    compute(home, 1, 1, 2, 2, 1)
    assert checkpoint.read == [Unit(0, 1), Unit(0, 2), Unit(0, 1)]


def test_what_was_released_is_read_again_when_it_is_wanted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    checkpoint = Checkpoint()
    home = HomeUnits(checkpoint.load, 20)
    home.release()  # there is nothing, and nothing to tell
    assert not caplog.messages
    compute(home, 1, 2)
    home.release()
    compute(home, 1, 2, 1, 2)  # both fit again
    assert checkpoint.read == [Unit(0, 1), Unit(0, 2)] * 2
    assert [message.split(":")[0][:14] for message in caplog.messages] == [
        "no FFN worker ",
        "FFN workers ho",
        "no FFN worker ",
    ]


def test_a_checkpoint_that_is_gone_is_an_error_and_spoils_nothing() -> None:
    checkpoint = Checkpoint()

    def load(unit: Unit) -> Doubling:
        if unit.expert == 9:
            raise ModelError("model.safetensors: no such file")
        return checkpoint.load(unit)

    home = HomeUnits(load, 30)
    compute(home, 1)
    with pytest.raises(ModelError, match="no such file"):
        compute(home, 9)
    compute(home, 1)
    assert checkpoint.read == [Unit(0, 1)]
