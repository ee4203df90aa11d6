"""What a client gets: OpenAI's shapes and our extensions stop_reason, max_model_len, `triptych`.

Fields without a default are always sent, null included; fields with one are left out unless they
were given.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from transport.pace import Pace
from transport.protos import worker_pb2 as pb


class Reply(BaseModel):
    model_config = ConfigDict(frozen=True)

    def json_text(self) -> str:
        return self.model_dump_json(exclude_unset=True)

    def json_bytes(self) -> bytes:
        return self.json_text().encode()


class PromptDetails(Reply):
    cached_tokens: int


class DrafterDetails(Reply):
    """A drafter's part: its verified drafts, their tokens and those that were right."""

    rounds: int
    drafted_tokens: int
    accepted_tokens: int


class CompletionDetails(Reply):
    """Drafts in OpenAI's words. Our own: `rounds`, the steps that the tokens took; tokens per
    round; each drafter's part; the time that steps spent on drafts for this request.
    """

    accepted_prediction_tokens: int
    rejected_prediction_tokens: int
    rounds: int
    acceptance_length: float
    drafters: dict[str, DrafterDetails]
    draft_ms: float


class SparseDetails(Reply):
    """What attention left out: of so many tiles, and the largest share of one row's softmax; of
    so many pages that rows of the answer had to choose from.
    """

    tiles: int
    skipped_tiles: int
    max_omitted: float
    pages: int
    pages_read: int


class Usage(Reply):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails | None = None  # known when the request has finished
    completion_tokens_details: CompletionDetails | None = None  # if `speculation` was asked for
    sparse_attention: SparseDetails | None = None  # if it was on


class Timings(Reply):
    """Where time went, as the home measured it. Several prompts: sums and longest times."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    queue_ms: float
    prefill_ms: float
    transfer_ms: float
    first_token_ms: float
    fetch_ms: float
    hidden_ms: float
    kv_bytes: int
    kv_path: str  # "": prefilled at home
    prefill_worker: str
    fallbacks: list[str]
    decode_worker: str


class TopLogprob(Reply):
    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Reply):
    content: list[ChatLogprob]


class CompletionLogprobs(Reply):
    text_offset: list[int]
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None  # null for logprobs: 0


Ending = Literal["stop", "length", "tool_calls"]


class CalledFunction(Reply):
    name: str
    arguments: str  # JSON


class ToolCall(Reply):
    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(Reply):
    role: Literal["assistant"]
    reasoning_content: str | None = None  # thoughts, of models that think before they answer
    content: str | None  # null: calls and nothing else
    tool_calls: list[ToolCall] | None = None


class ChatChoice(Reply):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Ending
    stop_reason: int | str | None
    token_ids: list[int] | None = None  # with return_token_ids


class ChatCompletion(Reply):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    triptych: Timings | None = None


class FunctionDelta(Reply):
    name: str | None = None  # with the first piece
    arguments: str


class ToolCallDelta(Reply):
    index: int
    id: str | None = None  # with the first piece
    type: Literal["function"] | None = None  # with the first piece
    function: FunctionDelta


class Delta(Reply):
    role: Literal["assistant"] | None = None
    reasoning_content: str | None = None
    content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatChunkChoice(Reply):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Ending | None
    stop_reason: int | str | None = None  # with the finish reason
    token_ids: list[int] | None = None  # with return_token_ids


class ChatChunk(Reply):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    triptych: Timings | None = None


class CompletionChoice(Reply):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None  # null in chunks before the last
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None  # with return_token_ids


class Completion(Reply):
    """Also a chunk of a streamed one."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    triptych: Timings | None = None


class WorkerCard(Reply):
    """One worker as it reported itself last."""

    worker_id: str
    epoch: int
    role: str
    address: str
    model: str
    max_model_len: int
    block_tokens: int
    num_blocks: int
    metrics_address: str
    running: int
    waiting: int
    queued_tokens: int
    free_blocks: int
    draining: bool
    pace: Pace  # what the router predicts with: null and 0 are not measured yet


class WorkersReply(Reply):
    workers: list[WorkerCard]


class ModelCard(Reply):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int | None  # null until a decode worker has attached


class ModelList(Reply):
    object: Literal["list"]
    data: list[ModelCard]


class TokenizeReply(Reply):
    tokens: list[int]
    count: int
    max_model_len: int | None


class DetokenizeReply(Reply):
    prompt: str


class StatusReply(Reply):
    status: str


class VersionReply(Reply):
    version: str


def timings(stats: list[pb.RequestStats], decode_workers: list[str]) -> Timings:
    """Of one HTTP request, which has one or more prompts, each with its own home."""

    def names(values: list[str]) -> str:
        return ",".join(dict.fromkeys(value for value in values if value))

    return Timings(
        prompt_tokens=sum(s.prompt_tokens for s in stats),
        cached_tokens=sum(s.cached_tokens for s in stats),
        completion_tokens=sum(s.completion_tokens for s in stats),
        queue_ms=max(s.queue_ms for s in stats),
        prefill_ms=max(s.prefill_ms for s in stats),
        transfer_ms=max(s.transfer_ms for s in stats),
        first_token_ms=max(s.first_token_ms for s in stats),
        fetch_ms=max(s.fetch_ms for s in stats),
        hidden_ms=max(s.hidden_ms for s in stats),
        kv_bytes=sum(s.kv_bytes for s in stats),
        kv_path=names([s.kv_path for s in stats]),
        prefill_worker=names([s.prefill_worker for s in stats]),
        fallbacks=[fallback for s in stats for fallback in s.fallbacks],
        decode_worker=names(decode_workers),
    )
