"""Draft heads with random weights, and drafters that run them over a pool."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from triptych.drafters.guess import Guesser
from triptych.drafters.heads.drafter import HeadDrafter, HeadOptions
from triptych.drafters.heads.head import DraftHead, HeadPlace
from triptych.drafters.heads.head_config import HeadConfig, HeadKind, default_taps
from triptych.engine.backend import choose_backend
from triptych.engine.sampler import Sampler
from triptych.kv.pool import BlockPool
from triptych.models.model import Model
from triptych.models.storage import WeightDtype
from triptych.training.head_module import HeadModule
from triptych_kernels.packer import ReferencePacker

FINGERPRINT = "a tiny model"


def random_head(
    folder: Path, model: Model, kind: HeadKind, *, num_layers: int = 1, seed: int = 0
) -> HeadModule:
    """Writes a head that drafts noise, but always the same noise."""
    shape = model.config
    config = HeadConfig(
        kind=kind,
        target=FINGERPRINT,
        target_vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        taps=default_taps(shape.num_layers),
        num_layers=num_layers,
        draft_vocab_size=shape.vocab_size - 20,
        block=6,
    )
    torch.manual_seed(seed)
    module = HeadModule(config, shape)
    tensors = {name: value.detach().contiguous() for name, value in module.state_dict().items()}
    tensors["draft_ids"] = torch.arange(20, shape.vocab_size, dtype=torch.float32)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    config.save(folder)
    return module


def head_drafter(
    folder: Path,
    model: Model,
    pool: BlockPool,
    *,
    block_tokens: int = 16,
    options: HeadOptions | None = None,
) -> HeadDrafter:
    """In bfloat16 on the native kernels if the model is, else in float32 on plain torch."""
    weights: WeightDtype = "bfloat16" if model.is_native else "float32"
    place = HeadPlace(
        target=model,
        fingerprint=FINGERPRINT,
        num_blocks=pool.num_blocks,
        block_tokens=block_tokens,
        packer=choose_backend(weights, weights).packer if model.is_native else ReferencePacker(),
        weights=weights,
        kv_dtype=weights,
    )
    head = DraftHead.load(folder, place)
    guesser = Guesser(Sampler(()), model.config.vocab_size, head.token_ids)
    options = options or HeadOptions()
    return HeadDrafter(head, guesser, options, pool.generations, block_tokens)
