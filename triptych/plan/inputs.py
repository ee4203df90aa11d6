"""What a plan for an FFN pool is computed from, read from a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError, model_validator

from triptych.config import problems_of, read_settings
from triptych.errors import ConfigError
from triptych.plan.lengths import Law, SlotLoad, load_of_laws, load_of_trace
from triptych.plan.measured import Coefficients, read_measured
from triptych.plan.traces import read_trace


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelShape(_Frozen):
    """Layers count as alike. A dense model has one expert."""

    layers: int = Field(ge=1)
    hidden: int = Field(ge=1)
    experts: int = Field(1, ge=1, description="per layer")
    top_k: int = Field(1, ge=1, description="experts of a row")
    expert_bytes: ByteSize = Field(description="weights of one expert of one layer")
    attention_bytes: ByteSize = Field(
        ByteSize(0), description="weights that stay with attention, all layers"
    )
    kv_bytes: ByteSize = Field(description="KV of one token, all layers")

    @model_validator(mode="after")
    def _check(self) -> ModelShape:
        if self.top_k > self.experts:
            raise ValueError(f"top_k: {self.top_k} of {self.experts} experts; at most all of them")
        return self


class Wire(_Frozen):
    """What goes over the links."""

    out_bytes: float = Field(2, gt=0, description="per element of a row, to the FFN workers")
    back_bytes: float = Field(2, gt=0, description="per element of a result")
    returns: Literal["rows", "sum"] = Field(
        "rows", description="rows: one per row and expert; sum: one per row and worker"
    )


class Devices(_Frozen):
    attention_memory: ByteSize
    ffn_memory: ByteSize
    attention_price: float = Field(1.0, gt=0)
    ffn_price: float = Field(1.0, gt=0)
    max_attention: int = Field(32, ge=1, le=512)
    max_ffn: int = Field(16, ge=1, le=512)
    max_slots: int = Field(1024, ge=1, description="sequences of one attention device")


class Goals(_Frozen):
    tpot_ms: float | None = Field(None, gt=0, description="time per output token; none: any")
    rate: float | None = Field(None, gt=0, description="requests per second to be served")
    copies: int = Field(2, ge=1, description="of each expert")
    imbalance: float = Field(1.05, ge=1, description="busiest FFN worker / mean")
    draft_tokens: int = Field(0, ge=0, description="verified per sequence and step")
    tokens_per_step: float = Field(1.0, ge=1, description="kept per sequence and step")

    @model_validator(mode="after")
    def _check(self) -> Goals:
        if self.tokens_per_step > self.draft_tokens + 1:
            raise ValueError(
                f"tokens_per_step: {self.tokens_per_step} with {self.draft_tokens} drafted; "
                "at most draft_tokens + 1"
            )
        return self


class Lengths(_Frozen):
    """Tokens of requests, by laws."""

    prompt: Law
    output: Law


class PlanInputs(_Frozen):
    model: ModelShape
    costs: Coefficients
    devices: Devices
    wire: Wire = Wire()
    goals: Goals = Goals()
    lengths: Lengths | None = None


def read_inputs(
    path: Path | None,
    overrides: Sequence[str] = (),
    *,
    trace: Path | None = None,
    measured: Path | None = None,
) -> tuple[PlanInputs, SlotLoad]:
    """A YAML or JSON file, then `a.b=value` overrides; measured coefficients replace `costs`, a
    trace replaces `lengths`. Raises ConfigError naming the file, the key and what to do.
    """
    data = read_settings(path, overrides)
    if measured is not None:
        data["costs"] = read_measured(measured).costs.model_dump()
    source = str(path or "plan")
    if "costs" not in data:
        raise ConfigError(
            f"{source}: costs: missing; give --measured FILE (from `triptych doctor --afd`), "
            "or a section costs"
        )
    inputs = parse_inputs(data, source)
    if trace is not None:
        return inputs, load_of_trace(read_trace(trace))
    if inputs.lengths is None:
        raise ConfigError(
            f"{source}: lengths: missing; give --trace FILE, or a section lengths, e.g. "
            "--set lengths.prompt={law: constant, mean: 500} "
            "--set lengths.output={law: geometric, mean: 300}"
        )
    return inputs, load_of_laws(inputs.lengths.prompt, inputs.lengths.output)


def parse_inputs(data: Mapping[str, Any], source: str = "plan") -> PlanInputs:
    """Raises ConfigError naming `source` and the key."""
    try:
        return PlanInputs.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{source}: {problems_of(error)}") from error
