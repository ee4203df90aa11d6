"""Building blocks of the request schema: refusals that name the field and tell the remedy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError, core_schema

MAX_TOKEN_ID = (1 << 32) - 1  # what a protobuf uint32 holds; the vocabulary is checked later
UNKNOWN_FIELD, FIELD = "unknown_field", "field"  # error types whose context names the field


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
            unknown = next((key for key in data if key not in cls.model_fields), None)
            if unknown is not None:
                raise PydanticCustomError(
                    UNKNOWN_FIELD, "this server knows no such field", {"field": unknown[:100]}
                )
        return data


@dataclass(frozen=True, slots=True)
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
            "unsupported",
            "not supported yet; leave it out or send one of: {accepted}",
            {"accepted": accepted},
        )


def harmless(*values: Any) -> Harmless:
    """`harmless("auto")` also accepts null."""
    return Harmless((None, *values))


def field_error(field: str, message: str) -> PydanticCustomError:
    """A problem of one field beside another; for validators of the whole object."""
    return PydanticCustomError(FIELD, "{reason}", {"reason": message, "field": field})


def check_prompt(value: Any) -> Any:
    """A prompt of the completions API: text, texts, token ids or lists of token ids.

    By hand, because a union of four list types answers one wrong element with four errors per
    element.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise _prompt_error("must be a string, a list of strings, token ids or lists of token ids")
    if not value:
        raise _prompt_error("must not be an empty list")
    first = value[0]
    if isinstance(first, str):
        _check_each(value, lambda item: isinstance(item, str), "a string, like the first item")
    elif isinstance(first, list):
        _check_each(
            value, lambda item: isinstance(item, list) and bool(item), "a list of token ids"
        )
        for index, ids in enumerate(value):
            _check_each(ids, is_token_id, "a token id", f"item {index}, ")
    else:
        _check_each(value, is_token_id, "a token id or string")
    return value


def is_token_id(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_TOKEN_ID


def _check_each(items: Sequence[Any], good: Any, wanted: str, where: str = "") -> None:
    for index, item in enumerate(items):
        if not good(item):
            raise _prompt_error(f"{where}item {index} is not {wanted}")


def _prompt_error(message: str) -> PydanticCustomError:
    # The message is a template to pydantic; ours holds no caller's text.
    return PydanticCustomError("prompt", "{reason}", {"reason": message})


def explain(error: ValidationError, data: Any) -> tuple[str, str | None]:
    """(message, path of the field) of the most telling problem, e.g. "messages[0].content".

    `data` is what was validated: pydantic's locations also hold names of union branches, and only
    the data tells which is which. Of a union's branches the one that got deepest speaks; those that
    got equally far speak together.
    """
    problems = error.errors(include_url=False, include_input=False)
    first = _field_path(problems[0], data)
    same_field = [
        (_field_path(problem, data), problem)
        for problem in problems
        if problem["loc"][:1] == problems[0]["loc"][:1]
    ]
    path = max((path for path, _ in same_field), key=len, default=first)
    told = dict.fromkeys(problem["msg"] for p, problem in same_field if p == path)
    name = _spelled(path)
    message = " or ".join(told)
    return (f"{name}: {message}" if name else message), name or None


def _field_path(problem: ErrorDetails, data: Any) -> tuple[int | str, ...]:
    path: list[int | str] = []
    for part in problem["loc"]:
        if isinstance(data, list) and isinstance(part, int):
            path.append(part)
            data = data[part] if part < len(data) else None
        elif isinstance(data, Mapping) and isinstance(part, str):
            path.append(part)
            data = data.get(part)
    if problem["type"] in (UNKNOWN_FIELD, FIELD):
        path.append(problem["ctx"]["field"])
    return tuple(path)


def _spelled(path: Sequence[int | str]) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")
