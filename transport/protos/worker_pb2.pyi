from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GenerateCall(_message.Message):
    __slots__ = ("lane", "open", "cancel", "hold")
    LANE_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    HOLD_FIELD_NUMBER: _ClassVar[int]
    lane: int
    open: GenerateRequest
    cancel: bool
    hold: bool
    def __init__(self, lane: _Optional[int] = ..., open: _Optional[_Union[GenerateRequest, _Mapping]] = ..., cancel: _Optional[bool] = ..., hold: _Optional[bool] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("request_id", "prompt_ids", "sampling", "n", "prefill", "cache_salt", "spare_prefill", "time_left_s", "speculation", "trace_parent", "resumed", "sparse_attention")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    SPARE_PREFILL_FIELD_NUMBER: _ClassVar[int]
    TIME_LEFT_S_FIELD_NUMBER: _ClassVar[int]
    SPECULATION_FIELD_NUMBER: _ClassVar[int]
    TRACE_PARENT_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    SPARSE_ATTENTION_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    prompt_ids: _containers.RepeatedScalarFieldContainer[int]
    sampling: Sampling
    n: int
    prefill: PrefillTarget
    cache_salt: str
    spare_prefill: _containers.RepeatedCompositeFieldContainer[PrefillTarget]
    time_left_s: float
    speculation: Speculation
    trace_parent: str
    resumed: _containers.RepeatedCompositeFieldContainer[Resumed]
    sparse_attention: SparseAttention
    def __init__(self, request_id: _Optional[str] = ..., prompt_ids: _Optional[_Iterable[int]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., n: _Optional[int] = ..., prefill: _Optional[_Union[PrefillTarget, _Mapping]] = ..., cache_salt: _Optional[str] = ..., spare_prefill: _Optional[_Iterable[_Union[PrefillTarget, _Mapping]]] = ..., time_left_s: _Optional[float] = ..., speculation: _Optional[_Union[Speculation, _Mapping]] = ..., trace_parent: _Optional[str] = ..., resumed: _Optional[_Iterable[_Union[Resumed, _Mapping]]] = ..., sparse_attention: _Optional[_Union[SparseAttention, _Mapping]] = ...) -> None: ...

class SparseAttention(_message.Message):
    __slots__ = ("scale", "max_omitted", "pages")
    SCALE_FIELD_NUMBER: _ClassVar[int]
    MAX_OMITTED_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    scale: float
    max_omitted: float
    pages: PageBudget
    def __init__(self, scale: _Optional[float] = ..., max_omitted: _Optional[float] = ..., pages: _Optional[_Union[PageBudget, _Mapping]] = ...) -> None: ...

class PageBudget(_message.Message):
    __slots__ = ("tokens", "share")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    tokens: int
    share: float
    def __init__(self, tokens: _Optional[int] = ..., share: _Optional[float] = ...) -> None: ...

class TileCount(_message.Message):
    __slots__ = ("seen", "skipped", "omitted", "pages", "pages_read")
    SEEN_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    OMITTED_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    PAGES_READ_FIELD_NUMBER: _ClassVar[int]
    seen: int
    skipped: int
    omitted: float
    pages: int
    pages_read: int
    def __init__(self, seen: _Optional[int] = ..., skipped: _Optional[int] = ..., omitted: _Optional[float] = ..., pages: _Optional[int] = ..., pages_read: _Optional[int] = ...) -> None: ...

class Resumed(_message.Message):
    __slots__ = ("choice", "token_ids", "done")
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    choice: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    done: bool
    def __init__(self, choice: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., done: _Optional[bool] = ...) -> None: ...

class Speculation(_message.Message):
    __slots__ = ("off", "drafters", "max_nodes", "problem_id")
    OFF_FIELD_NUMBER: _ClassVar[int]
    DRAFTERS_FIELD_NUMBER: _ClassVar[int]
    MAX_NODES_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_ID_FIELD_NUMBER: _ClassVar[int]
    off: bool
    drafters: _containers.RepeatedScalarFieldContainer[str]
    max_nodes: int
    problem_id: str
    def __init__(self, off: _Optional[bool] = ..., drafters: _Optional[_Iterable[str]] = ..., max_nodes: _Optional[int] = ..., problem_id: _Optional[str] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("temperature", "top_k", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "seed", "logprobs", "stop", "stop_token_ids", "min_tokens", "max_tokens", "ignore_eos", "grammar")
    class LogitBiasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    GRAMMAR_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias: _containers.ScalarMap[int, float]
    seed: int
    logprobs: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    min_tokens: int
    max_tokens: int
    ignore_eos: bool
    grammar: Grammar
    def __init__(self, temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., logit_bias: _Optional[_Mapping[int, float]] = ..., seed: _Optional[int] = ..., logprobs: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., min_tokens: _Optional[int] = ..., max_tokens: _Optional[int] = ..., ignore_eos: _Optional[bool] = ..., grammar: _Optional[_Union[Grammar, _Mapping]] = ...) -> None: ...

class Grammar(_message.Message):
    __slots__ = ("kind", "text")
    KIND_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    kind: str
    text: str
    def __init__(self, kind: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class PrefillTarget(_message.Message):
    __slots__ = ("worker_id", "epoch", "address")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    epoch: int
    address: str
    def __init__(self, worker_id: _Optional[str] = ..., epoch: _Optional[int] = ..., address: _Optional[str] = ...) -> None: ...

class GenerateReplies(_message.Message):
    __slots__ = ("lanes", "token_ids", "others")
    LANES_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    OTHERS_FIELD_NUMBER: _ClassVar[int]
    lanes: _containers.RepeatedScalarFieldContainer[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    others: _containers.RepeatedCompositeFieldContainer[GenerateReply]
    def __init__(self, lanes: _Optional[_Iterable[int]] = ..., token_ids: _Optional[_Iterable[int]] = ..., others: _Optional[_Iterable[_Union[GenerateReply, _Mapping]]] = ...) -> None: ...

class GenerateReply(_message.Message):
    __slots__ = ("lane", "delta", "stats", "error", "began", "moved")
    LANE_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    STATS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    BEGAN_FIELD_NUMBER: _ClassVar[int]
    MOVED_FIELD_NUMBER: _ClassVar[int]
    lane: int
    delta: TokenDelta
    stats: RequestStats
    error: RequestError
    began: RequestBegan
    moved: bool
    def __init__(self, lane: _Optional[int] = ..., delta: _Optional[_Union[TokenDelta, _Mapping]] = ..., stats: _Optional[_Union[RequestStats, _Mapping]] = ..., error: _Optional[_Union[RequestError, _Mapping]] = ..., began: _Optional[_Union[RequestBegan, _Mapping]] = ..., moved: _Optional[bool] = ...) -> None: ...

class RequestBegan(_message.Message):
    __slots__ = ("cached_tokens",)
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    cached_tokens: int
    def __init__(self, cached_tokens: _Optional[int] = ...) -> None: ...

class RequestError(_message.Message):
    __slots__ = ("code", "details")
    CODE_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    code: int
    details: str
    def __init__(self, code: _Optional[int] = ..., details: _Optional[str] = ...) -> None: ...

class TokenDelta(_message.Message):
    __slots__ = ("choice", "token_ids", "logprobs", "finish_reason", "stop_string", "stop_token")
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    STOP_STRING_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_FIELD_NUMBER: _ClassVar[int]
    choice: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprobs]
    finish_reason: str
    stop_string: str
    stop_token: int
    def __init__(self, choice: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprobs, _Mapping]]] = ..., finish_reason: _Optional[str] = ..., stop_string: _Optional[str] = ..., stop_token: _Optional[int] = ...) -> None: ...

class TokenLogprobs(_message.Message):
    __slots__ = ("token_id", "logprob", "top_ids", "top_logprobs")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    logprob: float
    top_ids: _containers.RepeatedScalarFieldContainer[int]
    top_logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, token_id: _Optional[int] = ..., logprob: _Optional[float] = ..., top_ids: _Optional[_Iterable[int]] = ..., top_logprobs: _Optional[_Iterable[float]] = ...) -> None: ...

