"""Where the time of one answer went, as lines for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from triptych.launch.client import Answer
from triptych.launch.console import Row


def timing_rows(answer: Answer) -> list[Row]:
    """Empty when the answer carries no timings."""
    timings = answer.timings
    if timings is None:
        return []
    seen = f"{_ms(answer.arrivals[0] * 1e3)} at this client" if answer.arrivals else ""
    rows = [
        Row("queue", _ms(timings["queue_ms"]), "from arrival to the first compute"),
        Row("prefill", _ms(timings["prefill_ms"]), _prompt_note(timings)),
        _transfer_row(timings),
        Row("first token", _ms(timings["first_token_ms"]), seen),
    ]
    gap_s = answer.median_gap_s
    if gap_s is not None:
        rows.append(Row("next tokens", _ms(gap_s * 1e3), "median between two of them"))
    rows.append(Row("answer", f"{timings['completion_tokens']} tokens", _decode_note(answer)))
    rows += [Row("fallback", "", reason) for reason in timings["fallbacks"]]
    return rows


def byte_size(count: float) -> str:
    """`count` bytes in the largest binary unit that leaves at least 1 before the point."""
    unit = "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if count < 1024:
            break
        count, unit = count / 1024, larger
    return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"


def _prompt_note(timings: Mapping[str, Any]) -> str:
    where = timings["prefill_worker"] or "the decode worker"
    tokens = f"{timings['prompt_tokens']} prompt tokens"
    if timings["cached_tokens"]:
        tokens += f", {timings['cached_tokens']} of them cached"
    return f"{tokens}, on {where}"


def _transfer_row(timings: Mapping[str, Any]) -> Row:
    if not timings["kv_path"]:
        return Row("transfer", "none", "the prompt was prefilled where it is decoded")
    moved = f"{byte_size(timings['kv_bytes'])} of KV over {timings['kv_path']}"
    hidden = f"{_ms(timings['hidden_ms'])} of {_ms(timings['fetch_ms'])} hidden behind prefill"
    return Row("transfer", _ms(timings["transfer_ms"]), f"{moved}; {hidden}")


def _decode_note(answer: Answer) -> str:
    gap_s = answer.median_gap_s
    rate = f"{1 / gap_s:.0f} tokens/s" if gap_s else ""
    ended = f"ended by {answer.finish_reason}" if answer.finish_reason else ""
    return ", ".join(part for part in (rate, ended) if part)


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.1f} ms" if milliseconds < 100 else f"{milliseconds:.0f} ms"
