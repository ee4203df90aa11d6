"""KV in a device's memory travels to peers through its mirror on the host."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from triptych.engine.device_kv import DeviceKv, Mirror, full_blocks
from triptych.engine.draft import Draft
from triptych.engine.rows import RowJob
from triptych.kv.layout import KvLayout
from triptych.models.model import Model
from triptych.models.taps import LayerTap
from triptych.testing.checkpoints import tiny_checkpoint
from triptych.testing.on_triton import (
    BLOCK_TOKENS,
    TINY,
    layout_of,
    sequence_of,
    triton_model,
    triton_runner,
)

NUM_BLOCKS = 6
PROMPT = list(range(3, 23))  # a block and four tokens
LAYOUT = KvLayout(2, 1, 4, BLOCK_TOKENS, "float32")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, device: torch.device) -> Model:
    path = tmp_path_factory.mktemp("tiny")
    return triton_model(tiny_checkpoint(path, "llama", **TINY), device)


def empty_mirror(layout: KvLayout) -> Mirror:
    blocks = np.zeros((NUM_BLOCKS, layout.block_bytes), dtype=np.uint8)
    return Mirror(blocks, np.ones(NUM_BLOCKS, dtype=np.uint64))


def device_kv(device: torch.device, mirror: Mirror) -> DeviceKv:
    return DeviceKv(LAYOUT, NUM_BLOCKS, device, mirror)


def number_of(kv: DeviceKv, block: int) -> float:
    """What all numbers of a block are."""
    (number,) = {float(of[block].unique().item()) for of in (kv.keys(0), kv.values(1))}
    return number


def write(mirror: Mirror, block: int, number: float) -> None:
    mirror.blocks.view(np.float32)[block] = number


def test_a_prompt_computed_on_one_device_goes_on_on_another(
    model: Model, device: torch.device
) -> None:
    """The prompt's KV takes the way of the links: from mirror to mirror, into other blocks."""
    layout = layout_of(model)
    theirs, ours = empty_mirror(layout), empty_mirror(layout)
    prefill = triton_runner(model, device, num_blocks=NUM_BLOCKS, mirror=theirs)
    decode = triton_runner(model, device, num_blocks=NUM_BLOCKS, mirror=ours)
    source, target = [4, 1], [0, 3]

    def copy(layer: int, _: Tensor) -> None:
        """As a home does that was told of a layer."""
        first, length = layout.layer_span(layer, layer + 1)
        for out, to in zip(source, target, strict=True):
            ours.blocks[to, first : first + length] = theirs.blocks[out, first : first + length]

    job = RowJob(sequence_of(PROMPT, source), 0, len(PROMPT))
    prefill.forward([job], [LayerTap([0, 1], copy)])
    for tokens in ([*PROMPT, 9], [*PROMPT, 9, 8]):
        end = len(tokens)
        here = decode.forward([RowJob(sequence_of(tokens, target), end - 1, end)])
        there = prefill.forward([RowJob(sequence_of(tokens, source), end - 1, end)])
        assert torch.equal(here, there)


def test_a_block_that_a_link_wrote_is_copied_up_once(device: torch.device) -> None:
    mirror = empty_mirror(LAYOUT)
    kv, job = device_kv(device, mirror), RowJob(sequence_of(PROMPT, [2, 5]), 16, 20)
    write(mirror, 2, 7.0)
    kv.bring([job])
    assert number_of(kv, 2) == 7.0
    write(mirror, 2, 8.0)
    kv.bring([job])
    assert number_of(kv, 2) == 7.0  # it is known already
    mirror.generations[2] += 1  # handed out anew
    kv.bring([job])
    assert number_of(kv, 2) == 8.0


def test_what_the_device_writes_first_is_not_copied_up(device: torch.device) -> None:
    mirror = empty_mirror(LAYOUT)
    kv = device_kv(device, mirror)
    write(mirror, 2, 7.0)
    write(mirror, 5, 7.0)
    kv.bring([RowJob(sequence_of(PROMPT, [2, 5]), 0, 20)])
    assert number_of(kv, 2) == number_of(kv, 5) == 0.0
    kv.bring([RowJob(sequence_of(PROMPT, [2, 5]), 17, 20)])
    assert number_of(kv, 2) == number_of(kv, 5) == 0.0


def test_a_block_that_is_begun_elsewhere_is_copied_up_before_it_goes_on(
    device: torch.device,
) -> None:
    mirror = empty_mirror(LAYOUT)
    kv = device_kv(device, mirror)
    write(mirror, 5, 7.0)
    kv.bring([RowJob(sequence_of(PROMPT, [2, 5]), 17, 18)])
    assert number_of(kv, 5) == 7.0


def test_a_block_comes_down_when_its_last_slot_is_written() -> None:
    sequence = sequence_of(list(range(40)), [3, 4, 5])
    for start, end, draft, closing, expected in (
        (0, 15, (), False, []),
        (0, 16, (), False, [3]),
        (15, 40, (), False, [3, 4]),
        (31, 32, (), True, [4]),
        (39, 40, (), True, [5]),  # the prompt's end closes it
        (39, 40, (), False, []),
        (30, 31, (1,), False, [4]),  # by the draft's node
    ):
        job = RowJob(sequence, start, end, Draft(draft))
        assert full_blocks([job], BLOCK_TOKENS, closing=closing) == expected, (start, end)


def test_moved_slots_that_fill_a_block_come_down(device: torch.device) -> None:
    mirror = empty_mirror(LAYOUT)
    kv = device_kv(device, mirror)
    write(mirror, 5, 7.0)
    kv.bring([RowJob(sequence_of(PROMPT, [2, 5]), 17, 18)])
    kv.move([2, 5], [(16, 15)])
    numbers = mirror.blocks.view(np.float32)[2].reshape(2, 2, BLOCK_TOKENS, 4)
    assert (numbers[:, :, 15] == 7.0).all() and (numbers[:, :, :15] == 0.0).all()