class RequestStats(_message.Message):
    __slots__ = ("prompt_tokens", "cached_tokens", "completion_tokens", "queue_ms", "prefill_ms", "transfer_ms", "first_token_ms", "kv_bytes", "kv_path", "prefill_worker", "fallbacks", "fetch_ms", "hidden_ms", "drafted_tokens", "accepted_tokens", "rounds", "drafters", "tiles", "draft_ms")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_MS_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_MS_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_MS_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_PATH_FIELD_NUMBER: _ClassVar[int]
    PREFILL_WORKER_FIELD_NUMBER: _ClassVar[int]
    FALLBACKS_FIELD_NUMBER: _ClassVar[int]
    FETCH_MS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_MS_FIELD_NUMBER: _ClassVar[int]
    DRAFTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    DRAFTERS_FIELD_NUMBER: _ClassVar[int]
    TILES_FIELD_NUMBER: _ClassVar[int]
    DRAFT_MS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    queue_ms: float
    prefill_ms: float
    transfer_ms: float
    first_token_ms: float
    kv_bytes: int
    kv_path: str
    prefill_worker: str
    fallbacks: _containers.RepeatedScalarFieldContainer[str]
    fetch_ms: float
    hidden_ms: float
    drafted_tokens: int
    accepted_tokens: int
    rounds: int
    drafters: _containers.RepeatedCompositeFieldContainer[DrafterStats]
    tiles: TileCount
    draft_ms: float
    def __init__(self, prompt_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., queue_ms: _Optional[float] = ..., prefill_ms: _Optional[float] = ..., transfer_ms: _Optional[float] = ..., first_token_ms: _Optional[float] = ..., kv_bytes: _Optional[int] = ..., kv_path: _Optional[str] = ..., prefill_worker: _Optional[str] = ..., fallbacks: _Optional[_Iterable[str]] = ..., fetch_ms: _Optional[float] = ..., hidden_ms: _Optional[float] = ..., drafted_tokens: _Optional[int] = ..., accepted_tokens: _Optional[int] = ..., rounds: _Optional[int] = ..., drafters: _Optional[_Iterable[_Union[DrafterStats, _Mapping]]] = ..., tiles: _Optional[_Union[TileCount, _Mapping]] = ..., draft_ms: _Optional[float] = ...) -> None: ...

