"""From the configuration of a drafter to the drafter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from triptych.drafters.draft_model import DraftModelDrafter, DraftModelOptions
from triptych.drafters.drafter import Drafter
from triptych.drafters.guess import Guesser
from triptych.drafters.heads.drafter import HeadDrafter, HeadOptions
from triptych.drafters.heads.head import DraftHead, HeadPlace
from triptych.drafters.heads.place import head_dir
from triptych.drafters.make import make_drafter
from triptych.drafters.sparse_self import SparseDrafter, SparseOptions
from triptych.drafters.switching import SwitchingDrafter
from triptych.drafters.tree_growth import Growth
from triptych.engine.backend import choose_backend
from triptych.engine.runner import make_runner
from triptych.engine.sampler import Sampler
from triptych.engine.storage import plain_storage
from triptych.errors import ConfigError
from triptych.hub import resolve_model
from triptych.models.load import load_model
from triptych.speculation_config import (
    DrafterConfig,
    DraftModelConfig,
    HeadDrafterConfig,
    RemoteConfig,
    SparseConfig,
    SwitchingConfig,
)
from triptych.tokenizer import Tokenizer
from triptych.training.checkpoint import load_head_tensors
from triptych.training.idle_thread import IdleTeacher
from triptych.training.learning_drafter import LearningHead
from triptych.training.online import DraftTrainer
from triptych.worker.boot import EngineParts, kv_layout

MakeRemote = Callable[[RemoteConfig], Drafter]


class DrafterMaker:
    """Drafters of a decode worker."""

    def __init__(
        self, parts: EngineParts, sampler: Sampler, remote: MakeRemote | None = None
    ) -> None:
        self._parts = parts
        self._sampler = sampler
        self._remote = remote
        self.teachers: list[IdleTeacher] = []  # of drafters that learn; not started

    def __call__(self, config: DrafterConfig) -> Drafter:
        """Raises ConfigError or ModelError, with the remedy."""
        match config:
            case HeadDrafterConfig():
                return self._head(config)
            case DraftModelConfig():
                return _draft_model(config, self._parts, self._sampler)
            case SparseConfig():
                return _sparse(config, self._parts, self._sampler)
            case SwitchingConfig():
                return SwitchingDrafter([self(part) for part in config.between])
            case RemoteConfig():
                if self._remote is None:
                    raise ConfigError(
                        "speculation.drafters: a remote drafter needs a decode worker's process"
                    )
                return self._remote(config)
            case _:
                return make_drafter(config)

    def _head(self, config: HeadDrafterConfig) -> Drafter:
        parts = self._parts
        folder = config.path or head_dir(parts.fingerprint, config.kind)
        drafter = _head_drafter(config, folder, parts, self._sampler)
        if not config.learn:
            return drafter
        trainer = DraftTrainer(drafter.head, load_head_tensors(folder))
        learning = LearningHead(drafter, trainer.offer, trainer.rolled_back)
        scheduler = parts.scheduler
        self.teachers.append(
            IdleTeacher(
                trainer, learning, lambda: scheduler.num_running + scheduler.num_waiting > 0
            )
        )
        return learning


def _sparse(config: SparseConfig, parts: EngineParts, sampler: Sampler) -> SparseDrafter:
    if parts.model.config.chooses:
        raise ConfigError(
            "speculation.drafters: sparse: this model chooses by itself what it reads; take suffix "
            "or ngram"
        )
    options = SparseOptions(config.ratio, config.min_tokens)
    return SparseDrafter(parts.runner, sampler, options)


def _head_drafter(
    config: HeadDrafterConfig, folder: Path, parts: EngineParts, sampler: Sampler
) -> HeadDrafter:
    backend = parts.backend
    dtype: str = backend.weights if config.dtype == "auto" else config.dtype
    if config.dtype == "auto" and backend.kernels != "torch" and backend.weights == "bfloat16":
        dtype = "int8"  # a draft may be a little worse if it is made in half the time
    backend = choose_backend(dtype, backend.kv, backend.group)
    place = HeadPlace(
        target=parts.model,
        fingerprint=parts.fingerprint,
        num_blocks=parts.pool.num_blocks,
        block_tokens=parts.layout.block_tokens,
        packer=backend.packer,
        weights=backend.weights,
        kv_dtype=backend.kv,
    )
    head = DraftHead.load(folder, place)
    if head.config.kind != config.kind:
        raise ConfigError(
            f"speculation.drafters: {folder} holds a head of kind {head.config.kind}, "
            f"not {config.kind}"
        )
    guesser = Guesser(sampler, parts.model.config.vocab_size, head.token_ids)
    options = HeadOptions(_growth(config), config.window)
    generations, size = parts.pool.generations, parts.layout.block_tokens
    return HeadDrafter(head, guesser, options, generations, size)


def _growth(config: HeadDrafterConfig | DraftModelConfig) -> Growth:
    return Growth(config.width, config.expanded, config.min_prob, config.min_level)


_PROBE = "The quick brown fox; \u00fcber 12345 \u4f60\u597d\n\tdef f(x): return x\n"


def _draft_model(config: DraftModelConfig, parts: EngineParts, sampler: Sampler) -> Drafter:
    path, target = resolve_model(config.model), parts.model.config
    ours, theirs = Tokenizer.load(parts.model_path), Tokenizer.load(path)
    dtype = parts.backend.weights if config.dtype == "auto" else config.dtype
    backend = choose_backend(dtype, parts.backend.kv, parts.backend.group)
    model = load_model(path, dtype=backend.weights, group=backend.group, packer=backend.packer)
    if model.config.delta is not None:
        raise ConfigError(
            f"speculation.drafters: {config.model} keeps states, which cannot go back: take a "
            "draft model without linear attention"
        )
    same_size = model.config.vocab_size == target.vocab_size
    if not same_size or ours.encode(_PROBE) != theirs.encode(_PROBE):
        raise ConfigError(
            f"speculation.drafters: {config.model} has another vocabulary than the target; a draft "
            "model must share it"
        )
    size = parts.layout.block_tokens
    storage = plain_storage(kv_layout(model.config, size, backend.kv), parts.pool.num_blocks)
    guesser = Guesser(sampler, target.vocab_size)
    options = DraftModelOptions(_growth(config))
    generations = parts.pool.generations
    return DraftModelDrafter(make_runner(model, storage), guesser, options, generations, size)
