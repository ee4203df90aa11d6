"""Public ops. Each has a plain-torch twin in `reference`, which is the truth."""

from triptych_kernels.reference import (
    Linear,
    append_kv,
    apply_rotary,
    gelu_tanh_mul,
    pad_rows,
    page_scores,
    paged_attention,
    rms_norm,
    rotary_cos_sin,
    silu_mul,
)
from triptych_kernels.sampling import filter_logits, gumbel_noise

__all__ = [
    "Linear",
    "append_kv",
    "apply_rotary",
    "filter_logits",
    "gelu_tanh_mul",
    "gumbel_noise",
    "pad_rows",
    "page_scores",
    "paged_attention",
    "rms_norm",
    "rotary_cos_sin",
    "silu_mul",
]
