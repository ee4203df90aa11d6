"""From the configuration to drafters, in whatever process they run."""

from __future__ import annotations

from pathlib import Path

import xxhash

from triptych.drafters.drafter import Drafter
from triptych.drafters.ngram import NgramDrafter
from triptych.drafters.suffix import SuffixDrafter, SuffixOptions
from triptych.fingerprint import weight_fingerprint
from triptych.speculation_config import LocalDrafterConfig, NgramConfig


def make_drafter(config: LocalDrafterConfig) -> Drafter:
    if isinstance(config, NgramConfig):
        return NgramDrafter(config.min_n, config.max_n)
    return SuffixDrafter(
        SuffixOptions(depth=config.depth, min_prob=config.min_prob, tree=config.trees)
    )


def target_identity(served_name: str, model_path: Path) -> str:
    """What a remote drafter must have in common with its decode worker: the model's name and a
    fingerprint of the checkpoint's weights and JSON files, the tokenizer's among them.
    """
    return f"{served_name}:{weight_fingerprint(model_path)}"


def config_hash(config: LocalDrafterConfig) -> str:
    return xxhash.xxh3_64(config.model_dump_json().encode()).hexdigest()
