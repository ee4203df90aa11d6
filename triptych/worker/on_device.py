"""What `device: cuda` asks of a worker's settings and of its host's memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from triptych.config import ClusterConfig
from triptych.engine.sampler import Sampler
from triptych.errors import ConfigError
from triptych.models.config import ModelConfig
from triptych.speculation_config import DrafterConfig, SwitchingConfig

log = logging.getLogger(__name__)

MAX_NODES = 64  # of a tree of drafts: bits of a mask
_ON_CPU_ALONE = ("eagle3", "parallel", "draft_model")


def check_settings(config: ClusterConfig, model: ModelConfig) -> None:
    """Raises ConfigError or ModelError for what does not run on a device, with the remedy."""
    # Here, for a machine without triton must not notice it.
    from triptych.models.triton_model import check_config

    check_config(model)
    if config.remote_experts:
        raise ConfigError(
            "experts.run: device: cuda computes all layers itself: set experts.run: local, or "
            "device: cpu"
        )
    if config.speculation.mode == "off":
        return
    if config.speculation.max_nodes > MAX_NODES:
        raise ConfigError(
            f"speculation.max_nodes: device: cuda verifies up to {MAX_NODES} tokens of a draft, "
            f"not {config.speculation.max_nodes}"
        )
    for kind in _kinds(config.speculation.drafters):
        if kind in _ON_CPU_ALONE:
            raise ConfigError(
                f"speculation.drafters: device: cuda does not run {kind!r} yet: take suffix, ngram "
                "or sparse, or set device: cpu"
            )


def _kinds(drafters: Sequence[DrafterConfig]) -> Iterator[str]:
    for drafter in drafters:
        if isinstance(drafter, SwitchingConfig):
            yield from _kinds(drafter.between)
        else:
            yield drafter.kind


def make_sampler(eos_token_ids: Sequence[int], *, on_triton: bool) -> Sampler:
    """Draws where the logits are."""
    if not on_triton:
        return Sampler(eos_token_ids)
    from triptych_kernels.triton.sampling import draw_tokens

    return Sampler(eos_token_ids, draw_tokens)


def pin(blocks: NDArray[np.uint8], device: torch.device) -> None:
    """Registers a region with the GPU, so that blocks are copied to and from it without a detour.
    Where that is refused (the right to lock memory is bounded), copies are slower and work.
    """
    if device.type != "cuda":
        return
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    refused = runtime.cudaHostRegister(blocks.ctypes.data, blocks.nbytes, 0)
    if int(refused) != 0:
        log.warning(
            "KV memory of the host cannot be pinned (CUDA error %d), copies are slower: raise the "
            "right to lock memory (ulimit -l)",
            int(refused),
        )
