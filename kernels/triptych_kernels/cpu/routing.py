"""Choosing the experts of rows natively; the rules are told in src/routing.h."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from triptych_kernels.cpu.native import Library
from triptych_kernels.cpu.structs import GROUP_SCORES, SCORINGS, RoutingStruct
from triptych_kernels.routing import RoutingLike


def routing_struct(routing: RoutingLike, correction: Tensor | None) -> RoutingStruct:
    """correction [E] float32, see `triptych_kernels.route`; it must outlive the struct."""
    kept = routing.num_experts // routing.groups * routing.groups_kept
    assert routing.num_experts % routing.groups == 0, "groups are equal"
    assert 0 < routing.top_k <= kept <= routing.num_experts, "enough experts may be chosen"
    if correction is not None:
        assert correction.shape == (routing.num_experts,) and correction.is_contiguous()
        assert correction.dtype == torch.float32
    return RoutingStruct(
        routing.num_experts,
        routing.top_k,
        SCORINGS[routing.scoring],
        routing.renormalise,
        routing.scale,
        routing.groups,
        routing.groups_kept,
        GROUP_SCORES[routing.group_score],
        None if correction is None else correction.data_ptr(),
    )


class NativeRouter:
    """The twin of `triptych_kernels.route`: the same ids, weights up to roundings."""

    def __init__(
        self, library: Library, routing: RoutingLike, correction: Tensor | None = None
    ) -> None:
        self._correction = correction  # keeps alive what the struct points to
        self._struct = routing_struct(routing, correction)
        pointer = ctypes.c_void_p
        self._route: Any = library.bind(
            "tk_route", None, pointer, pointer, ctypes.c_int, pointer, pointer
        )

    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """logits [M, E] float32 → ids [M, k] int32, ascending, and weights [M, k] float32."""
        rows, experts = logits.shape
        assert experts == self._struct.experts and logits.dtype == torch.float32
        logits = logits.contiguous()
        ids = torch.empty(rows, self._struct.top_k, dtype=torch.int32)
        weights = torch.empty(rows, self._struct.top_k)
        self._route(
            ctypes.byref(self._struct), logits.data_ptr(), rows, ids.data_ptr(), weights.data_ptr()
        )
        return ids, weights
