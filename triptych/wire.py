"""The request nouns and errors as they travel: protobuf messages and gRPC status.

Nothing is lost on the way: `sampling_params(sampling_message(p)) == p`, doubles bit for bit; an
error of our tree arrives as the same class with the same message, `param` and `code`.

Status codes. ABORTED is what a living worker says when it broke its promise; UNAVAILABLE is left to
gRPC itself, for a peer that cannot be reached. Both arrive as WorkerError; the message differs.
RESOURCE_EXHAUSTED is a CapacityError only when a worker of ours said so: gRPC uses the same code
for a message over the size limit, where a retry is no remedy.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import grpc

from transport.protos import worker_pb2 as pb
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
    Grammar,
    GrammarKind,
    PageBudget,
    SamplingParams,
    SparseAttention,
    Speculation,
    TileCount,
    TokenDelta,
    TokenLogprobs,
)

_STATUS: dict[type[TriptychError], grpc.StatusCode] = {
    RequestError: grpc.StatusCode.INVALID_ARGUMENT,
    ContextLengthError: grpc.StatusCode.INVALID_ARGUMENT,
    CapacityError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    WorkerError: grpc.StatusCode.ABORTED,
    ModelError: grpc.StatusCode.FAILED_PRECONDITION,
    ConfigError: grpc.StatusCode.FAILED_PRECONDITION,
}
_KINDS = {kind.__name__: kind for kind in _STATUS}

# Details travel as a trailer. JSON escapes make at most 12 bytes of a character, so a message of
# this length always fits the metadata limit of transport.channel (64 KiB).
_MAX_MESSAGE_CHARS = 2000


def generate_request(
    request_id: str,
    prompt_ids: Sequence[int],
    params: SamplingParams,
    *,
    n: int = 1,
    prefill: pb.PrefillTarget | None = None,
    spare_prefill: Sequence[pb.PrefillTarget] = (),
    cache_salt: str = "",
    time_left_s: float = 0.0,
    speculation: Speculation | None = None,
    resumed: Sequence[pb.Resumed] = (),
    sparse: SparseAttention | None = None,
) -> pb.GenerateRequest:
    """One request for its home.

    `prefill` None: the home prefills by itself. `spare_prefill` are asked in turn when it fails.
    `time_left_s` 0: nothing is said about a deadline. `resumed`: what choices got from another
    home.
    """
    return pb.GenerateRequest(
        request_id=request_id,
        prompt_ids=prompt_ids,
        sampling=sampling_message(params),
        n=n,
        prefill=prefill,
        spare_prefill=spare_prefill,
        cache_salt=cache_salt,
        time_left_s=time_left_s,
        speculation=None if speculation is None else speculation_message(speculation),
        resumed=resumed,
        sparse_attention=sparse_message(sparse),
    )


def speculation_message(wanted: Speculation) -> pb.Speculation:
    """The tenant stays behind: to a home it is the cache salt."""
    return pb.Speculation(
        off=wanted.off,
        drafters=wanted.drafters,
        max_nodes=wanted.max_nodes,
        problem_id=wanted.problem_id,
    )


def speculation_of(request: pb.GenerateRequest) -> Speculation:
    message = request.speculation
    return Speculation(
        off=message.off,
        drafters=tuple(message.drafters),
        max_nodes=message.max_nodes,
        problem_id=message.problem_id,
        tenant=request.cache_salt,
    )


def sparse_message(sparse: SparseAttention | None) -> pb.SparseAttention | None:
    if sparse is None:
        return None
    pages = None
    if sparse.pages is not None:
        pages = pb.PageBudget(tokens=sparse.pages.tokens, share=sparse.pages.share)
    return pb.SparseAttention(scale=sparse.scale, max_omitted=sparse.max_omitted, pages=pages)


def sparse_of(request: pb.GenerateRequest | pb.PrefillRequest) -> SparseAttention | None:
    if not request.HasField("sparse_attention"):
        return None
    asked = request.sparse_attention
    pages = None
    if asked.HasField("pages"):
        pages = PageBudget(asked.pages.tokens, asked.pages.share)
    return SparseAttention(asked.scale, asked.max_omitted, pages)


def tiles_message(count: TileCount) -> pb.TileCount:
    return pb.TileCount(
        seen=count.seen,
        skipped=count.skipped,
        omitted=count.omitted,
        pages=count.pages,
        pages_read=count.pages_read,
    )


def tiles_of(message: pb.TileCount) -> TileCount:
    return TileCount(
        message.seen, message.skipped, message.omitted, message.pages, message.pages_read
    )


def sampling_message(params: SamplingParams) -> pb.Sampling:
    """Raises ValueError when an integer does not fit its field, e.g. a seed beyond 64 bits."""
    return pb.Sampling(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        repetition_penalty=params.repetition_penalty,
        logit_bias=params.logit_bias,
        seed=params.seed,
        logprobs=params.logprobs,
        stop=params.stop,
        stop_token_ids=params.stop_token_ids,
        min_tokens=params.min_tokens,
        max_tokens=params.max_tokens,
        ignore_eos=params.ignore_eos,
        grammar=None if params.grammar is None else _grammar_message(params.grammar),
    )


def sampling_params(message: pb.Sampling) -> SamplingParams:
    return SamplingParams(
        seed=message.seed,
        max_tokens=message.max_tokens,
        temperature=message.temperature,
        top_k=message.top_k,
        top_p=message.top_p,
        min_p=message.min_p,
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        repetition_penalty=message.repetition_penalty,
        logit_bias=dict(message.logit_bias),
        logprobs=message.logprobs if message.HasField("logprobs") else None,
        stop=tuple(message.stop),
        stop_token_ids=tuple(message.stop_token_ids),
        min_tokens=message.min_tokens,
        ignore_eos=message.ignore_eos,
        grammar=grammar_of(message),
    )


def grammar_of(message: pb.Sampling) -> Grammar | None:
    if not message.HasField("grammar"):
        return None
    return Grammar(GrammarKind(message.grammar.kind), message.grammar.text)


def delta_message(delta: TokenDelta) -> pb.TokenDelta:
    """The request id stays behind: the lane that it travels on is the request."""
    message = pb.TokenDelta(
        choice=delta.choice,
        token_ids=delta.token_ids,
        logprobs=[_logprobs_message(logprobs) for logprobs in delta.logprobs],
        finish_reason=delta.finish_reason or "",
    )
    if isinstance(delta.stop_reason, str):
        message.stop_string = delta.stop_reason
    elif delta.stop_reason is not None:
        message.stop_token = delta.stop_reason
    return message


def token_delta(request_id: str, message: pb.TokenDelta) -> TokenDelta:
    kind = message.WhichOneof("stop_reason")
    return TokenDelta(
        request_id=request_id,
        choice=message.choice,
        token_ids=tuple(message.token_ids),
        logprobs=tuple(_logprobs(logprobs) for logprobs in message.logprobs),
        finish_reason=FinishReason(message.finish_reason) if message.finish_reason else None,
        stop_reason=getattr(message, kind) if kind else None,
    )


def _grammar_message(grammar: Grammar) -> pb.Grammar:
    return pb.Grammar(kind=grammar.kind, text=grammar.text)


def _logprobs_message(logprobs: TokenLogprobs) -> pb.TokenLogprobs:
    return pb.TokenLogprobs(
        token_id=logprobs.token_id,
        logprob=logprobs.logprob,
        top_ids=[token_id for token_id, _ in logprobs.top],
        top_logprobs=[logprob for _, logprob in logprobs.top],
    )


def _logprobs(message: pb.TokenLogprobs) -> TokenLogprobs:
    top = zip(message.top_ids, message.top_logprobs, strict=True)
    return TokenLogprobs(message.token_id, message.logprob, tuple(top))


def to_status(error: BaseException) -> tuple[grpc.StatusCode, str] | None:
    """Status code and details for an error of our tree; None for anything else: a bug of ours.

    A task group's error stands for its only member.
    """
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    for kind in type(error).__mro__:
        if code := _STATUS.get(kind):
            return code, _details(kind, error)
    return None


def from_rpc_error(error: grpc.aio.AioRpcError) -> TriptychError:
    """The error that the peer raised, or the one that describes why it could not answer."""
    return from_status(error.code(), error.details() or "")


def from_status(code: grpc.StatusCode, details: str) -> TriptychError:
    """`from_rpc_error` for a status that came inside a message."""
    known = _raised_by_peer(details)
    if known is not None:
        return known
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return RequestError(details)
    reason = _REASONS.get(code, f"worker answered {code.name}")
    return WorkerError(f"{reason}: {details}" if details else reason)


_REASONS = {
    grpc.StatusCode.UNAVAILABLE: "worker is unreachable",
    grpc.StatusCode.DEADLINE_EXCEEDED: "worker did not answer before the deadline",
    grpc.StatusCode.CANCELLED: "the call to the worker was cancelled",
}


def _details(kind: type[BaseException], error: BaseException) -> str:
    message = str(error)
    if len(message) > _MAX_MESSAGE_CHARS:
        message = message[: _MAX_MESSAGE_CHARS - 1] + "…"
    fields: dict[str, str | None] = {"error": kind.__name__, "message": message}
    if isinstance(error, RequestError):
        fields |= {"param": error.param, "code": error.code}
    return json.dumps(fields)


def _raised_by_peer(details: str) -> TriptychError | None:
    try:
        fields = json.loads(details)
    except ValueError:
        return None
    if not isinstance(fields, dict) or str(fields.get("error")) not in _KINDS:
        return None
    kind, message = _KINDS[str(fields["error"])], str(fields.get("message", ""))
    if issubclass(kind, ContextLengthError):
        return kind(message, param=fields.get("param"))
    if issubclass(kind, RequestError):
        return kind(message, param=fields.get("param"), code=fields.get("code"))
    return kind(message)
