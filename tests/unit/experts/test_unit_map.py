"""Units as numbers and bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.experts.of_model import unit_map
from triptych.experts.unit_map import Compact, UnitMap
from triptych.experts.units import Unit
from triptych.models.load import load_config
from triptych.testing.checkpoints import tiny_checkpoint, tiny_llama
from triptych.testing.tiny_mixture import tiny_mixture

# Some layers of a mixture are dense and have no unit that may leave.
maps = st.builds(
    lambda width, layers: UnitMap(tuple(width if here else 0 for here in [*layers, True])),
    st.integers(1, 40),
    st.lists(st.booleans(), max_size=9),
)


@given(maps)
def test_numbers_and_units_tell_each_other(units: UnitMap) -> None:
    for unit in units:
        assert unit in units and units.unit(units.number(unit)) == unit
    assert len(set(map(units.number, units))) == sum(units.per_layer)


@given(maps, st.data())
def test_what_is_packed_is_what_is_unpacked(units: UnitMap, data: st.DataObject) -> None:
    some = data.draw(st.sets(st.sampled_from(list(units))))
    mask = units.unpack(units.pack(some))
    assert mask.shape == units.shape
    assert {Unit(*place) for place in np.argwhere(mask).tolist()} == some
    # A bit per unit, as the contract says.
    packed = units.pack(some)
    for unit in units:
        number = units.number(unit)
        assert bool(packed[number // 8] >> number % 8 & 1) == (unit in some)


def test_units_that_the_model_does_not_have_are_not_in_it() -> None:
    units = UnitMap((4, 0, 4))
    for unit in (Unit(1, 0), Unit(0, 4), Unit(3, 0), Unit(-1, 0), Unit(0, -1), units.unit(4)):
        assert unit not in units


def test_bits_of_another_model_are_refused() -> None:
    units = UnitMap((4, 0, 4))
    with pytest.raises(ValueError, match="3 bytes for 12 units"):
        units.unpack(bytes(3))


@given(maps, st.data())
def test_layers_without_units_are_left_out_and_come_back(
    units: UnitMap, data: st.DataObject
) -> None:
    compact = Compact(units)
    some = data.draw(st.sets(st.sampled_from(list(units))))
    inward = compact.inward(units.unpack(units.pack(some)))
    assert set(inward) <= set(compact.catalog.units)
    assert {units.unit(compact.number(unit)) for unit in inward} == some
    counts = np.zeros(units.shape, np.uint64)
    for unit in units:
        counts[unit] = units.number(unit) + 1
    table = compact.table(counts)
    for unit in compact.catalog.units:
        assert table[unit] == compact.number(unit) + 1


def test_of_a_mixture_experts_may_leave_of_a_dense_model_every_ffn(tmp_path: Path) -> None:
    mixture, dense = tiny_mixture(tmp_path / "mixture"), tiny_llama(tmp_path / "dense")
    assert unit_map(load_config(mixture)) == UnitMap((8, 0, 8))
    assert unit_map(load_config(dense)) == UnitMap((1, 1, 1))
    odd = tiny_checkpoint(tmp_path / "odd", "deepseek_v3", first_k_dense_replace=3)
    assert unit_map(load_config(odd)) == UnitMap((1, 1, 1)), "no layer of it is a mixture"
