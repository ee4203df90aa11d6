"""Units that come to an FFN worker and leave it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ffn_worker.hosting import Hosting
from triptych.experts.units import Unit


def ffn(nbytes: int) -> Any:
    return SimpleNamespace(nbytes=nbytes)


@pytest.fixture
def hosting() -> Hosting:
    """What a layer is made into is its experts' numbers."""
    make: Any = sorted
    return Hosting(np.zeros((3, 4), np.uint8), make)


def test_units_are_run_by_layer_and_count_their_bytes(hosting: Hosting) -> None:
    hosting.add([(Unit(0, 2), ffn(10)), (Unit(2, 1), ffn(20)), (Unit(0, 0), ffn(5))])
    assert hosting.of_layer(0) == [0, 2] and hosting.of_layer(2) == [1]
    assert hosting.nbytes == 35
    assert np.argwhere(hosting.mask).tolist() == [[0, 0], [0, 2], [2, 1]]


def test_what_is_dropped_is_gone_and_gives_its_bytes_back(hosting: Hosting) -> None:
    hosting.add([(Unit(0, 2), ffn(10)), (Unit(0, 0), ffn(5)), (Unit(2, 1), ffn(20))])
    hosting.drop([Unit(0, 2), Unit(2, 1), Unit(1, 1)])  # the last one was never here
    assert hosting.of_layer(0) == [0] and hosting.nbytes == 5
    with pytest.raises(KeyError):
        hosting.of_layer(2)
    assert np.argwhere(hosting.mask).tolist() == [[0, 0]]
    hosting.add([(Unit(2, 1), ffn(20))])
    assert hosting.of_layer(2) == [1] and hosting.nbytes == 25


def test_the_mask_stays_where_the_inbox_reads_it(hosting: Hosting) -> None:
    mask = hosting.mask
    hosting.add([(Unit(0, 2), ffn(10))])
    assert mask is hosting.mask and mask[0, 2]
