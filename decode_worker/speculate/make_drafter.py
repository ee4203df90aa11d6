"""From the configuration of a drafter to the drafter."""

from __future__ import annotations

from triptych.drafters.drafter import Drafter
from triptych.drafters.guess import Guesser
from triptych.drafters.heads.drafter import HeadDrafter, HeadOptions
from triptych.drafters.heads.growers import AllAtOnce, LevelByLevel
from triptych.drafters.heads.head import DraftHead, HeadPlace
from triptych.drafters.heads.place import head_dir
from triptych.drafters.ngram import NgramDrafter
from triptych.drafters.suffix import SuffixDrafter, SuffixOptions
from triptych.engine.sampler import Sampler
from triptych.errors import ConfigError
from triptych.speculation_config import (
    DrafterConfig,
    HeadDrafterConfig,
    NgramConfig,
    SuffixConfig,
)
from triptych.worker.boot import EngineParts


def make_drafter(config: DrafterConfig, parts: EngineParts, sampler: Sampler) -> Drafter:
    """Raises ConfigError or ModelError, with the remedy."""
    match config:
        case NgramConfig():
            return NgramDrafter(config.min_n, config.max_n)
        case SuffixConfig():
            return SuffixDrafter(
                SuffixOptions(depth=config.depth, min_prob=config.min_prob, tree=config.trees)
            )
        case HeadDrafterConfig():
            return _head_drafter(config, parts, sampler)


def _head_drafter(config: HeadDrafterConfig, parts: EngineParts, sampler: Sampler) -> Drafter:
    place = HeadPlace(
        target=parts.model,
        fingerprint=parts.fingerprint,
        num_blocks=parts.pool.num_blocks,
        block_tokens=parts.layout.block_tokens,
        packer=parts.backend.packer,
        weights=parts.backend.weights,
        kv_dtype=parts.backend.kv,
    )
    folder = config.path or head_dir(parts.fingerprint, config.kind)
    head = DraftHead(folder, place)
    if head.config.kind != config.kind:
        raise ConfigError(
            f"speculation.drafters: {folder} holds a head of kind {head.config.kind}, "
            f"not {config.kind}"
        )
    guesser = Guesser(sampler, parts.model.config.vocab_size, head.token_ids)
    grower = LevelByLevel(head, guesser) if config.kind == "eagle3" else AllAtOnce(head, guesser)
    options = HeadOptions(config.width, config.min_prob, config.window)
    generations, size = parts.pool.generations, parts.layout.block_tokens
    return HeadDrafter(config.kind, head, grower, options, generations, size)