class DrafterStats(_message.Message):
    __slots__ = ("drafter", "rounds", "drafted_tokens", "accepted_tokens")
    DRAFTER_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    DRAFTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    drafter: str
    rounds: int
    drafted_tokens: int
    accepted_tokens: int
    def __init__(self, drafter: _Optional[str] = ..., rounds: _Optional[int] = ..., drafted_tokens: _Optional[int] = ..., accepted_tokens: _Optional[int] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class KvDescription(_message.Message):
    __slots__ = ("worker_id", "epoch", "layout", "links")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    epoch: int
    layout: str
    links: _containers.RepeatedCompositeFieldContainer[LinkEndpoint]
    def __init__(self, worker_id: _Optional[str] = ..., epoch: _Optional[int] = ..., layout: _Optional[str] = ..., links: _Optional[_Iterable[_Union[LinkEndpoint, _Mapping]]] = ...) -> None: ...

class LinkEndpoint(_message.Message):
    __slots__ = ("link", "endpoint")
    LINK_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    link: str
    endpoint: str
    def __init__(self, link: _Optional[str] = ..., endpoint: _Optional[str] = ...) -> None: ...

class PrefillCall(_message.Message):
    __slots__ = ("open",)
    OPEN_FIELD_NUMBER: _ClassVar[int]
    open: PrefillRequest
    def __init__(self, open: _Optional[_Union[PrefillRequest, _Mapping]] = ...) -> None: ...

class PrefillRequest(_message.Message):
    __slots__ = ("request_id", "attempt", "prompt_ids", "first_block", "cache_salt", "state_layers", "state_rows", "trace_parent", "history", "sparse_attention", "answer_tokens")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_IDS_FIELD_NUMBER: _ClassVar[int]
    FIRST_BLOCK_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    STATE_LAYERS_FIELD_NUMBER: _ClassVar[int]
    STATE_ROWS_FIELD_NUMBER: _ClassVar[int]
    TRACE_PARENT_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    SPARSE_ATTENTION_FIELD_NUMBER: _ClassVar[int]
    ANSWER_TOKENS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    attempt: int
    prompt_ids: _containers.RepeatedScalarFieldContainer[int]
    first_block: int
    cache_salt: str
    state_layers: _containers.RepeatedScalarFieldContainer[int]
    state_rows: int
    trace_parent: str
    history: KvHistory
    sparse_attention: SparseAttention
    answer_tokens: int
    def __init__(self, request_id: _Optional[str] = ..., attempt: _Optional[int] = ..., prompt_ids: _Optional[_Iterable[int]] = ..., first_block: _Optional[int] = ..., cache_salt: _Optional[str] = ..., state_layers: _Optional[_Iterable[int]] = ..., state_rows: _Optional[int] = ..., trace_parent: _Optional[str] = ..., history: _Optional[_Union[KvHistory, _Mapping]] = ..., sparse_attention: _Optional[_Union[SparseAttention, _Mapping]] = ..., answer_tokens: _Optional[int] = ...) -> None: ...

class KvHistory(_message.Message):
    __slots__ = ("worker_id", "epoch", "address", "blocks", "generations", "digests")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    GENERATIONS_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    epoch: int
    address: str
    blocks: _containers.RepeatedScalarFieldContainer[int]
    generations: _containers.RepeatedScalarFieldContainer[int]
    digests: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, worker_id: _Optional[str] = ..., epoch: _Optional[int] = ..., address: _Optional[str] = ..., blocks: _Optional[_Iterable[int]] = ..., generations: _Optional[_Iterable[int]] = ..., digests: _Optional[_Iterable[int]] = ...) -> None: ...

