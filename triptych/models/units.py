"""Feed-forward units, one by one: the FFN of a dense layer, or one expert of a mixture.

Whoever holds some units of a model reads these and nothing else: of a tensor that stacks all
experts, only the slice of the one that is asked for.
"""

from __future__ import annotations

from pathlib import Path

from triptych.errors import ModelError
from triptych.models.checkpoint import open_checkpoint
from triptych.models.config import ModelConfig
from triptych.models.layers import DenseFfn
from triptych.models.sources import CheckedSource
from triptych.models.storage import WeightDtype
from triptych.models.unit_names import DENSE, UnitNames, mixture_names
from triptych.models.weights import Part, WeightReader
from triptych_kernels.packer import Packer


class UnitReader:
    """An open checkpoint, of which units can be read in any order, each as often as one likes."""

    def __init__(self, config: ModelConfig, reader: WeightReader) -> None:
        self.config = config
        self._reader = reader

    def read(self, layer: int, expert: int) -> DenseFfn:
        """See `read_unit`."""
        return read_unit(self._reader, self.config, layer, expert)


def open_units(path: Path, *, dtype: WeightDtype, group: int, packer: Packer) -> UnitReader:
    """The units of a Hugging Face directory or a .gguf file, kept as `load_model` keeps them.

    Builds no model and reads no weights yet. Raises ModelError.
    """
    config, source = open_checkpoint(path)
    return UnitReader(config, WeightReader(CheckedSource(source), dtype, group, packer))


def num_units(config: ModelConfig, layer: int) -> int:
    """Experts of a mixture; 1 for a dense layer."""
    moe = config.moe
    return 1 if moe is None or not moe.layers[layer] else moe.routing.num_experts


def may_leave(config: ModelConfig, layer: int) -> bool:
    """Whether the layer's units may run elsewhere: dense layers beside mixtures stay at home."""
    return config.moe is None or config.moe.layers[layer]


def read_unit(reader: WeightReader, config: ModelConfig, layer: int, expert: int) -> DenseFfn:
    """The FFN of a dense layer is its expert 0. Raises ModelError naming the tensor, or the unit
    that the model does not have.
    """
    if not 0 <= layer < config.num_layers or not 0 <= expert < num_units(config, layer):
        raise ModelError(f"{reader.origin}: layer {layer} has no expert {expert}")
    if config.moe is None or not config.moe.layers[layer]:
        return _read(reader, config, layer, DENSE, config.intermediate_size, config.ffn_bias)
    moe, names = config.moe, mixture_names(config).experts
    stack = (expert, moe.routing.num_experts)
    return _read(reader, config, layer, names, moe.expert_size, moe.expert_bias, stack)


def read_shared(reader: WeightReader, config: ModelConfig, layer: int) -> DenseFfn | None:
    """The expert of a mixture that every row goes to; none where the model has none."""
    assert config.moe is not None and config.moe.layers[layer], "a layer that is a mixture"
    names = mixture_names(config).shared
    if names is None or not config.moe.shared_size:
        return None
    return _read(reader, config, layer, names, config.moe.shared_size, config.ffn_bias)


def unit_prefixes(config: ModelConfig, layer: int) -> tuple[str, ...]:
    """What the names of all tensors of a layer's units begin with."""
    mixture = config.moe is not None and config.moe.layers[layer]
    names = mixture_names(config).experts if mixture else DENSE
    return tuple(f"model.layers.{layer}.{prefix}" for prefix in names.prefixes)


def _read(
    reader: WeightReader,
    config: ModelConfig,
    layer: int,
    names: UnitNames,
    inner: int,
    bias: bool,
    stack: tuple[int, int] = (0, 1),
) -> DenseFfn:
    """`stack`: which expert of how many."""

    def part(name: str, suffix: str, rows: int, interleaved: bool) -> Part:
        return Part(
            f"model.layers.{layer}.{name}{suffix}".format(expert=stack[0]),
            rows,
            stack=stack if names.stacked else None,
            transposed=names.transposed,
            interleaved=interleaved,
        )

    def gate_up(suffix: str) -> list[Part]:
        rows = 2 * inner // len(names.gate_up)
        return [part(name, suffix, rows, names.interleaved) for name in names.gate_up]

    def down(suffix: str) -> list[Part]:
        return [part(names.down, suffix, config.hidden_size, False)]

    gate_up_bias = gate_up(names.bias) if bias else ()
    down_bias = down(names.bias) if bias else ()
    return DenseFfn(
        reader.joined(gate_up(names.weight), config.hidden_size, gate_up_bias, gated=True),
        reader.joined(down(names.weight), inner, down_bias),
        config.activation,
    )
