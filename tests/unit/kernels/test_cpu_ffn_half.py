"""The FFN half of a layer, whole and cut where its units may be elsewhere: the same bits."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from triptych.models.moe import Routing
from triptych.testing.native_kernels import libraries, threads
from triptych.testing.native_units import (
    Unit,
    random_linear,
    random_unit,
    run_in_two_places,
)
from triptych_kernels import combine, rms_norm, route
from triptych_kernels.cpu.layers import NativeLayer, NativeLayers, NativeMixture, NativePass
from triptych_kernels.cpu.native import Library
from triptych_kernels.cpu.structs import JobStruct, KvCacheStruct

LIBRARIES = libraries()
pytestmark = pytest.mark.skipif(not LIBRARIES, reason="no native kernels here")

KINDS = ["float32", "bfloat16", "int8/32", "int4/64"]
HIDDEN, INNER, EPS = 72, 40, 1e-5
ROUTING = Routing(6, 3, renormalise=True)
GROUPED = Routing(6, 2, "sigmoid", True, 2.5, groups=3, groups_kept=2, group_score="two_best")


@dataclass(frozen=True)
class Case:
    routing: Routing | None = None  # none: a dense FFN
    shared: bool = False
    gated: bool = False  # the shared expert has a gate
    bias: bool = False
    norm_behind: bool = False
    branch_scale: float = 1.0
    activation: str = "silu"


CASES = [
    Case(),
    Case(norm_behind=True, activation="gelu_tanh"),
    Case(branch_scale=0.6, bias=True),
    Case(ROUTING),
    Case(ROUTING, shared=True, gated=True),
    Case(GROUPED, shared=True),
    Case(ROUTING, bias=True, activation="clamped_swiglu"),
    Case(ROUTING, shared=True, norm_behind=True, branch_scale=0.6),
]


class Half:
    """A layer of random weights, its units here and elsewhere."""

    def __init__(self, library: Library, kind: str, case: Case) -> None:
        self.library, self.case = library, case
        self.is_float = kind == "float32"
        count = 1 if case.routing is None else case.routing.num_experts
        self.units = [self._unit(kind, 10 * expert) for expert in range(count)]
        self.shared = self._unit(kind, 77) if case.shared else None
        self.norm = 1.0 + 0.1 * noise(HIDDEN, seed=1)
        self.behind = 1.0 + 0.1 * noise(HIDDEN, seed=2) if case.norm_behind else None
        self.router = random_linear(library, "float32", (count, HIDDEN), seed=3, bias=case.bias)
        self.gate = random_linear(library, "float32", (1, HIDDEN), seed=4) if case.gated else None
        self.correction = noise(count, seed=5) if case.routing is GROUPED else None
        self.layers = NativeLayers(library, [self._layer(True), self._layer(False)], HIDDEN)

    def _unit(self, kind: str, seed: int) -> Unit:
        return random_unit(self.library, kind, HIDDEN, INNER, seed=seed, bias=self.case.bias)

    def _layer(self, here: bool) -> NativeLayer:
        case = self.case
        dense = self.units[0] if here and case.routing is None else (None, None)
        unused = random_linear(self.library, "float32", (1, 1))
        return NativeLayer(
            before_attention=self.norm,
            behind_attention=None,
            before_ffn=self.norm,
            behind_ffn=self.behind,
            query_norm=None,
            key_norm=None,
            qkv=unused,
            output=unused,
            gate_up=dense[0],
            down=dense[1],
            num_heads=1,
            scale=1.0,
            softcap=None,
            window=None,
            eps=EPS,
            activation=case.activation,
            rope=0,
            rope_dim=0,
            value_dim=0,
            sinks=None,
            mixture=None if case.routing is None else self._mixture(case.routing, here),
            branch_scale=case.branch_scale,
        )

    def _mixture(self, routing: Routing, here: bool) -> NativeMixture:
        return NativeMixture(
            routing=routing,
            correction=self.correction,
            router=self.router,
            shared=self.shared,
            shared_gate=self.gate,
            units=self.units if here else None,
            cell_dtype=self.cell_dtype,
        )

    @property
    def cell_dtype(self) -> torch.dtype:
        """What answers come back in."""
        halves = self.case.routing is not None and not self.is_float
        return torch.bfloat16 if halves else torch.float32

    def whole(self, hidden: Tensor) -> Tensor:
        hidden = hidden.clone()
        self.layers.ffn_half(0, self._start(hidden))
        return hidden

    def cut(self, hidden: Tensor) -> Tensor:
        """The same by its parts; the rows of both FFNs are computed in two other places."""
        hidden = hidden.clone()
        under_way, normed = self._start(hidden), torch.empty_like(hidden)
        ids = weights = shared = None
        if self.case.routing is not None:
            chosen = (len(hidden), self.case.routing.top_k)
            ids, weights = torch.empty(chosen, dtype=torch.int32), torch.empty(chosen)
        self.layers.ffn_front(1, under_way, normed, ids, weights)
        if self.layers.has_shared(1):
            shared = torch.empty_like(hidden)
            self.layers.shared(1, normed, shared)
        ids = torch.zeros(len(hidden), 1, dtype=torch.int32) if ids is None else ids
        cells = torch.full((ids.numel(), HIDDEN), torch.nan, dtype=self.cell_dtype)
        run_in_two_places(self.library, self.units, self.case.activation, normed, ids, cells)
        self.layers.ffn_back(1, under_way, cells, weights, shared)
        return hidden

    def _start(self, hidden: Tensor) -> NativePass:
        return self.layers.start(hidden, (JobStruct * 0)(), KvCacheStruct(), [])


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_half_whose_units_are_elsewhere_has_the_bits_of_a_whole_one(
    kind: str, case: Case
) -> None:
    for library in LIBRARIES:
        half, hidden = Half(library, kind, case), noise(40, HIDDEN, seed=9)
        wanted = half.whole(hidden)
        assert wanted.isfinite().all()
        assert not torch.equal(wanted, hidden)
        assert torch.equal(half.cut(hidden), wanted)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_half_do_not_meet(kind: str, case: Case) -> None:
    half, hidden = Half(LIBRARIES[0], kind, case), noise(40, HIDDEN, seed=9)
    wanted = half.whole(hidden)
    for number, (begin, end) in enumerate([(0, 1), (1, 9), (9, 40), (39, 40), (0, 33)]):
        with threads(LIBRARIES[0], 1 + number % 2):
            assert torch.equal(half.whole(hidden[begin:end]), wanted[begin:end])
            assert torch.equal(half.cut(hidden[begin:end]), wanted[begin:end])


@pytest.mark.parametrize("case", [case for case in CASES if case.routing], ids=str)
def test_a_mixture_computes_what_torch_computes(case: Case) -> None:
    half, hidden = Half(LIBRARIES[0], "float32", case), noise(40, HIDDEN, seed=9)
    assert case.routing is not None
    normed = rms_norm(hidden, half.norm, EPS)
    ids, weights = route(half.router(normed), case.routing, half.correction)
    cells = [
        ffn(half.units[expert], normed[row // ids.shape[1]], case.activation)
        for row, expert in enumerate(ids.flatten().tolist())
    ]
    shared = None
    if half.shared is not None:
        shared = torch.stack([ffn(half.shared, row, case.activation) for row in normed])
        shared = shared if half.gate is None else shared * torch.sigmoid(half.gate(normed))
    branch = combine(torch.stack(cells), weights, shared)
    branch = branch if half.behind is None else rms_norm(branch, half.behind, EPS)
    wanted = hidden + case.branch_scale * branch
    torch.testing.assert_close(half.whole(hidden), wanted, rtol=1e-4, atol=1e-5)


def ffn(unit: Unit, row: Tensor, activation: str) -> Tensor:
    gate, up = unit[0](row[None]).chunk(2, dim=1)
    if activation == "clamped_swiglu":
        gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0) + 1.0
    factor = 1.702 if activation == "clamped_swiglu" else 1.0
    return unit[1](gate * torch.sigmoid(factor * gate) * up)[0]


def test_no_rows_are_no_rows() -> None:
    for case in CASES:
        half = Half(LIBRARIES[0], "bfloat16", case)
        assert half.whole(torch.empty(0, HIDDEN)).shape == (0, HIDDEN)
        assert half.cut(torch.empty(0, HIDDEN)).shape == (0, HIDDEN)