class PrefillEvent(_message.Message):
    __slots__ = ("started", "blocks", "done", "states")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    started: PrefillStarted
    blocks: BlocksReady
    done: PrefillDone
    states: LayerStates
    def __init__(self, started: _Optional[_Union[PrefillStarted, _Mapping]] = ..., blocks: _Optional[_Union[BlocksReady, _Mapping]] = ..., done: _Optional[_Union[PrefillDone, _Mapping]] = ..., states: _Optional[_Union[LayerStates, _Mapping]] = ...) -> None: ...

class LayerStates(_message.Message):
    __slots__ = ("rows",)
    ROWS_FIELD_NUMBER: _ClassVar[int]
    rows: bytes
    def __init__(self, rows: _Optional[bytes] = ...) -> None: ...

class PrefillStarted(_message.Message):
    __slots__ = ("cached_tokens", "queue_ms")
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    cached_tokens: int
    queue_ms: float
    def __init__(self, cached_tokens: _Optional[int] = ..., queue_ms: _Optional[float] = ...) -> None: ...

class BlocksReady(_message.Message):
    __slots__ = ("first_block", "blocks", "generations", "first_layer", "end_layer", "digests")
    FIRST_BLOCK_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    GENERATIONS_FIELD_NUMBER: _ClassVar[int]
    FIRST_LAYER_FIELD_NUMBER: _ClassVar[int]
    END_LAYER_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    first_block: int
    blocks: _containers.RepeatedScalarFieldContainer[int]
    generations: _containers.RepeatedScalarFieldContainer[int]
    first_layer: int
    end_layer: int
    digests: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, first_block: _Optional[int] = ..., blocks: _Optional[_Iterable[int]] = ..., generations: _Optional[_Iterable[int]] = ..., first_layer: _Optional[int] = ..., end_layer: _Optional[int] = ..., digests: _Optional[_Iterable[int]] = ...) -> None: ...

