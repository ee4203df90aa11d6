"""From a path to a model that can run. Everything wrong with a checkpoint is a ModelError."""

from __future__ import annotations

from pathlib import Path

from triptych.models.build import build_model
from triptych.models.checkpoint import load_config, open_checkpoint
from triptych.models.model import Model
from triptych.models.seams import DistantExperts
from triptych.models.sources import CheckedSource, Progress
from triptych.models.storage import WeightDtype
from triptych.models.weights import WeightReader
from triptych_kernels.packer import Packer, ReferencePacker

__all__ = ["load_config", "load_model"]


def load_model(
    path: Path,
    *,
    dtype: WeightDtype,
    group: int = 32,
    packer: Packer | None = None,
    progress: Progress | None = None,
    distant: DistantExperts | None = None,
) -> Model:
    """Loads a Hugging Face directory (config.json and safetensors) or a .gguf file.

    Matrices are kept in `dtype`, packed by `packer` (none: the reference's). float32 and bfloat16:
    quantised weights are dequantised. fp8, of a packer that can: blocks of 128 × 128, the
    vocabulary's matrices in bfloat16. int8 and int4: they stay on the grids they are stored
    on where those fit, all others are quantised in groups of `group`; `Model.quantisation` tells.
    `progress(done, total)` counts tensors. With `distant` given, the units that run there are not
    read; routers and shared experts stay here. Raises ModelError naming the file, and the key or
    tensor, that is missing, damaged or not supported.
    """
    config, source = open_checkpoint(path)
    checked = CheckedSource(source, progress)
    reader = WeightReader(checked, dtype, group, packer or ReferencePacker())
    return build_model(config, reader, distant)
