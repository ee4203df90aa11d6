"""A model on Triton's kernels, interpreted on the CPU or on a GPU, as `device: cuda` builds it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from triptych.engine.device_kv import DeviceKv, Mirror
from triptych.engine.sequence import Sequence as TokenSequence
from triptych.engine.triton_runner import TritonRunner
from triptych.kv.layout import KvLayout
from triptych.models.load import load_model
from triptych.models.model import Model
from triptych.models.storage import WeightDtype
from triptych_kernels.triton.packer import TritonPacker

BLOCK_TOKENS = 16
# Few heads and layers: the interpreter takes hundredths of a second for each head of a row.
TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def knows_fp8(device: torch.device) -> bool:
    """Whether products of e4m3 can be had there."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 9)


def triton_model(checkpoint: Path, device: torch.device, weights: WeightDtype = "float32") -> Model:
    operands = torch.float32 if weights == "float32" else torch.bfloat16
    return load_model(checkpoint, dtype=weights, packer=TritonPacker(device, operands))


def layout_of(model: Model, dtype: str = "float32") -> KvLayout:
    config = model.config
    return KvLayout(config.num_layers, config.num_kv_heads, config.head_dim, BLOCK_TOKENS, dtype)


def triton_runner(
    model: Model,
    device: torch.device,
    *,
    num_blocks: int = 16,
    kv: str = "float32",
    mirror: Mirror | None = None,
    graphs: bool = True,
) -> TritonRunner:
    pool = DeviceKv(layout_of(model, kv), num_blocks, device, mirror)
    return TritonRunner(model, pool, graphs=graphs)


def sequence_of(tokens: Sequence[int], blocks: Sequence[int], name: str = "a") -> TokenSequence:
    return TokenSequence(name, list(tokens), b"root", BLOCK_TOKENS, blocks=list(blocks))