class PrefillDone(_message.Message):
    __slots__ = ("last_hidden", "compute_ms", "tiles")
    LAST_HIDDEN_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_MS_FIELD_NUMBER: _ClassVar[int]
    TILES_FIELD_NUMBER: _ClassVar[int]
    last_hidden: bytes
    compute_ms: float
    tiles: TileCount
    def __init__(self, last_hidden: _Optional[bytes] = ..., compute_ms: _Optional[float] = ..., tiles: _Optional[_Union[TileCount, _Mapping]] = ...) -> None: ...

class DraftCall(_message.Message):
    __slots__ = ("hello", "asks", "ended")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    ASKS_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    hello: DraftHello
    asks: _containers.RepeatedCompositeFieldContainer[DraftAsk]
    ended: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, hello: _Optional[_Union[DraftHello, _Mapping]] = ..., asks: _Optional[_Iterable[_Union[DraftAsk, _Mapping]]] = ..., ended: _Optional[_Iterable[int]] = ...) -> None: ...

class DraftHello(_message.Message):
    __slots__ = ("worker_id", "epoch", "target", "vocab_size", "drafter")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    DRAFTER_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    epoch: int
    target: str
    vocab_size: int
    drafter: str
    def __init__(self, worker_id: _Optional[str] = ..., epoch: _Optional[int] = ..., target: _Optional[str] = ..., vocab_size: _Optional[int] = ..., drafter: _Optional[str] = ...) -> None: ...

class DraftAsk(_message.Message):
    __slots__ = ("key", "base", "hash", "new_tokens", "max_nodes", "opening")
    KEY_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_NODES_FIELD_NUMBER: _ClassVar[int]
    OPENING_FIELD_NUMBER: _ClassVar[int]
    key: int
    base: int
    hash: int
    new_tokens: _containers.RepeatedScalarFieldContainer[int]
    max_nodes: int
    opening: DraftOpening
    def __init__(self, key: _Optional[int] = ..., base: _Optional[int] = ..., hash: _Optional[int] = ..., new_tokens: _Optional[_Iterable[int]] = ..., max_nodes: _Optional[int] = ..., opening: _Optional[_Union[DraftOpening, _Mapping]] = ...) -> None: ...

class DraftOpening(_message.Message):
    __slots__ = ("num_prompt", "tenant", "problem_id", "sampling")
    NUM_PROMPT_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_ID_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    num_prompt: int
    tenant: str
    problem_id: str
    sampling: Sampling
    def __init__(self, num_prompt: _Optional[int] = ..., tenant: _Optional[str] = ..., problem_id: _Optional[str] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ...) -> None: ...

class DraftReplies(_message.Message):
    __slots__ = ("welcome", "drafts", "lost")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    DRAFTS_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    welcome: DraftWelcome
    drafts: _containers.RepeatedCompositeFieldContainer[DraftReply]
    lost: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, welcome: _Optional[_Union[DraftWelcome, _Mapping]] = ..., drafts: _Optional[_Iterable[_Union[DraftReply, _Mapping]]] = ..., lost: _Optional[_Iterable[int]] = ...) -> None: ...

class DraftWelcome(_message.Message):
    __slots__ = ("drafter", "config_hash", "target")
    DRAFTER_FIELD_NUMBER: _ClassVar[int]
    CONFIG_HASH_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    drafter: str
    config_hash: str
    target: str
    def __init__(self, drafter: _Optional[str] = ..., config_hash: _Optional[str] = ..., target: _Optional[str] = ...) -> None: ...

class DraftReply(_message.Message):
    __slots__ = ("key", "base", "hash", "token_ids", "parents", "confidence")
    KEY_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    PARENTS_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    key: int
    base: int
    hash: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    parents: _containers.RepeatedScalarFieldContainer[int]
    confidence: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, key: _Optional[int] = ..., base: _Optional[int] = ..., hash: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., parents: _Optional[_Iterable[int]] = ..., confidence: _Optional[_Iterable[float]] = ...) -> None: ...

