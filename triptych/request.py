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


PAGE_TOKENS = 32  # of a page that a row reads or leaves out; kPageTokens in page_choice.h
LEAST_PAGES = 4  # the first one, the two latest, and one to choose


@dataclass(frozen=True, slots=True)
class PageBudget:
    """How much of its context a row of the answer reads: the first page, the two latest, and those
    that Quest's bounds (arXiv 2406.10774) rank highest. Rows of the prompt read everything. Nothing
    is promised of what that loses. The larger one of both budgets holds.
    """

    tokens: int = 0
    share: float = 0.0  # of the positions that the row sees

    @property
    def least_tokens(self) -> int:
        """Rows that see no more read all of it."""
        return max(LEAST_PAGES, -(-self.tokens // PAGE_TOKENS)) * PAGE_TOKENS

    def kept(self, position: int) -> int:
        """Pages that a row at this position reads, of `pages_seen`."""
        tokens = max(self.least_tokens, math.ceil(self.share * (position + 1)))
        return min(-(-tokens // PAGE_TOKENS), pages_seen(position))


def pages_seen(position: int) -> int:
    """By a row, its own included."""
    return position // PAGE_TOKENS + 1


@dataclass(frozen=True, slots=True)
class SparseAttention:
    """Tiles of a context that softmax would all but ignore are left out: BLASST (arXiv 2512.12087).

    A row that sees n positions leaves out a tile where nothing weighs λ = scale / n of its largest
    weight. With `pages`, rows of the answer read some pages only, and leave out tiles of these.
    All of that changes numbers, so it is part of the identity of every block of KV.
    """

    scale: float = 0.0  # 0: no tile is left out
    max_omitted: float = math.inf  # ε: what is left out of a row's softmax, over what is kept
    pages: PageBudget | None = None  # None: rows look at all tiles

    @property
    def skips(self) -> bool:
        """Whether tiles are weighed before they are read."""
        return self.scale > 0 or self.pages is None

    @property
    def identity(self) -> str:
        """For cache salts: other settings, other KV."""
        tiles = f"blasst:{self.scale!r}:{self.max_omitted!r}"
        if self.pages is None:
            return tiles
        return f"{tiles}:quest:{self.pages.tokens}:{self.pages.share!r}"


@dataclass(slots=True)
class TileCount:
    """Tiles that sparse attention came by, of all layers and KV heads, once for each vector of rows
    that looked at it; and pages, once for each row that had to choose.
    """

    seen: int = 0
    skipped: int = 0
    omitted: float = 0.0  # the largest ε of a row and head: see SparseAttention
    pages: int = 0
    pages_read: int = 0

    @property
    def share(self) -> float:
        return self.skipped / self.seen if self.seen else 0.0

    def add(self, other: TileCount) -> None:
        self.seen += other.seen
        self.skipped += other.skipped
        self.omitted = max(self.omitted, other.omitted)
        self.pages += other.pages
        self.pages_read += other.pages_read


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
