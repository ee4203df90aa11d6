"""A trained head, loaded: rows of hidden states in, rows and logits over its vocabulary out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from triptych.drafters.heads.head_config import HeadConfig, layer_config
from triptych.engine.rows import RowJob
from triptych.engine.runner import Runner, make_runner
from triptych.engine.storage import KvStorage, plain_storage
from triptych.errors import ModelError
from triptych.kv.layout import KvLayout
from triptych.models.build import build_body
from triptych.models.model import Model
from triptych.models.safetensors_source import SafetensorsSource
from triptych.models.sources import CheckedSource, WeightSource
from triptych.models.storage import WeightDtype
from triptych.models.tensor_source import TensorSource
from triptych.models.weights import WeightReader
from triptych_kernels.cpu.norms import best_norm_into
from triptych_kernels.packer import LinearLike, Packer


@dataclass(frozen=True, slots=True)
class HeadPlace:
    """Where a head works: beside this target, over the blocks of its pool."""

    target: Model
    fingerprint: str  # of the target's weights
    num_blocks: int
    block_tokens: int
    packer: Packer
    weights: WeightDtype
    kv_dtype: str


class DraftHead:
    """Its KV lies in memory of its own, under the ids of the target's blocks."""

    def __init__(
        self,
        config: HeadConfig,
        source: WeightSource,
        place: HeadPlace,
        storage: KvStorage | None = None,
    ) -> None:
        """`storage`: of an older version of the head, which this one replaces. Raises ModelError
        when the weights are incomplete or the head is of another target.
        """
        self.config = config
        _check(config, place, source.origin)
        self.place = place
        self.storage = storage or _storage(config, place)
        self._target = place.target
        reader = WeightReader(CheckedSource(source), place.weights, 32, place.packer)
        size = config.hidden_size
        self._eps = place.target.config.rms_norm_eps
        self._norm = best_norm_into()
        self._tap_norms = [
            reader.tensor(f"tap_norms.{index}.weight", size) for index in range(len(config.taps))
        ]
        self._embed_norm = reader.tensor("embed_norm.weight", size)
        self._feature_norm = reader.tensor("feature_norm.weight", size)
        self._fuse = _linear(reader, "fuse", len(config.taps) * size, size)
        self._combine = _linear(reader, "combine", 2 * size, size)
        self.marks = (
            reader.tensor("marks", config.block - 1, size) if config.kind == "parallel" else None
        )
        self.token_ids = reader.tensor("draft_ids", config.draft_vocab_size).long()
        self.runner = _runner(config, place, reader, self.storage)
        # Rows of the target's matrix lie wherever its kernels want them; those that can be drafted
        # are wanted again and again.
        self._column_of = {token: column for column, token in enumerate(self.token_ids.tolist())}
        self._drafted = self.embedded(self.token_ids.tolist()).bfloat16()

    @classmethod
    def load(cls, folder: Path, place: HeadPlace) -> DraftHead:
        """Raises ModelError when the head is not there, damaged, or of another target."""
        return cls(HeadConfig.load(folder), SafetensorsSource(folder), place)

    def successor(self, version: int, tensors: Mapping[str, Tensor]) -> DraftHead:
        """The head with other weights, in checkpoint names. It goes on with the KV of this one:
        what older weights left there fades as the texts grow.
        """
        config = self.config.model_copy(update={"version": version})
        source = TensorSource(tensors, f"version {version} of the head")
        return DraftHead(config, source, self.place, self.storage)

    def known(self, taps: Tensor) -> Tensor:
        """taps [M, taps · H], the target's states → what stands for them [M, H]."""
        size, normed = self.config.hidden_size, torch.empty(taps.shape)
        for begin, weight in zip(range(0, taps.shape[1], size), self._tap_norms, strict=True):
            part = slice(begin, begin + size)
            self._norm(taps[:, part], weight, self._eps, normed[:, part])
        return self._fuse(normed)

    def embedded(self, token_ids: Sequence[int]) -> Tensor:
        """The target's embedding, normed, [M, H]."""
        rows = self._target.embedding.row(torch.tensor(token_ids))
        self._norm(rows, self._embed_norm, self._eps, rows)
        return rows

    def embedded_drafts(self, token_ids: Sequence[int]) -> Tensor:
        """`embedded` of tokens that the head drafted, bfloat16."""
        return self._drafted[[self._column_of[token] for token in token_ids]]

    def join(self, embedded: Tensor, feature: Tensor) -> Tensor:
        """A row's token and what is known before it, each [M, H] → the layers' input [M, H]."""
        size = self.config.hidden_size
        both = torch.empty(len(embedded), 2 * size)
        both[:, :size] = embedded
        self._norm(feature, self._feature_norm, self._eps, both[:, size:])
        return self._combine(both)

    def layers(self, jobs: Sequence[RowJob], rows: Tensor) -> Tensor:
        """rows [M, H], job after job → [M, H]; `rows` may change."""
        return self.runner.forward_hidden(jobs, rows)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [R, H] → float32 [R, Vd], valid until the next call."""
        return self.runner.logits(self.runner.final_norm(hidden))


def _check(config: HeadConfig, place: HeadPlace, origin: str) -> None:
    target = place.target.config
    if config.target != place.fingerprint:
        raise ModelError(
            f"{origin}: this head was trained on other weights (target {config.target}, here "
            f"{place.fingerprint}); train one with `triptych draft train` or remove it from "
            "speculation.drafters"
        )
    shapes = (config.hidden_size, config.target_vocab_size)
    if shapes != (target.hidden_size, target.vocab_size) or max(config.taps) >= target.num_layers:
        raise ModelError(f"{origin}: head.json does not fit the target's shapes")


def _linear(reader: WeightReader, name: str, inputs: int, outputs: int) -> LinearLike:
    return reader.linear([name], inputs, [outputs], bias=False)


def _storage(config: HeadConfig, place: HeadPlace) -> KvStorage:
    shape = layer_config(place.target.config, config)
    layout = KvLayout(
        num_layers=config.num_layers,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        block_tokens=place.block_tokens,
        dtype=place.kv_dtype,
    )
    return plain_storage(layout, place.num_blocks)


def _runner(
    config: HeadConfig, place: HeadPlace, reader: WeightReader, storage: KvStorage
) -> Runner:
    shape = layer_config(place.target.config, config)
    head = reader.linear(
        ["lm_head"], config.hidden_size, [config.draft_vocab_size], bias=False, head=True
    )
    model = build_body(shape, reader, None, place.target.embedding, head)
    return make_runner(model, storage)