class FfnDescription(_message.Message):
    __slots__ = ("worker_id", "epoch", "identity", "links")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    epoch: int
    identity: str
    links: _containers.RepeatedCompositeFieldContainer[LinkEndpoint]
    def __init__(self, worker_id: _Optional[str] = ..., epoch: _Optional[int] = ..., identity: _Optional[str] = ..., links: _Optional[_Iterable[_Union[LinkEndpoint, _Mapping]]] = ...) -> None: ...

class FollowCall(_message.Message):
    __slots__ = ("worker_id", "known")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    known: int
    def __init__(self, worker_id: _Optional[str] = ..., known: _Optional[int] = ...) -> None: ...

class UnitsOffered(_message.Message):
    __slots__ = ("version", "units")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    version: int
    units: bytes
    def __init__(self, version: _Optional[int] = ..., units: _Optional[bytes] = ...) -> None: ...

class ArrangeRequest(_message.Message):
    __slots__ = ("add", "remove")
    ADD_FIELD_NUMBER: _ClassVar[int]
    REMOVE_FIELD_NUMBER: _ClassVar[int]
    add: _containers.RepeatedScalarFieldContainer[int]
    remove: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, add: _Optional[_Iterable[int]] = ..., remove: _Optional[_Iterable[int]] = ...) -> None: ...

class ArrangeReply(_message.Message):
    __slots__ = ("units", "refused", "reason")
    UNITS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    units: bytes
    refused: _containers.RepeatedScalarFieldContainer[int]
    reason: str
    def __init__(self, units: _Optional[bytes] = ..., refused: _Optional[_Iterable[int]] = ..., reason: _Optional[str] = ...) -> None: ...

class WorkerReport(_message.Message):
    __slots__ = ("hello", "load")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    hello: WorkerHello
    load: WorkerLoad
    def __init__(self, hello: _Optional[_Union[WorkerHello, _Mapping]] = ..., load: _Optional[_Union[WorkerLoad, _Mapping]] = ...) -> None: ...

class WorkerHello(_message.Message):
    __slots__ = ("worker_id", "epoch", "role", "address", "model", "max_model_len", "block_tokens", "num_blocks", "metrics_address", "follows_ffn", "kv_identity")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    BLOCK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    METRICS_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    FOLLOWS_FFN_FIELD_NUMBER: _ClassVar[int]
    KV_IDENTITY_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    epoch: int
    role: str
    address: str
    model: str
    max_model_len: int
    block_tokens: int
    num_blocks: int
    metrics_address: str
    follows_ffn: bool
    kv_identity: str
    def __init__(self, worker_id: _Optional[str] = ..., epoch: _Optional[int] = ..., role: _Optional[str] = ..., address: _Optional[str] = ..., model: _Optional[str] = ..., max_model_len: _Optional[int] = ..., block_tokens: _Optional[int] = ..., num_blocks: _Optional[int] = ..., metrics_address: _Optional[str] = ..., follows_ffn: _Optional[bool] = ..., kv_identity: _Optional[str] = ...) -> None: ...

class WorkerLoad(_message.Message):
    __slots__ = ("running", "waiting", "queued_tokens", "free_blocks", "draining", "experts", "queued_pairs", "pace", "step_s")
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    QUEUED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FREE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    EXPERTS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_PAIRS_FIELD_NUMBER: _ClassVar[int]
    PACE_FIELD_NUMBER: _ClassVar[int]
    STEP_S_FIELD_NUMBER: _ClassVar[int]
    running: int
    waiting: int
    queued_tokens: int
    free_blocks: int
    draining: bool
    experts: ExpertLoad
    queued_pairs: float
    pace: Pace
    step_s: float
    def __init__(self, running: _Optional[int] = ..., waiting: _Optional[int] = ..., queued_tokens: _Optional[int] = ..., free_blocks: _Optional[int] = ..., draining: _Optional[bool] = ..., experts: _Optional[_Union[ExpertLoad, _Mapping]] = ..., queued_pairs: _Optional[float] = ..., pace: _Optional[_Union[Pace, _Mapping]] = ..., step_s: _Optional[float] = ...) -> None: ...

