"""What a client may send: OpenAI's shapes, plus the sampling parameters other servers agree on.

A field that is null counts as left out. Fields typed `harmless` are not implemented: they are
accepted at the values that ask for nothing and refused by name otherwise. What depends on the model
(context length, vocabulary) is checked in `router.sampling` and `router.prompt`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from router.fields import (
    MAX_TOKEN_ID,
    UNSUPPORTED,
    Body,
    TokenId,
    at_most,
    check_prompt,
    field_error,
    harmless,
)

MAX_MESSAGES = 4096
MAX_CHOICES = 128
MAX_TOOLS = 128
MAX_TOTAL_CHOICES = 1024
MAX_STOPS = 16
MAX_LOGPROBS = 20
MAX_DEADLINE_MS = 86_400_000
_MAX_COUNT = (1 << 31) - 1

Name = Annotated[str, Field(min_length=1, max_length=64)]
Salt = Annotated[str, Field(max_length=256)]
StopString = Annotated[str, Field(min_length=1, max_length=1024)]
Stops = StopString | Annotated[list[StopString], Field(max_length=MAX_STOPS, fail_fast=True)]
StopTokens = Annotated[list[TokenId], Field(max_length=1024, fail_fast=True)]
LogitBias = Annotated[
    dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]],
    Field(max_length=1024),
    at_most(1024),
]

JsonSchema = dict[str, Any]  # what it means is checked where it is compiled
GrammarText = Annotated[str, Field(min_length=1, max_length=1 << 16)]
Choices = Annotated[list[StopString], Field(min_length=1, max_length=1024, fail_fast=True)]
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]

_TOKEN_IDS = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": MAX_TOKEN_ID},
    "minItems": 1,
}
Prompt = Annotated[
    Any,
    AfterValidator(check_prompt),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
                _TOKEN_IDS,
                {"type": "array", "items": _TOKEN_IDS, "minItems": 1},
            ]
        }
    ),
]


def _only_text_parts(content: Any) -> Any:
    for index, part in enumerate(content if isinstance(content, list) else ()):
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if kind != "text":
            raise PydanticCustomError(
                UNSUPPORTED,
                "part {index} is of type {kind}; this server takes text parts only",
                {"index": index, "kind": repr(kind)[:100]},
            )
    return content


class TextPart(Body):
    type: Literal["text"]
    text: str


class CalledFunction(Body):
    name: str
    arguments: str  # JSON


class ToolCall(Body):
    """As the model made it, sent back."""

    id: str
    type: Literal["function"]
    function: CalledFunction
    index: int | None = None  # of clients that send back what they gathered from chunks


class Message(Body):
    """One turn. The refusable fields are what OpenAI's client adds when an answer is sent back."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    reasoning_content: str | None = None  # of an assistant; the template says what becomes of it
    reasoning: str | None = None  # the same, in vLLM's newer spelling
    content: (
        Annotated[
            str | Annotated[list[TextPart], Field(fail_fast=True)],
            BeforeValidator(_only_text_parts),
        ]
        | None
    ) = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: (
        Annotated[list[ToolCall], Field(max_length=MAX_TOOLS), at_most(MAX_TOOLS)] | None
    ) = None
    function_call: Annotated[Any, harmless()] = None
    refusal: Annotated[Any, harmless()] = None
    audio: Annotated[Any, harmless()] = None
    annotations: Annotated[Any, harmless([])] = None

    @model_validator(mode="after")
    def _says_something(self) -> Message:
        if self.tool_calls and self.role != "assistant":
            raise field_error("tool_calls", "only an assistant makes tool calls")
        if self.content is None and not self.tool_calls:
            raise field_error("content", "field required")
        return self

    @property
    def num_chars(self) -> int:
        called = sum(len(call.function.arguments) for call in self.tool_calls or ())
        called += len(self.reasoning_content or self.reasoning or "")
        if self.content is None or isinstance(self.content, str):
            return called + len(self.content or "")
        return called + sum(len(part.text) for part in self.content)


