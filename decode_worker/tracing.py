"""A request's span at its home, and the spans inside of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from opentelemetry.trace import Span

from decode_worker.request import HomeRequest
from transport.protos import worker_pb2 as pb
from triptych.experts.make import PoolParts
from triptych.obs.experts import ExpertTally
from triptych.obs.trace import Attributes, add_span, span

Tell = Callable[[HomeRequest, pb.RequestStats], None]


@contextlib.contextmanager
def request_span(request: pb.GenerateRequest, experts: PoolParts | None) -> Iterator[Tell]:
    """Around all that happens to a request. What is yielded tells it, at the request's end."""
    about = {"triptych.request_id": request.request_id}
    tally = ExpertTally() if experts is None else experts.experts.tally
    steps, stall_s = tally.steps, tally.stall_s
    with span("generate", about, parent=request.trace_parent, serves=True) as found:

        def tell(home: HomeRequest, stats: pb.RequestStats) -> None:
            if not found.is_recording():
                return
            _tell_stats(found, home, stats)
            if tally.steps > steps:
                # Rows bear no request's name: it is what this home's steps waited for meanwhile.
                ffn: Attributes = {
                    "triptych.ffn_workers": tally.workers,
                    "triptych.ffn_steps": tally.steps - steps,
                    "triptych.ffn_stall_ms": (tally.stall_s - stall_s) * 1e3,
                }
                add_span("ffn", _unix(home.arrived_at), time.time(), ffn)

        yield tell


def _tell_stats(found: Span, home: HomeRequest, stats: pb.RequestStats) -> None:
    found.set_attributes(
        {
            "gen_ai.usage.input_tokens": stats.prompt_tokens,
            "gen_ai.usage.output_tokens": stats.completion_tokens,
            "triptych.cached_tokens": stats.cached_tokens,
            "triptych.choices": len(home.sequences),
            "triptych.prefill_worker": stats.prefill_worker or "home",
            "triptych.kv_path": stats.kv_path,
            "triptych.kv_bytes": stats.kv_bytes,
            "triptych.fallbacks": list(stats.fallbacks),
            "triptych.accepted_tokens": stats.accepted_tokens,
        }
    )
    prompt: Attributes = {
        "triptych.queue_ms": stats.queue_ms,
        "triptych.prefill_ms": stats.prefill_ms,
        "triptych.transfer_ms": stats.transfer_ms,
    }
    first_token = _unix(home.first_token_at or time.monotonic())
    add_span("prompt", _unix(home.arrived_at), first_token, prompt)
    add_span("decode", first_token, time.time(), {"triptych.rounds": stats.rounds})


def _unix(moment: float) -> float:
    """Unix seconds of a moment of the monotonic clock."""
    return time.time() - (time.monotonic() - moment)
