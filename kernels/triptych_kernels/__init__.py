"""Public ops. Each has a plain-torch twin in `reference`, which is the truth."""

from triptych_kernels.reference import (
    Linear,
    append_kv,
    apply_rotary,
    clamped_swiglu_mul,
    gelu_tanh_mul,
    layer_norm,
    pad_rows,
    page_scores,
    paged_attention,
    rms_norm,
    rotary_cos_sin,
    silu_mul,
)
from triptych_kernels.reference_delta import gated_delta
from triptych_kernels.reference_index import choose_tokens
from triptych_kernels.reference_nsa import nsa_attention
from triptych_kernels.reference_pages import choose_pages
from triptych_kernels.routing import RoutingLike, combine, route
from triptych_kernels.sampling import filter_logits, gumbel_noise

__all__ = [
    "Linear",
    "RoutingLike",
    "append_kv",
    "apply_rotary",
    "choose_pages",
    "choose_tokens",
    "clamped_swiglu_mul",
    "combine",
    "filter_logits",
    "gated_delta",
    "gelu_tanh_mul",
    "gumbel_noise",
    "layer_norm",
    "nsa_attention",
    "pad_rows",
    "page_scores",
    "paged_attention",
    "rms_norm",
    "rotary_cos_sin",
    "route",
    "silu_mul",
]
