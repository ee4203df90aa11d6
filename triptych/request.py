"""The nouns that every process shares: what a caller asks for and what comes back."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

_MASK64 = (1 << 64) - 1


class FinishReason(enum.StrEnum):
    """Why a choice ended, in OpenAI's words."""

    STOP = "stop"
    LENGTH = "length"


class GrammarKind(enum.StrEnum):
    """In which language a grammar is written."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    CHOICE = "choice"  # a JSON list of texts
    LARK = "lark"  # Lark, GBNF or EBNF


@dataclass(frozen=True, slots=True)
class Grammar:
    """Which answers are allowed, in full: from an answer's first character to its last."""

    kind: GrammarKind
    text: str


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn. Validated at the router's edge; the engine takes it as given."""

    seed: int  # 64 bit; the router draws one when the caller gave none, so a moved stream keeps it
    max_tokens: int
    temperature: float = 1.0  # 0: greedy
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None  # None: off; k: the chosen token and the k best
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0  # before that many, no end-of-sequence and no stop token is drawn
    ignore_eos: bool = False
    grammar: Grammar | None = None  # its end is the answer's end

    @property
    def penalised(self) -> bool:
        return (
            self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
            or self.repetition_penalty != 1.0
        )


@dataclass(frozen=True, slots=True)
class Speculation:
    """Whether and how drafts may be made for a request. No token depends on it."""

    off: bool = False
    drafters: tuple[str, ...] = ()  # names in the home's configuration; (): all
    max_nodes: int = 0  # of one draft; 0: as configured
    problem_id: str = ""  # requests that are samples of one problem share their history
    tenant: str = ""  # histories never cross tenants


@dataclass(frozen=True, slots=True)
class SparseAttention:
    """Tiles of a context that softmax would all but ignore are left out: BLASST (arXiv 2512.12087).

    A row that sees n positions leaves out a tile where nothing weighs λ = scale / n of its largest
    weight. That changes numbers, so it is part of the identity of every block of KV.
    """

    scale: float  # 0: nothing is left out
    max_omitted: float = math.inf  # ε: what is left out of a row's softmax, over what is kept

    @property
    def identity(self) -> str:
        """For cache salts: other settings, other KV."""
        return f"blasst:{self.scale!r}:{self.max_omitted!r}"


@dataclass(slots=True)
class TileCount:
    """Tiles that sparse attention came by, of all layers and KV heads, once for each vector of rows
    that looked at it.
    """

    seen: int = 0
    skipped: int = 0
    omitted: float = 0.0  # the largest ε of a row and head: see SparseAttention

    @property
    def share(self) -> float:
        return self.skipped / self.seen if self.seen else 0.0

    def add(self, other: TileCount) -> None:
        self.seen += other.seen
        self.skipped += other.skipped
        self.omitted = max(self.omitted, other.omitted)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural-log probabilities of one position under the raw logits (temperature 1, no filter)."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (token id, logprob), best first


class TokenDelta(NamedTuple):
    """What one step added to one choice of a request. A tuple: there is one for nearly every token,
    and making a frozen dataclass takes five times as long.
    """

    request_id: str
    choice: int
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()  # as long as token_ids, or empty
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None  # the stop string or stop token id that matched


def choice_seed(seed: int, choice: int) -> int:
    """The seed of choice `choice` of a request with `n > 1`; choice 0 keeps the request's seed.

    SplitMix64's finaliser over seed + choice × golden ratio (Steele, Lea, Flood 2014).
    """
    if choice == 0:
        return seed & _MASK64
    x = (seed + choice * 0x9E3779B97F4A7C15) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)