Messages = Annotated[
    list[Message],
    Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True),
    at_most(MAX_MESSAGES),
]


class StreamOptions(Body):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None  # usage so far in every chunk; needs include_usage
    include_obfuscation: Annotated[Any, harmless(False)] = None


class SpeculationBody(Body):
    """Like "auto", narrowed down. Answers do not depend on it."""

    drafters: Annotated[list[Name], Field(min_length=1, max_length=16), at_most(16)] | None = None
    max_nodes: Annotated[int, Field(ge=1, le=1024)] | None = None  # of one draft
    problem_id: Name | None = None  # samples of one problem learn from each other


class PageBudgetBody(Body):
    """How much of its context a row of the answer reads: at least one of these."""

    tokens: Annotated[int, Field(ge=128, le=_MAX_COUNT)] | None = None
    share: Annotated[float, Field(gt=0, le=1)] | None = None

    @model_validator(mode="after")
    def _agree(self) -> PageBudgetBody:
        if self.tokens is None and self.share is None:
            raise field_error("tokens", "give tokens, share or both")
        return self


class SparseAttentionBody(Body):
    """Parts of the context that hardly matter are left out. Answers depend on it."""

    scale: Annotated[float, Field(ge=0, le=1e9)] | None = None  # of tiles
    max_omitted: Annotated[float, Field(ge=0, le=1e9)] | None = None
    pages: PageBudgetBody | None = None  # none: rows of the answer look at all of them

    @model_validator(mode="after")
    def _agree(self) -> SparseAttentionBody:
        if self.scale is None and self.pages is None:
            raise field_error("scale", "give scale, pages or both")
        return self


class JsonSchemaFormat(Body):
    name: Name
    description: str | None = None
    json_schema: JsonSchema | None = Field(None, alias="schema")
    strict: bool | None = None  # answers always obey the schema


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _agree(self) -> ResponseFormat:
        if (self.json_schema is not None) != (self.type == "json_schema"):
            raise field_error("json_schema", 'goes with type "json_schema", and only with that')
        return self


class StructuredOutputs(Body):
    """vLLM's way to ask; exactly one of these."""

    json_schema: JsonSchema | str | None = Field(None, alias="json")  # text: the schema's JSON
    json_object: Literal[True] | None = None
    regex: GrammarText | None = None
    choice: Choices | None = None
    grammar: GrammarText | None = None  # Lark, GBNF or EBNF


class GenerationBody(Body):
    """What chat and plain completions have in common."""

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1, le=_MAX_COUNT)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=_MAX_COUNT)] | None = None  # -1 and 0: all tokens
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    logit_bias: LogitBias | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)] | None = None  # modulo 2^64
    stop: Stops | None = None
    stop_token_ids: StopTokens | None = None
    min_tokens: Annotated[int, Field(ge=0, le=_MAX_COUNT)] | None = None
    ignore_eos: bool | None = None
    return_token_ids: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    cache_salt: Salt | None = None  # requests with other salts share no cached prefix
    speculation: Literal["auto", "off"] | SpeculationBody | None = None
    sparse_attention: Literal["auto", "off"] | SparseAttentionBody | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Annotated[Any, harmless("in_memory", "in-memory")] = None
    metadata: Annotated[dict[str, str], Field(max_length=64), at_most(64)] | None = None
    store: Annotated[Any, harmless(False)] = None
    service_tier: Annotated[Any, harmless("auto", "default")] = None
    priority: Annotated[int, Field(ge=-(1 << 31), lt=1 << 31)] | None = None  # lower is sooner
    deadline_ms: Annotated[float, Field(gt=0, le=MAX_DEADLINE_MS)] | None = None  # whole answer
    prompt_logprobs: Annotated[Any, harmless()] = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: JsonSchema | str | None = None
    guided_regex: GrammarText | None = None
    guided_choice: Choices | None = None
    guided_grammar: GrammarText | None = None

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> GenerationBody:
        if self.stream_options is not None and not self.stream:
            raise field_error("stream_options", "needs stream: true")
        return self

    @property
    def choices(self) -> int:
        return 1 if self.n is None else self.n


