"""What goes over the wire comes back equal."""

from __future__ import annotations

import json
import math
import struct

import grpc
import grpc.aio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transport.protos import worker_pb2 as pb
from triptych import wire
from triptych.errors import (
    CapacityError,
    ConfigError,
    ContextLengthError,
    ModelError,
    RequestError,
    TriptychError,
    WorkerError,
)
from triptych.request import (
    FinishReason,
    PageBudget,
    SamplingParams,
    SparseAttention,
    TileCount,
    TokenDelta,
    TokenLogprobs,
)

patient = settings(deadline=None)  # a busy machine is no failure

tokens = st.integers(0, 2**32 - 1)
counts = st.integers(0, 2**32 - 1)
numbers = st.floats(allow_nan=False)
texts = st.text()  # any script; no lone surrogates, which are not text

sampling = st.builds(
    SamplingParams,
    seed=st.integers(0, 2**64 - 1),
    max_tokens=counts,
    temperature=numbers,
    top_k=counts,
    top_p=numbers,
    min_p=numbers,
    presence_penalty=numbers,
    frequency_penalty=numbers,
    repetition_penalty=numbers,
    logit_bias=st.dictionaries(tokens, numbers),
    logprobs=st.none() | counts,
    stop=st.lists(texts).map(tuple),
    stop_token_ids=st.lists(tokens).map(tuple),
    min_tokens=counts,
    ignore_eos=st.booleans(),
)
token_logprobs = st.builds(
    TokenLogprobs,
    token_id=tokens,
    logprob=numbers,
    top=st.lists(st.tuples(tokens, numbers)).map(tuple),
)
deltas = st.builds(
    TokenDelta,
    request_id=texts,
    choice=counts,
    token_ids=st.lists(tokens).map(tuple),
    logprobs=st.lists(token_logprobs).map(tuple),
    finish_reason=st.none() | st.sampled_from(FinishReason),
    stop_reason=st.none() | texts | tokens,
)


def over_the_wire(message):
    return type(message).FromString(message.SerializeToString())


@patient
@given(sampling)
def test_sampling_parameters_survive_the_wire(params):
    assert wire.sampling_params(over_the_wire(wire.sampling_message(params))) == params


@patient
@given(st.floats())
def test_doubles_survive_bit_for_bit(number):
    params = SamplingParams(seed=0, max_tokens=1, temperature=number)
    arrived = wire.sampling_params(over_the_wire(wire.sampling_message(params)))
    assert struct.pack("d", arrived.temperature) == struct.pack("d", number)


@patient
@given(deltas)
def test_token_deltas_survive_the_wire(delta):
    message = over_the_wire(wire.delta_message(delta))
    assert wire.token_delta(delta.request_id, message) == delta


def test_logprobs_off_differs_from_the_chosen_token_only():
    off = SamplingParams(seed=0, max_tokens=1, logprobs=None)
    chosen_only = SamplingParams(seed=0, max_tokens=1, logprobs=0)
    arrived = [
        wire.sampling_params(over_the_wire(wire.sampling_message(params))).logprobs
        for params in (off, chosen_only)
    ]
    assert arrived == [None, 0]


def test_an_impossible_token_keeps_its_logprob():
    delta = TokenDelta("r", 0, (1,), (TokenLogprobs(1, -math.inf, ((2, -math.inf),)),))
    assert wire.token_delta("r", over_the_wire(wire.delta_message(delta))) == delta


@pytest.mark.parametrize("stop_reason", [None, "", "\n\n", 0, 7])
def test_the_stop_that_matched_keeps_its_kind(stop_reason):
    delta = TokenDelta("r", 0, (5,), finish_reason=FinishReason.STOP, stop_reason=stop_reason)
    arrived = wire.token_delta("r", over_the_wire(wire.delta_message(delta)))
    assert (type(arrived.stop_reason), arrived.stop_reason) == (type(stop_reason), stop_reason)


def test_a_seed_that_does_not_fit_is_no_silent_other_seed():
    with pytest.raises(ValueError):
        wire.sampling_message(SamplingParams(seed=2**64, max_tokens=1))


def test_sparse_attention_survives_the_wire():
    params = SamplingParams(seed=3, max_tokens=5)
    for sparse in (
        None,
        SparseAttention(8.0),
        SparseAttention(pages=PageBudget(share=0.1)),
        SparseAttention(1 / 3, 0.5, PageBudget(2048, 1 / 3)),
    ):
        message = over_the_wire(wire.generate_request("r", [1, 2], params, sparse=sparse))
        assert wire.sparse_of(message) == sparse
    count = TileCount(seen=5, skipped=2, omitted=0.1, pages=7, pages_read=3)
    assert wire.tiles_of(over_the_wire(wire.tiles_message(count))) == count


