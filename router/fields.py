"""Building blocks of the request schema: refusals that name the field and tell the remedy."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Strict,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError, core_schema

from triptych.errors import RequestError

MAX_TOKEN_ID = (1 << 32) - 1  # what a protobuf uint32 holds; the vocabulary is checked later
TokenId = Annotated[int, Strict(), Field(ge=0, le=MAX_TOKEN_ID)]
TokenIds = Annotated[list[TokenId], Strict(), Field(min_length=1, fail_fast=True)]
UNKNOWN_FIELD, FIELD = "unknown_field", "field"  # error types whose context names the field
UNSUPPORTED = "unsupported"


class Body(BaseModel):
    """A JSON object of a request: no unknown key, no silent conversion, no NaN.

    The first unknown keys are refused before anything else is looked at: pydantic alone would build
    an error for every one of them, and a hostile body has room for a million.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, data: Any) -> Any:
        if isinstance(data, dict):
            unknown = next((key for key in data if key not in _keys_of(cls)), None)
            if unknown is not None:
                raise PydanticCustomError(
                    UNKNOWN_FIELD, "this server knows no such field", {"field": unknown[:100]}
                )
        return data


@functools.cache
def _keys_of(body: type[Body]) -> frozenset[str]:
    return frozenset(field.alias or name for name, field in body.model_fields.items())


# eq=False: typing caches by equality, and (None, 0) equals (None, False).
@dataclass(frozen=True, slots=True, eq=False)
class Harmless:
    """Annotates a field that is not implemented: accepted at the values that ask for nothing.

    Clients send many fields at their defaults; a caller who asks for more must hear that it will
    not happen.
    """

    values: tuple[Any, ...]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"enum": list(self.values)}

    def _check(self, given: Any) -> Any:
        # JSON's 0 is not its false, Python's is.
        if any(type(given) is type(value) and given == value for value in self.values):
            return given
        accepted = ", ".join(json.dumps(value) for value in self.values)
        raise PydanticCustomError(
            UNSUPPORTED,
            "not supported yet; leave it out or send one of: {accepted}",
            {"accepted": accepted},
        )


def harmless(*values: Any) -> Harmless:
    """`harmless("auto")` also accepts null."""
    return Harmless((None, *values))


def field_error(field: str, message: str) -> PydanticCustomError:
    """A problem of one field beside another; for validators of the whole object."""
    return PydanticCustomError(FIELD, "{reason}", {"reason": message, "field": field})


def at_most(limit: int) -> BeforeValidator:
    """Refuses a larger collection before its items are looked at, each good for an error."""

    def check(given: Any) -> Any:
        if isinstance(given, dict | list) and len(given) > limit:
            raise PydanticCustomError(
                "too_long", "may have at most {limit} items", {"limit": limit}
            )
        return given

    return BeforeValidator(check)


def check_prompt(value: Any) -> Any:
    """A prompt of the completions API: text, texts, token ids or lists of token ids.

    The first item tells which: a union of list types would answer one wrong element with an error
    from every branch.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise _prompt_error(
            "should be a string or a list of strings, token ids or lists of token ids"
        )
    kind = _PROMPT_LISTS.get(type(value[0]), _IDS)
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = _spelled(problem["loc"])
        raise _prompt_error(f"item {where} {_lowered(problem['msg'])}") from None


def _prompt_error(message: str) -> PydanticCustomError:
    # The message is a template to pydantic, and ours may hold braces.
    return PydanticCustomError("prompt", "{reason}", {"reason": message})


_IDS: TypeAdapter[Any] = TypeAdapter(TokenIds)
_PROMPT_LISTS: dict[type, TypeAdapter[Any]] = {
    str: TypeAdapter(Annotated[list[str], Strict(), Field(fail_fast=True)]),
    list: TypeAdapter(Annotated[list[TokenIds], Strict(), Field(fail_fast=True)]),
}


def explain(error: ValidationError, data: Any) -> RequestError:
    """The most telling problem as an error whose `param` is a path, e.g. "messages[0].content".

    `data` is what was validated: pydantic's locations also hold names of union branches, and only
    the data tells which is which. Of a union's branches the one that got deepest speaks; those that
    got equally far speak together.
    """
    problems = error.errors(include_url=False, include_input=False)
    same_field = [
        (_field_path(problem, data), problem)
        for problem in problems
        if problem["loc"][:1] == problems[0]["loc"][:1]
    ]
    path = max((path for path, _ in same_field), key=len)
    told = [problem for where, problem in same_field if where == path]
    name = _spelled(path)
    message = " or ".join(dict.fromkeys(_lowered(problem["msg"]) for problem in told))
    return RequestError(
        f"{name}: {message}" if name else message,
        param=name or None,
        code=_CODES.get(told[0]["type"]),
    )


_CODES = {UNKNOWN_FIELD: "unknown_parameter", UNSUPPORTED: "unsupported_parameter"}


def _field_path(problem: ErrorDetails, data: Any) -> tuple[int | str, ...]:
    path: list[int | str] = []
    missing = problem["loc"][-1:] if problem["type"] == "missing" else ()
    for part in problem["loc"]:
        if isinstance(data, list) and isinstance(part, int):
            path.append(part)
            data = data[part] if part < len(data) else None
        elif isinstance(data, Mapping) and (part in data or part in missing):
            path.append(part)
            data = data.get(part)
    if problem["type"] in (UNKNOWN_FIELD, FIELD):
        path.append(problem["ctx"]["field"])
    return tuple(path)


def _spelled(path: Sequence[int | str]) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part[:100]}"
    return text.removeprefix(".")


def _lowered(message: str) -> str:
    """pydantic's "Input should be …" as the end of "field: …"."""
    message = message.removeprefix("Input ")
    return message[:1].lower() + message[1:]