class FunctionTool(Body):
    name: FunctionName
    description: str | None = None
    parameters: JsonSchema | None = None  # none: the function takes no arguments
    strict: bool | None = None  # calls of the model's own accord obey `parameters`, too


class Tool(Body):
    type: Literal["function"]
    function: FunctionTool


class NamedFunction(Body):
    name: FunctionName


class NamedTool(Body):
    type: Literal["function"]
    function: NamedFunction


class Allowed(Body):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MAX_TOOLS)]


class AllowedTools(Body):
    type: Literal["allowed_tools"]
    allowed_tools: Allowed


ToolChoice = Annotated[NamedTool | AllowedTools, Field(discriminator="type")]
TemplateVariables = Annotated[dict[str, Any], Field(max_length=64), at_most(64)]


class ChatRequest(GenerationBody):
    messages: Messages
    max_completion_tokens: Annotated[int, Field(ge=1, le=_MAX_COUNT)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS), at_most(MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None  # default true; without tools it asks for nothing
    functions: Annotated[Any, harmless([])] = None
    function_call: Annotated[Any, harmless("none", "auto")] = None
    modalities: Annotated[Any, harmless(["text"])] = None
    audio: Annotated[Any, harmless()] = None
    prediction: Annotated[Any, harmless()] = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    chat_template_kwargs: TemplateVariables | None = None  # e.g. enable_thinking
    verbosity: Annotated[Any, harmless("medium")] = None
    web_search_options: Annotated[Any, harmless()] = None

    @model_validator(mode="after")
    def _agree(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise field_error("top_logprobs", "needs logprobs: true")
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise field_error("max_tokens", "differs from max_completion_tokens; send one")
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise field_error("tools", "two functions share a name")
        if self.tool_choice == "required" and not names:
            raise field_error("tool_choice", '"required" needs tools')
        if not self._chosen_names <= set(names):
            raise field_error("tool_choice", "names a function that is not among tools")
        return self

    @property
    def tool_mode(self) -> str | None:
        """Of `tool_choice`, where it lists what is allowed."""
        chosen = self.tool_choice
        return chosen.allowed_tools.mode if isinstance(chosen, AllowedTools) else None

    @property
    def _chosen_names(self) -> set[str]:
        match self.tool_choice:
            case NamedTool(function=function):
                return {function.name}
            case AllowedTools(allowed_tools=allowed):
                return {tool.function.name for tool in allowed.tools}
            case _:
                return set()


class CompletionRequest(GenerationBody):
    prompt: Prompt
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    suffix: Annotated[Any, harmless()] = None

    @model_validator(mode="after")
    def _agree(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != self.choices:
            raise field_error("best_of", "must equal n: every choice is returned")
        if self.echo and self.logprobs is not None:
            raise field_error("echo", "the prompt's logprobs are not supported yet; drop logprobs")
        if len(self.prompts) * self.choices > MAX_TOTAL_CHOICES:
            raise field_error("prompt", f"prompts times n may be at most {MAX_TOTAL_CHOICES}")
        return self

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]
        prompts: list[str | list[int]] = self.prompt
        return prompts


class TokenizeRequest(Body):
    """Either `prompt` or `messages`."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None  # prompt only; default true
    add_generation_prompt: bool | None = None  # messages only; default true

    @model_validator(mode="after")
    def _one_of_two(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise field_error("prompt", "send either prompt or messages")
        if self.messages is not None and self.add_special_tokens is not None:
            raise field_error("add_special_tokens", "the chat template decides that for messages")
        if self.prompt is not None and self.add_generation_prompt is not None:
            raise field_error("add_generation_prompt", "goes with messages only")
        return self


class DetokenizeRequest(Body):
    model: str | None = None
    tokens: Annotated[list[TokenId], Field(fail_fast=True)]
