"""From a dense checkpoint to a mixture of experts in a Hugging Face directory.

One pass over the layers: each is read once, tried on a sample text, written, and forgotten.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import linear

from triptych.errors import ConfigError, ModelError
from triptych.models.checkpoint import open_checkpoint
from triptych.models.config import ModelConfig
from triptych.models.gguf_source import ROPE_FACTORS
from triptych.models.safetensors_writer import SafetensorsWriter
from triptych.models.sources import CheckedSource, Progress
from triptych.models.upcycle.files import write_files
from triptych.models.upcycle.layer_maker import MadeLayer, expert_size, make_experts, make_layer
from triptych.models.upcycle.layout import (
    EMBEDDING,
    HEAD,
    NORM,
    MoeFormat,
    attention_shapes,
    choose_format,
    mixture_shapes,
)
from triptych.models.upcycle.moe_config import moe_config, whole_rope
from triptych.models.upcycle.probe import Ffn, Probe
from triptych.models.upcycle.recipe import DTYPES, Recipe
from triptych.models.upcycle.sample_text import sample_ids
from triptych.whole_directory import check_target, whole_directory

_SHARD_BYTES = 5 * 10**9


@dataclass(frozen=True, slots=True)
class Report:
    """What was written, and how it did in a trial on a sample text."""

    architecture: str
    weight_bytes: int
    # Rows of the busiest expert over the mean of all, mean over layers.
    busiest: float
    # split: |difference|² over |dense output|² of FFNs that read what the dense model's read, mean
    # over layers; 0 where they are equal but for rounding.
    ffn_error: float


def upcycle(
    source: Path,
    out: Path,
    recipe: Recipe,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    shard_bytes: int = _SHARD_BYTES,
) -> Report:
    """Writes `out`; `source` is a dense Hugging Face directory or .gguf file.

    Mixtral's format for Llama and Mistral, Qwen3-MoE's for Qwen3. `out` appears whole or not at
    all. `progress` counts bytes. The same source and recipe give the same files, up to rounding in
    routers on another machine. Raises ModelError for the source, ConfigError for the recipe and for
    `out`.
    """
    check_target(out, overwrite=overwrite)
    if out.resolve() in (source.resolve(), *source.resolve().parents):
        raise ConfigError(f"{out}: holds the dense model; choose another name")
    job = _Job(source, recipe)
    try:
        with whole_directory(out, overwrite=overwrite) as folder:
            job.check_room(folder)
            write_files(source, folder, job.config_values(), recipe)
            with SafetensorsWriter(
                folder, job.shapes, DTYPES[recipe.dtype], shard_bytes=shard_bytes, progress=progress
            ) as writer:
                return job.write_weights(writer)
    except OSError as error:
        raise ModelError(f"{out}: cannot be written: {error}") from error


class _Job:
    """One source and one recipe."""

    def __init__(self, source: Path, recipe: Recipe) -> None:
        config, tensors = open_checkpoint(source)
        self._spelled: MoeFormat = choose_format(config, str(source))
        self._recipe = recipe
        self._source = CheckedSource(tensors)
        if config.tie_word_embeddings:
            self._source.skip("lm_head.")  # some writers store the shared weight twice
        if self._source.has(ROPE_FACTORS):
            factors = self._source.read(ROPE_FACTORS, (config.head_dim // 2,))
            rope = whole_rope(config.ropes[0], factors, config, str(source))
            config = replace(config, ropes=(rope,) * config.num_layers)
        self._config: ModelConfig = config
        if recipe.how == "split" and recipe.num_experts > config.intermediate_size:
            raise ConfigError(
                f"experts: the FFN has {config.intermediate_size} neurons for {recipe.num_experts}"
            )
        self._sample = sample_ids(source, config.vocab_size)
        self._size = expert_size(recipe, config.intermediate_size)
        self.shapes = mixture_shapes(config, self._spelled, recipe.num_experts, self._size)

    def config_values(self) -> dict[str, object]:
        return moe_config(self._config, self._spelled, self._recipe, self._size)

    def check_room(self, folder: Path) -> None:
        """Raises ModelError when the weights do not fit on the disk."""
        elements = sum(torch.Size(shape).numel() for shape in self.shapes.values())
        needed = elements * DTYPES[self._recipe.dtype].itemsize
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise ModelError(
                f"{folder.parent}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free"
            )

    def write_weights(self, writer: SafetensorsWriter) -> Report:
        config = self._config
        embedding = self._source.read(EMBEDDING, self.shapes[EMBEDDING])
        probe = Probe(config, embedding[self._sample].float())
        writer.write(EMBEDDING, embedding)
        del embedding
        made = []
        for layer in range(config.num_layers):
            layer_made = self._write_layer(layer, probe, writer)
            made.append((float(layer_made.shares.max()), layer_made.error))
        for name in (NORM, HEAD):
            if name in self.shapes:
                writer.write(name, self._source.read(name, self.shapes[name]))
        writer.finish()
        self._source.finish()
        busiest, error = torch.tensor(made).mean(0).tolist()
        fair = self._recipe.top_k / self._recipe.num_experts
        return Report(self._spelled.architecture, writer.total_bytes, busiest / fair, error)

    def _write_layer(self, layer: int, probe: Probe, writer: SafetensorsWriter) -> MadeLayer:
        spelled, prefix = self._spelled, f"model.layers.{layer}"
        weights = {
            name: self._source.read(name, shape)
            for name, shape in attention_shapes(self._config, layer).items()
        }
        for name, weight in weights.items():
            writer.write(name, weight)
        rows = probe.attend(layer, weights)
        del weights
        ffn = self._read_ffn(prefix)
        inner = ffn.inner_rows(rows, self._config.activation)
        probe.feed(linear(inner, ffn.down))
        made = make_layer(self._recipe, layer, ffn, rows, inner)
        writer.write(f"{prefix}.{spelled.router}", made.fit.router)
        for expert, own in enumerate(make_experts(self._recipe, layer, made)):
            writer.write(f"{prefix}.{spelled.gate.format(expert)}", own.gate)
            writer.write(f"{prefix}.{spelled.up.format(expert)}", own.up)
            writer.write(f"{prefix}.{spelled.down.format(expert)}", own.down)
        return made

    def _read_ffn(self, prefix: str) -> Ffn:
        hidden, inner = self._config.hidden_size, self._config.intermediate_size

        def read(name: str, *shape: int) -> Tensor:
            return self._source.read(f"{prefix}.mlp.{name}_proj.weight", shape).float()

        return Ffn(
            read("gate", inner, hidden), read("up", inner, hidden), read("down", hidden, inner)
        )
