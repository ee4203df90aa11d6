"""The `speculation` section of the configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

# YAML 1.1 reads a bare `off` as false.
yaml_off = BeforeValidator(lambda value: "off" if value is False else value)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NgramConfig(_Frozen):
    """Prompt lookup: continues the longest recent n-gram as it went on before."""

    kind: Literal["ngram"] = "ngram"
    min_n: int = Field(2, ge=1)
    max_n: int = Field(5, le=64)

    @model_validator(mode="after")
    def _check(self) -> NgramConfig:
        if self.min_n > self.max_n:
            raise ValueError(f"min_n: {self.min_n} is more than max_n, {self.max_n}")
        return self


class SuffixConfig(_Frozen):
    """Suffix trees of each sequence, and of earlier answers of its tenant or its problem."""

    kind: Literal["suffix"] = "suffix"
    depth: int = Field(24, ge=2, le=256, description="tokens of context that are told apart")
    min_prob: float = Field(0.1, gt=0, le=1, description="of a drafted path")
    trees: bool = Field(False, description="also draft less likely branches")


class SparseConfig(_Frozen):
    """The model itself, reading the KV pages that its last verification looked at most."""

    kind: Literal["sparse"] = "sparse"
    ratio: float = Field(0.05, gt=0, le=1, description="of the context that a draft reads")
    min_tokens: int = Field(256, ge=1, description="that a draft reads at least")


DrafterConfig = Annotated[NgramConfig | SuffixConfig | SparseConfig, Field(discriminator="kind")]


class SpeculationConfig(_Frozen):
    """Who drafts on decode workers, and how much. No token depends on any of it."""

    mode: Annotated[Literal["auto", "off", "fixed", "table", "dice"], yaml_off] = Field(
        "auto",
        description="auto: by measured utility; fixed and table: always the first drafter; dice: "
        "anything, for tests",
    )
    drafters: tuple[DrafterConfig, ...] = (SuffixConfig(),)
    max_nodes: int = Field(16, ge=1, le=256, description="of one draft; all of them when fixed")
    nodes_from: dict[int, int] = Field(
        {1: 8, 4: 4, 16: 0}, description="table: nodes of a draft from so many sequences on"
    )

    @model_validator(mode="after")
    def _check(self) -> SpeculationConfig:
        kinds = [drafter.kind for drafter in self.drafters]
        if len(set(kinds)) != len(kinds):
            raise ValueError(f"drafters: two of one kind: {sorted(kinds)}")
        if self.mode != "off" and not kinds:
            raise ValueError(f"drafters: mode {self.mode} needs one")
        return self
