"""When a sequence ends. Pure."""

from __future__ import annotations

from triptych.engine.sequence import Sequence
from triptych.request import FinishReason


def check_finish(
    sequence: Sequence, token: int, eos_token_ids: tuple[int, ...], max_model_len: int
) -> None:
    """Sets the finish and stop reason if `token`, just appended, was the last one.

    Order: end of sequence, stop token, stop string, end of the grammar, then length. Before
    `min_tokens` no stop counts; a stop string that completes earlier is passed over.
    """
    params = sequence.params
    assert params is not None
    num_output = sequence.num_output
    matched = sequence.stop_watch.push(token) if sequence.stop_watch else None
    if num_output >= params.min_tokens:
        if token in eos_token_ids and not params.ignore_eos:
            sequence.finish_reason = FinishReason.STOP
        elif token in params.stop_token_ids:
            sequence.finish_reason, sequence.stop_reason = FinishReason.STOP, token
        elif matched is not None:
            sequence.finish_reason, sequence.stop_reason = FinishReason.STOP, matched
        elif sequence.constraint is not None and sequence.constraint.is_complete(sequence.tokens):
            sequence.finish_reason = FinishReason.STOP
    if sequence.finish_reason is None and (
        num_output >= params.max_tokens or len(sequence.tokens) >= max_model_len
    ):
        sequence.finish_reason = FinishReason.LENGTH
