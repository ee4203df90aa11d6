"""The `speculation` section of the configuration."""

from __future__ import annotations

from pathlib import Path
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


class _TreeConfig(_Frozen):
    """How the drafts of a network branch."""

    width: int = Field(8, ge=1, le=64, description="children of a node; 1: chains")
    expanded: int = Field(4, ge=1, le=64, description="nodes of a level that get children")
    min_prob: float = Field(0.03, gt=0, le=1, description="of a drafted path")
    min_level: float = Field(
        0.4, ge=0, le=1, description="chance of a level's nodes below which none get children"
    )


class HeadDrafterConfig(_TreeConfig):
    """A head that `triptych draft train` made for this model."""

    kind: Literal["eagle3", "parallel"]
    path: Path | None = Field(None, description="its directory; default: in the cache")
    dtype: Literal["auto", "float32", "bfloat16", "int8", "int4"] = Field(
        "auto", description="of its weights; auto: int8 beside bfloat16, else the target's"
    )
    window: int = Field(128, ge=16, description="tokens before the first draft that it looks at")
    learn: bool = Field(False, description="from what was verified, while nobody waits")


class DraftModelConfig(_TreeConfig):
    """A smaller model with the target's vocabulary."""

    kind: Literal["draft_model"] = "draft_model"
    model: str = Field(description="a known name, a HF directory, a .gguf file or hf://org/name")
    dtype: Literal["auto", "float32", "bfloat16", "int8", "int4"] = Field(
        "auto", description="of its weights; auto: the target's"
    )


class SparseConfig(_Frozen):
    """The model itself, reading the KV pages that its last verification looked at most."""

    kind: Literal["sparse"] = "sparse"
    ratio: float = Field(0.05, gt=0, le=1, description="of the context that a draft reads")
    min_tokens: int = Field(256, ge=1, description="that a draft reads at least")


_Single = NgramConfig | SuffixConfig | HeadDrafterConfig | DraftModelConfig | SparseConfig


class SwitchingConfig(_Frozen):
    """Two drafters or more, chosen from by how sure the target is of its next token."""

    kind: Literal["switching"] = "switching"
    between: tuple[Annotated[_Single, Field(discriminator="kind")], ...] = Field(min_length=2)


class RemoteConfig(_Frozen):
    """A drafter in another process, asked over gRPC; what comes too late is not waited for."""

    kind: Literal["remote"] = "remote"
    pool: str | None = Field(None, description="of draft workers, in the same run directory")
    url: str | None = Field(None, description="or the gRPC target of a draft worker")
    drafter: str = Field("", description="which of the draft worker's; default: its first")
    deadline_ms: float = Field(5.0, gt=0, description="the longest that a step waits for drafts")
    trouble: float = Field(
        0.0, ge=0, le=1, description="for proofs: share of messages lost, late, twice or garbled"
    )

    @model_validator(mode="after")
    def _check(self) -> RemoteConfig:
        if (self.pool is None) == (self.url is None):
            raise ValueError("remote: name either a pool or a url")
        return self


DrafterConfig = Annotated[_Single | SwitchingConfig | RemoteConfig, Field(discriminator="kind")]
# What a draft worker can host: drafters that read tokens alone.
LocalDrafterConfig = NgramConfig | SuffixConfig
HostedDrafterConfig = Annotated[LocalDrafterConfig, Field(discriminator="kind")]


class SpeculationConfig(_Frozen):
    """Who drafts on decode workers, how much, and when a draft is right.

    No token depends on any of it while `rule` is `equality`.
    """

    mode: Annotated[Literal["auto", "off", "fixed", "table", "length_aware", "dice"], yaml_off] = (
        Field(
            "auto",
            description="auto: by measured utility; length_aware: the same, but only for answers "
            "that will end last; fixed and table: always the first drafter; dice: anything, for "
            "tests",
        )
    )
    drafters: tuple[DrafterConfig, ...] = (SuffixConfig(),)
    max_nodes: int = Field(
        15,
        ge=1,
        le=256,
        description="of one draft; all of them when fixed. 15 and the token before them are 16 "
        "rows, which a matrix unit takes at once",
    )
    rule: Literal["equality", "rejection", "block"] = Field(
        "equality",
        description="equality: right is what plain decoding draws; rejection and block: more may "
        "be right, and answers keep the law of plain decoding but not its tokens",
    )
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

    @property
    def models(self) -> tuple[str, ...]:
        """Of all checkpoints that drafters load."""
        drafters = () if self.mode == "off" else self.drafters
        parts = (
            part
            for drafter in drafters
            for part in (drafter.between if isinstance(drafter, SwitchingConfig) else (drafter,))
        )
        return tuple(part.model for part in parts if isinstance(part, DraftModelConfig))