class Pace(_message.Message):
    __slots__ = ("prefill", "decode", "chunk_tokens", "tokens_per_step", "link_bytes_s", "token_bytes", "expert_wait")
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_STEP_FIELD_NUMBER: _ClassVar[int]
    LINK_BYTES_S_FIELD_NUMBER: _ClassVar[int]
    TOKEN_BYTES_FIELD_NUMBER: _ClassVar[int]
    EXPERT_WAIT_FIELD_NUMBER: _ClassVar[int]
    prefill: StepCost
    decode: StepCost
    chunk_tokens: int
    tokens_per_step: float
    link_bytes_s: float
    token_bytes: int
    expert_wait: float
    def __init__(self, prefill: _Optional[_Union[StepCost, _Mapping]] = ..., decode: _Optional[_Union[StepCost, _Mapping]] = ..., chunk_tokens: _Optional[int] = ..., tokens_per_step: _Optional[float] = ..., link_bytes_s: _Optional[float] = ..., token_bytes: _Optional[int] = ..., expert_wait: _Optional[float] = ...) -> None: ...

class StepCost(_message.Message):
    __slots__ = ("base_s", "row_s", "pair_s")
    BASE_S_FIELD_NUMBER: _ClassVar[int]
    ROW_S_FIELD_NUMBER: _ClassVar[int]
    PAIR_S_FIELD_NUMBER: _ClassVar[int]
    base_s: float
    row_s: float
    pair_s: float
    def __init__(self, base_s: _Optional[float] = ..., row_s: _Optional[float] = ..., pair_s: _Optional[float] = ...) -> None: ...

class ExpertLoad(_message.Message):
    __slots__ = ("rows", "offered", "room", "domain", "per_layer", "rows_s")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    OFFERED_FIELD_NUMBER: _ClassVar[int]
    ROOM_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    PER_LAYER_FIELD_NUMBER: _ClassVar[int]
    ROWS_S_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedScalarFieldContainer[int]
    offered: bytes
    room: int
    domain: str
    per_layer: _containers.RepeatedScalarFieldContainer[int]
    rows_s: float
    def __init__(self, rows: _Optional[_Iterable[int]] = ..., offered: _Optional[bytes] = ..., room: _Optional[int] = ..., domain: _Optional[str] = ..., per_layer: _Optional[_Iterable[int]] = ..., rows_s: _Optional[float] = ...) -> None: ...

class RouterNote(_message.Message):
    __slots__ = ("router_epoch", "ffn_workers")
    ROUTER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    FFN_WORKERS_FIELD_NUMBER: _ClassVar[int]
    router_epoch: int
    ffn_workers: _containers.RepeatedCompositeFieldContainer[FfnMember]
    def __init__(self, router_epoch: _Optional[int] = ..., ffn_workers: _Optional[_Iterable[_Union[FfnMember, _Mapping]]] = ...) -> None: ...

class FfnMember(_message.Message):
    __slots__ = ("worker_id", "epoch", "address")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    epoch: int
    address: str
    def __init__(self, worker_id: _Optional[str] = ..., epoch: _Optional[int] = ..., address: _Optional[str] = ...) -> None: ...

class KvEvents(_message.Message):
    __slots__ = ("worker_id", "epoch", "first", "end", "stored", "removed", "part")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    epoch: int
    first: int
    end: int
    stored: bytes
    removed: bytes
    part: KvPart
    def __init__(self, worker_id: _Optional[str] = ..., epoch: _Optional[int] = ..., first: _Optional[int] = ..., end: _Optional[int] = ..., stored: _Optional[bytes] = ..., removed: _Optional[bytes] = ..., part: _Optional[_Union[KvPart, _Mapping]] = ...) -> None: ...

class KvPart(_message.Message):
    __slots__ = ("index", "count")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    index: int
    count: int
    def __init__(self, index: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class KvAsk(_message.Message):
    __slots__ = ("snapshot",)
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    snapshot: bool
    def __init__(self, snapshot: _Optional[bool] = ...) -> None: ...
