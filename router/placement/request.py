"""What a placement policy is told, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from router.index.hit import PrefixHit
from transport.registry import WorkerView
from triptych.admission_config import SloConfig


@dataclass(frozen=True, slots=True)
class Slo:
    """What a request should see; requests that miss it count for nothing in goodput."""

    ttft_s: float = 5.0  # arrival to first token
    itl_s: float = 0.1  # between two tokens, the mean of a request


DEFAULT_SLO = Slo()


def objectives(config: SloConfig) -> Slo:
    """As configured; where nothing is, what most people would not call slow."""
    ttft_ms, itl_ms = config.ttft_ms, config.itl_ms
    return Slo(
        DEFAULT_SLO.ttft_s if ttft_ms is None else ttft_ms / 1000,
        DEFAULT_SLO.itl_s if itl_ms is None else itl_ms / 1000,
    )


@dataclass(frozen=True, slots=True)
class Sent:
    """A prompt that this router sent somewhere and that has no token yet."""

    at: float  # the router's monotonic seconds
    tokens: int  # that were to be computed
    work_s: float = 0.0  # predicted; 0: by a policy that predicts nothing


@dataclass(frozen=True, slots=True)
class PlacementRequest:
    """What a policy may look at beside the workers. No text, no token, no tenant: what a request
    shares with others is in `cached`, which was looked up under its cache salt.
    """

    model: str
    turn: int  # counts this router's placements; breaks ties, so that equals share the work
    choices: Mapping[str, int] = field(default_factory=dict)  # open here, by home's worker id
    prefilling: Mapping[str, int] = field(default_factory=dict)  # prompt tokens without an answer
    excluded: frozenset[str] = frozenset()  # worker ids that just failed this request
    prompt_tokens: int = 1
    max_tokens: int | None = None  # of the answer; None: nobody said
    cached: Mapping[str, PrefixHit] = field(default_factory=dict)  # by worker id
    told: Mapping[str, int] = field(
        default_factory=dict
    )  # blocks, without what is on its way there
    now: float = 0.0  # monotonic seconds, the clock of `WorkerView.reported_at`
    sent: Mapping[str, Sequence[Sent]] = field(default_factory=dict)  # by computing worker's id
    session: str = ""  # salted; requests of one session go the same way where it costs nothing
    slo: Slo = DEFAULT_SLO

    def cached_tokens(self, view: WorkerView) -> int:
        """Of the prompt, at that worker. The last token is always computed."""
        hit = self.cached.get(view.worker_id)
        return 0 if hit is None else min(hit.blocks * view.block_tokens, self.prompt_tokens - 1)

    def lent_tokens(self, view: WorkerView) -> int:
        """Of the prompt, that this home can lend to a prefill worker now."""
        return min(self.told.get(view.worker_id, 0) * view.block_tokens, self.prompt_tokens - 1)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a request will see if it is placed so. Seconds."""

    wait_s: float  # until its prompt is computed: those queued before it, room for its KV
    compute_s: float  # of the prompt's missing tokens
    transfer_s: float  # of KV, after the last chunk
    itl_s: float  # mean time between two tokens
    cached_tokens: int  # of the prompt, where it is computed
    missing_tokens: int
    first_step_s: float = 0.0
    cost: float = 0.0  # what the policy minimised; see router/placement/least_cost.py

    @property
    def ttft_s(self) -> float:
        return self.wait_s + self.compute_s + self.transfer_s + self.first_step_s


@dataclass(frozen=True, slots=True)
class Placement:
    decode: WorkerView
    prefill: WorkerView | None  # None: the home prefills by itself
    reason: str  # why so, for the metrics: one of few words
    spares: tuple[WorkerView, ...] = ()  # prefill workers to ask in turn when `prefill` fails
    prediction: Prediction | None = None  # of policies that predict

    @property
    def computing(self) -> WorkerView:
        """Who is to compute the prompt."""
        return self.prefill or self.decode


PlacementPolicy = Callable[[PlacementRequest, Sequence[WorkerView]], Placement]
