"""How families call the tensors of their feed-forward parts, and how those lie in the files.

A new family of mixtures is one entry here. All names are those under `model.layers.{layer}.`.
"""

from __future__ import annotations

from dataclasses import dataclass

from triptych.errors import ModelError
from triptych.models.config import ModelConfig


@dataclass(frozen=True, slots=True)
class UnitNames:
    """The tensors of one unit. In a name, `{expert}` stands for the unit's number."""

    gate_up: tuple[str, ...]  # of gate and of up, or one name of both: gate above up
    down: str
    weight: str = ".weight"  # behind a name: its matrix
    bias: str = ".bias"
    stacked: bool = False  # a tensor holds all experts: [E, …]
    transposed: bool = False  # matrices lie as [inputs, outputs]
    interleaved: bool = False  # one name of both: a row of gate, one of up, in turn

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What the names of all experts' tensors begin with."""
        return tuple(name.partition("{expert}")[0] for name in (*self.gate_up, self.down))


@dataclass(frozen=True, slots=True)
class MixtureNames:
    """What a layer that is a mixture consists of. Which of it is there, MoeConfig tells."""

    router: str  # .weight [E, H], .bias [E]
    experts: UnitNames
    shared: UnitNames | None = None
    shared_gate: str = ""  # .weight [1, H]
    correction: str = ""  # the whole name of a tensor [E]


DENSE = UnitNames(("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj")


def _projections(block: str) -> UnitNames:
    return UnitNames((f"{block}.gate_proj", f"{block}.up_proj"), f"{block}.down_proj")


_EXPERT = "block_sparse_moe.experts.{expert}"
_GRANITE = MixtureNames(
    router="block_sparse_moe.router.layer",
    experts=UnitNames(
        ("block_sparse_moe.input_linear",), "block_sparse_moe.output_linear", stacked=True
    ),
    shared=UnitNames(("shared_mlp.input_linear",), "shared_mlp.output_linear"),
)
_PER_EXPERT = MixtureNames(router="mlp.gate", experts=_projections("mlp.experts.{expert}"))
_QWEN_SHARED = MixtureNames(
    router="mlp.gate",
    experts=_projections("mlp.experts.{expert}"),
    shared=_projections("mlp.shared_expert"),
    shared_gate="mlp.shared_expert_gate",
)
_DEEPSEEK = MixtureNames(
    router="mlp.gate",
    experts=_projections("mlp.experts.{expert}"),
    shared=_projections("mlp.shared_experts"),
    correction="mlp.gate.e_score_correction_bias",
)

_MIXTURES: dict[str, MixtureNames] = {
    "mixtral": MixtureNames(
        router="block_sparse_moe.gate",
        experts=UnitNames((f"{_EXPERT}.w1", f"{_EXPERT}.w3"), f"{_EXPERT}.w2"),
    ),
    "qwen2_moe": _QWEN_SHARED,
    "qwen3_next": _QWEN_SHARED,
    "qwen3_moe": _PER_EXPERT,
    "olmoe": _PER_EXPERT,
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "deepseek_v32": _DEEPSEEK,
    "gpt_oss": MixtureNames(
        router="mlp.router",
        experts=UnitNames(
            ("mlp.experts.gate_up_proj",),
            "mlp.experts.down_proj",
            weight="",
            bias="_bias",
            stacked=True,
            transposed=True,
            interleaved=True,
        ),
    ),
    "granitemoe": _GRANITE,
    "granitemoeshared": _GRANITE,
}


def mixture_names(config: ModelConfig) -> MixtureNames:
    """Raises ModelError for a family without an entry."""
    names = _MIXTURES.get(config.architecture)
    if names is None:
        raise ModelError(
            f"{config.architecture}: no names are known for the tensors of its mixtures; "
            f"known: {', '.join(_MIXTURES)}"
        )
    return names
