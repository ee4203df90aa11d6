"""A request at its home: what its router is told, and when it ends."""

from __future__ import annotations

from typing import Any

import pytest

from decode_worker.loop import StepOutput
from decode_worker.request import HomeRequest, open_request
from transport.protos import worker_pb2 as pb
from triptych.engine.sampler import Drawn
from triptych.errors import RequestError, WorkerError
from triptych.request import FinishReason, SamplingParams, TokenLogprobs
from triptych.wire import generate_request
from triptych.worker.check import check_resumed


class Heard:
    """A lane that remembers."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.deltas: list[pb.TokenDelta] = []
        self.beginnings: list[pb.RequestBegan] = []

    def token(self, token_id: int) -> None:
        self.token_ids.append(token_id)

    def delta(self, message: pb.TokenDelta) -> None:
        self.deltas.append(message)

    def began(self, message: pb.RequestBegan) -> None:
        self.beginnings.append(message)


def home(*, n: int = 1, time_left_s: float = 60.0) -> tuple[HomeRequest, Heard]:
    params = SamplingParams(seed=1, max_tokens=9)
    request = generate_request("r", [1, 2], params, n=n, time_left_s=time_left_s)
    lane: Any = Heard()
    tokenizer: Any = None  # for stop strings only
    return open_request(request, lane, root=b"", block_tokens=16, tokenizer=tokenizer), lane


def output(
    of: HomeRequest, choice: int, drawn: Drawn, finish: FinishReason | None = None
) -> StepOutput:
    return StepOutput(of.sequences[choice], drawn, finish)


def test_a_plain_token_travels_bare() -> None:
    request, lane = home()
    request.tell(output(request, 0, Drawn(7)))
    assert (lane.token_ids, lane.deltas) == ([7], [])
    request.tell(output(request, 0, Drawn(8)))
    assert len(lane.beginnings) == 1


def test_only_choices_that_are_not_done_go_on() -> None:
    params = SamplingParams(seed=1, max_tokens=9)
    resumed = [pb.Resumed(choice=0, done=True), pb.Resumed(choice=2, token_ids=[5, 6])]
    message = generate_request("r", [1, 2], params, n=3, resumed=resumed)
    lane: Any = Heard()
    tokenizer: Any = None
    request = open_request(message, lane, root=b"", block_tokens=16, tokenizer=tokenizer)
    assert [sequence.choice for sequence in request.sequences] == [1, 2]
    assert [sequence.tokens for sequence in request.sequences] == [[1, 2], [1, 2, 5, 6]]
    assert [sequence.num_output for sequence in request.sequences] == [0, 2]
    assert request.leader.choice == 1 and request.sequences[1].leader is request.leader


@pytest.mark.parametrize(
    ("resumed", "why"),
    [
        ([pb.Resumed(choice=2)], "not one of 2"),
        ([pb.Resumed(choice=0), pb.Resumed(choice=0)], "named twice"),
        ([pb.Resumed(choice=0, token_ids=[1] * 9)], "all of its 9 tokens"),
        ([pb.Resumed(choice=0, token_ids=[1] * 6)], "longer than the context"),
        ([pb.Resumed(choice=1, token_ids=[99])], "not in the vocabulary"),
        ([pb.Resumed(choice=c, done=True) for c in (0, 1)], "nothing to ask"),
    ],
    ids=str,
)
def test_what_cannot_be_resumed_is_refused(resumed: list[pb.Resumed], why: str) -> None:
    params = SamplingParams(seed=1, max_tokens=9)
    message = generate_request("r", [1, 2], params, n=2, resumed=resumed)
    with pytest.raises(RequestError, match=why):
        check_resumed(message, vocab_size=50, max_model_len=8)


@pytest.mark.parametrize(
    ("choice", "drawn", "finish"),
    [
        (1, Drawn(7), None),
        (0, Drawn(7, TokenLogprobs(7, -0.5)), None),
        (0, Drawn(7), FinishReason.LENGTH),
    ],
    ids=["another choice", "logprobs", "the end"],
)
def test_a_token_with_something_to_tell_travels_as_a_delta(
    choice: int, drawn: Drawn, finish: FinishReason | None
) -> None:
    request, lane = home(n=2)
    request.tell(output(request, choice, drawn, finish))
    assert lane.token_ids == []
    (delta,) = lane.deltas
    assert (delta.choice, list(delta.token_ids)) == (choice, [7])


async def test_a_request_has_run_out_when_all_its_choices_have() -> None:
    request, _ = home(n=2)
    request.tell(output(request, 1, Drawn(7), FinishReason.STOP))
    assert not request.ended.is_set()
    request.tell(output(request, 0, Drawn(7), FinishReason.STOP))
    await request.run_out()
    assert request.stats().completion_tokens == 2


async def test_a_draw_without_any_number_fails_the_request() -> None:
    request, lane = home()
    request.tell(output(request, 0, Drawn(0, broken="no number")))
    with pytest.raises(WorkerError, match="no number"):
        await request.run_out()
    assert (lane.token_ids, lane.deltas) == ([], [])


async def test_a_request_ends_at_its_deadline_even_if_the_router_hangs() -> None:
    request, _ = home(time_left_s=0.01)
    with pytest.raises(WorkerError, match="deadline"):
        await request.run_out()
