"""How fast this worker is: steps and fetches as they happened, for the routers to predict with."""

from __future__ import annotations

from transport.pace import Pace, StepCost
from triptych.obs.step_fit import StepFit

_FOLLOW = 0.05  # weight of a new sample in the running means
_LEAST_S = 1e-6  # a clock may stand still for so long


class PaceMeter:
    """One thread observes steps, another one fetches; anybody reads. All of it is soft."""

    def __init__(self) -> None:
        self._prefill, self._decode = StepFit(), StepFit()
        self._tokens_per_step = 0.0
        self._link_bytes_s = 0.0

    @property
    def prefill(self) -> StepCost | None:
        """Of steps with prompt rows; None: not known yet."""
        return self._prefill.cost()

    @property
    def decode(self) -> StepCost | None:
        """Of steps without; None: not known yet."""
        return self._decode.cost()

    @property
    def link_bytes_s(self) -> float:
        """Of KV fetched from other workers, as one fetch sees it; 0: not known yet."""
        return self._link_bytes_s

    def observe_step(
        self,
        seconds: float,
        *,
        prompt_rows: int = 0,
        prompt_pairs: float = 0.0,
        decode_rows: int = 0,
        decode_pairs: float = 0.0,
    ) -> None:
        """Rows of prompts and of sequences that decode, drafts included, and what they attend to.

        A step with both is one of prompts, less what its decode rows would have added to a step of
        their own: the same attention costs more where it is bound by memory.
        """
        seconds = max(seconds, _LEAST_S)
        if not prompt_rows:
            if decode_rows:
                self._decode.add(decode_rows, decode_pairs, seconds)
            return
        if decode_rows and (cost := self._decode.cost()) is not None:
            added = cost.seconds(decode_rows, decode_pairs, steps=0)
            seconds = max(seconds - added, seconds / 2)
        self._prefill.add(prompt_rows, prompt_pairs, seconds)

    def observe_tokens(self, tokens: int, sequences: int) -> None:
        """So many tokens were drawn for so many sequences in a step."""
        if sequences:
            self._tokens_per_step = _follow(self._tokens_per_step, tokens / sequences)

    def observe_fetch(self, num_bytes: int, seconds: float) -> None:
        if num_bytes:
            self._link_bytes_s = _follow(self._link_bytes_s, num_bytes / max(seconds, _LEAST_S))

    def pace(self, *, chunk_tokens: int, token_bytes: int, expert_wait: float = 0.0) -> Pace:
        """`expert_wait`: share of a step that waits for FFN workers."""
        return Pace(
            prefill=self.prefill,
            decode=self.decode,
            chunk_tokens=chunk_tokens,
            tokens_per_step=self._tokens_per_step,
            link_bytes_s=self.link_bytes_s,
            token_bytes=token_bytes,
            expert_wait=expert_wait,
        )


def _follow(mean: float, sample: float) -> float:
    return mean + _FOLLOW * (sample - mean) if mean else sample