def test_a_request_without_prefill_worker_says_so():
    params = SamplingParams(seed=3, max_tokens=5)
    target = pb.PrefillTarget(worker_id="prefill-0", epoch=9, address="unix:/p.sock")
    spare = pb.PrefillTarget(worker_id="prefill-1", epoch=4, address="unix:/q.sock")
    alone = over_the_wire(wire.generate_request("r", [1, 2], params))
    options = {"n": 2, "prefill": target, "spare_prefill": [spare], "cache_salt": "s"}
    helped = over_the_wire(wire.generate_request("r", [1, 2], params, **options))
    assert not alone.HasField("prefill")
    assert (alone.request_id, list(alone.prompt_ids), alone.n) == ("r", [1, 2], 1)
    assert list(helped.spare_prefill) == [spare]
    assert (helped.prefill, helped.n, helped.cache_salt) == (target, 2, "s")
    assert wire.sampling_params(helped.sampling) == params


def rpc_error(code: grpc.StatusCode, details: str | None) -> grpc.aio.AioRpcError:
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, nothing, nothing, details, None)


def arrived(error: BaseException) -> TriptychError:
    status = wire.to_status(error)
    assert status is not None
    return wire.from_rpc_error(rpc_error(*status))


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (RequestError, grpc.StatusCode.INVALID_ARGUMENT),
        (ContextLengthError, grpc.StatusCode.INVALID_ARGUMENT),
        (CapacityError, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (WorkerError, grpc.StatusCode.ABORTED),
        (ModelError, grpc.StatusCode.FAILED_PRECONDITION),
        (ConfigError, grpc.StatusCode.FAILED_PRECONDITION),
    ],
)
@patient
@given(message=st.text(max_size=2000))
def test_each_error_has_its_status_and_arrives_as_itself(kind, code, message):
    error = kind(message)
    assert wire.to_status(error)[0] is code
    assert (type(arrived(error)), str(arrived(error))) == (kind, message)


@patient
@given(texts, st.none() | texts, st.none() | texts)
def test_a_request_error_keeps_param_and_code(message, param, code):
    error = arrived(RequestError(message, param=param, code=code))
    assert (str(error), error.param, error.code) == (message, param, code)


def test_a_context_length_error_keeps_its_param_and_its_code():
    error = arrived(ContextLengthError("too long", param="messages"))
    assert isinstance(error, ContextLengthError)
    assert (error.param, error.code) == ("messages", "context_length_exceeded")


def test_an_error_of_a_narrower_kind_arrives_as_the_one_that_callers_know():
    class LostBlock(WorkerError):
        pass

    assert type(arrived(LostBlock("block 7"))) is WorkerError


def test_a_group_of_one_is_that_one_and_a_group_of_two_is_a_bug():
    one = ExceptionGroup("", [ExceptionGroup("", [CapacityError("full")])])
    assert type(arrived(one)) is CapacityError
    assert wire.to_status(ExceptionGroup("", [CapacityError(), WorkerError()])) is None


@pytest.mark.parametrize("error", [KeyError("x"), TriptychError("x"), KeyboardInterrupt()])
def test_anything_else_has_no_status(error):
    assert wire.to_status(error) is None


def test_details_stay_ascii_and_small_enough_for_a_trailer():
    _, details = wire.to_status(RequestError("🙈" * 100_000))
    assert details.isascii()
    assert len(details) < 32_000


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (grpc.StatusCode.UNAVAILABLE, "unreachable"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "deadline"),
        (grpc.StatusCode.CANCELLED, "cancelled"),
        (grpc.StatusCode.INTERNAL, "INTERNAL"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED"),  # gRPC's own: message too large
    ],
)
@pytest.mark.parametrize("details", ["", None, "said gRPC", "[1]", '{"error": ["a"]}', "NaN"])
def test_what_grpc_itself_reports_is_a_worker_error(code, words, details):
    error = wire.from_rpc_error(rpc_error(code, details))
    assert type(error) is WorkerError
    assert words in str(error)
    assert (details or "") in str(error)


def test_a_refusal_by_grpc_itself_is_still_the_callers_fault():
    error = wire.from_rpc_error(rpc_error(grpc.StatusCode.INVALID_ARGUMENT, "hello.role: missing"))
    assert type(error) is RequestError
    assert (str(error), error.param, error.code) == ("hello.role: missing", None, None)


@patient
@given(st.dictionaries(st.sampled_from(["error", "message", "param", "code"]), st.none() | texts))
def test_details_that_are_almost_ours_never_raise(fields):
    wire.from_rpc_error(rpc_error(grpc.StatusCode.ABORTED, json.dumps(fields)))
