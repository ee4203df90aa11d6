"""What a request must be before an engine may see it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from transport.protos import worker_pb2 as pb
from triptych.errors import ContextLengthError, RequestError
from triptych.models.config import ModelConfig
from triptych.wire import sparse_of


def check_prompt(prompt_ids: Sequence[int], vocab_size: int, max_model_len: int) -> None:
    """Raises RequestError for a prompt that this worker can never serve."""
    if not prompt_ids:
        raise RequestError("the prompt is empty", param="prompt")
    if len(prompt_ids) >= max_model_len:
        raise ContextLengthError(
            f"the prompt has {len(prompt_ids)} tokens, the context holds {max_model_len} "
            "and at least one must be left for the answer",
            param="prompt",
        )
    if max(prompt_ids) >= vocab_size:
        raise RequestError(
            f"token id {max(prompt_ids)} is not in the vocabulary of {vocab_size}", param="prompt"
        )


def check_resumed(request: pb.GenerateRequest, vocab_size: int, max_model_len: int) -> None:
    """Raises RequestError for a request that cannot have got so far, or has nothing left to do."""
    seen, n = set[int](), max(1, request.n)
    for resumed in request.resumed:
        problem = ""
        if resumed.choice >= n or resumed.choice in seen:
            problem = f"named twice, or not one of {n}"
        elif not resumed.done and len(resumed.token_ids) >= request.sampling.max_tokens:
            problem = f"has all of its {request.sampling.max_tokens} tokens"
        elif len(request.prompt_ids) + len(resumed.token_ids) >= max_model_len:
            problem = f"is longer than the context, {max_model_len}"
        elif max(resumed.token_ids, default=0) >= vocab_size:
            problem = f"holds a token id that is not in the vocabulary of {vocab_size}"
        if problem:
            raise RequestError(f"resumed: choice {resumed.choice}: {problem}", param="resumed")
        seen.add(resumed.choice)
    if sum(resumed.done for resumed in request.resumed) == n:
        raise RequestError(
            "resumed: every choice is done; there is nothing to ask", param="resumed"
        )


def check_speculation(asked: pb.Speculation, drafters: Collection[str]) -> None:
    """Raises RequestError for drafters that this worker does not have."""
    unknown = [name for name in asked.drafters if name not in drafters]
    if unknown:
        known = ", ".join(drafters) or "none: speculation is off"
        raise RequestError(
            f"speculation.drafters: no drafter {unknown[0]!r} here; there are {known}",
            param="speculation",
        )


def check_sparse(
    request: pb.GenerateRequest | pb.PrefillRequest, kernels: str, model: ModelConfig
) -> None:
    """Raises RequestError where attention cannot leave out what is asked."""
    sparse = sparse_of(request)
    if sparse is None:
        return
    if model.chooses:
        raise RequestError(
            "sparse_attention: this model chooses by itself what it attends to; leave it out, or "
            'say "off"',
            param="sparse_attention",
        )
    if model.delta is not None:
        raise RequestError(
            "sparse_attention: this model attends in plain torch, which skips nothing; leave it "
            'out, or say "off"',
            param="sparse_attention",
        )
    if sparse.pages is not None:
        _check_pages(kernels, model)
    if sparse.skips and kernels == "torch":
        raise RequestError(
            "sparse_attention: needs the native kernels or those of device: cuda, and this worker "
            'runs neither; leave it out, or say "off"',
            param="sparse_attention",
        )


def _check_pages(kernels: str, model: ModelConfig) -> None:
    remedy = 'leave out sparse_attention.pages, or say "sparse_attention": "off"'
    if model.latent is not None:
        raise RequestError(
            "sparse_attention: pages are not chosen for models with latent attention (MLA), which "
            f"this one is; {remedy}",
            param="sparse_attention",
        )
    if kernels.startswith("triton"):
        raise RequestError(
            "sparse_attention: pages are not chosen by the kernels of device: cuda; "
            f"{remedy}, or set device: cpu",
            param="sparse_attention",
        )


def check_sampling(sampling: pb.Sampling, vocab_size: int) -> None:
    """Raises RequestError for token ids that the model's head does not have."""
    for param, ids in (
        ("logit_bias", sampling.logit_bias),
        ("stop_token_ids", sampling.stop_token_ids),
    ):
        worst = max(ids, default=0)
        if worst >= vocab_size:
            raise RequestError(
                f"{param}: token id {worst} is not in the vocabulary of {vocab_size}", param=param
            )
