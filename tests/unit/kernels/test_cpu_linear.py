"""Linear layers of the native kernels: right, and a row's bits are its own."""

from __future__ import annotations

import math
import os
import threading
import warnings
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from triptych.testing.native_kernels import apply_linear, libraries, threads
from triptych_kernels import gelu_tanh_mul, silu_mul
from triptych_kernels.cpu.linear import NativeLinear, NativePacker
from triptych_kernels.cpu.native import Library
from triptych_kernels.quant import Affine

LIBRARIES = libraries()
pytestmark = pytest.mark.skipif(not LIBRARIES, reason="no native kernels here")

KINDS = [
    "float32",
    "bfloat16",
    *(f"int{bits}/{group}" for bits in (4, 8) for group in (32, 64, 128)),
]
SHAPES = [(64, 64), (96, 576), (50, 100), (33, 200), (1, 1), (17, 31), (160, 129), (576, 1536)]
ROWS = (1, 2, 3, 4, 5, 15, 16, 17, 31, 32, 33, 100, 257, 300)
STORE, ADD, SILU_MUL, GELU_MUL = range(4)


@dataclass(frozen=True)
class Weight:
    """One matrix as the packer gets it, and as exact numbers."""

    packed: Tensor | Affine
    exact: Tensor  # float32 [N, K]
    bias: Tensor | None

    def pack(self, library: Library, *, gated: bool = False) -> NativeLinear:
        packer = NativePacker(library)
        if isinstance(self.packed, Affine):
            return packer.affine(self.packed, self.bias, gated=gated)
        return packer.dense(self.packed, self.bias, gated=gated)

    def dense_result(self, x: Tensor) -> Tensor:
        """float64, of inputs rounded as the kind rounds them."""
        if isinstance(self.packed, Affine) or self.packed.dtype == torch.bfloat16:
            x = x.bfloat16()
        y = x.double() @ self.exact.double().T
        return y if self.bias is None else y + self.bias


def make_weight(kind: str, rows: int, columns: int, *, bias: bool = False) -> Weight:
    source = torch.Generator().manual_seed(rows * 10007 + columns)
    shift = torch.randn(rows, generator=source) if bias else None
    if not kind.startswith("int"):
        exact = torch.randn(rows, columns, generator=source) / math.sqrt(columns)
        packed = exact.to(getattr(torch, kind))
        return Weight(packed, packed.float(), shift)
    bits, group = map(int, kind.removeprefix("int").split("/"))
    groups = -(-columns // group)
    q = torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8, generator=source)
    scale = (torch.rand(rows, groups, generator=source) + 0.5) * (0.1 / 2**bits)
    low = -scale * 2 ** (bits - 1) * (0.9 + 0.2 * torch.rand(rows, groups, generator=source))
    affine = Affine(q, scale.half(), low.half(), bits, group)
    return Weight(affine, in_bfloat16(affine), shift)


def in_bfloat16(affine: Affine) -> Tensor:
    """What the kernels make of a weight, as float32: scale × q + low, fused, then rounded."""
    scale, low = (
        part.double().repeat_interleave(affine.group, 1)[:, : affine.q.shape[1]]
        for part in (affine.scale, affine.low)
    )
    return (scale * affine.q + low).float().bfloat16().float()  # exact in float64 until then


def inputs(rows: int, columns: int) -> Tensor:
    """Rows of very different size."""
    source = torch.Generator().manual_seed(columns)
    sizes = torch.exp(torch.randn(rows, 1, generator=source))
    return torch.randn(rows, columns, generator=source) * sizes


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Of the worst row."""
    return float(((found - exact).norm(dim=1) / exact.norm(dim=1)).max())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_multiplies_by_its_weight(kind: str, shape: tuple[int, int]) -> None:
    weight = make_weight(kind, *shape, bias=shape[0] % 2 == 0)
    x = inputs(40, shape[1])
    for library in LIBRARIES:
        assert relative_error(weight.pack(library)(x).double(), weight.dense_result(x)) < 1e-6


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_has_the_same_bits_beside_any_others(kind: str, shape: tuple[int, int]) -> None:
    library = LIBRARIES[0]
    weight = make_weight(kind, *shape, bias=True)
    linear, x = weight.pack(library), inputs(300, shape[1])
    whole = linear(x)
    for number, rows in enumerate(ROWS):
        begin = (number * 7) % (301 - rows)
        with threads(library, 1 + number % 3):
            part = linear(x[begin : begin + rows])
        assert torch.equal(part, whole[begin : begin + rows]), f"{rows} rows from {begin}"
    assert torch.equal(linear(x), whole)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_cpu_computes_the_same_float32(shape: tuple[int, int]) -> None:
    weight, x = make_weight("float32", *shape, bias=True), inputs(21, shape[1])
    answers = [weight.pack(library)(x) for library in LIBRARIES]
    assert all(torch.equal(answer, answers[0]) for answer in answers)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("int")])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 19, 70])
def test_an_integer_layer_has_the_bits_of_its_weights_in_bfloat16(
    rows: int, kind: str, shape: tuple[int, int]
) -> None:
    weight, x = make_weight(kind, *shape), inputs(rows, shape[1])
    for library in LIBRARIES:
        plain = NativePacker(library).dense(weight.exact.bfloat16())
        assert torch.equal(weight.pack(library)(x), plain(x))


@pytest.mark.parametrize("kind", KINDS)
def test_results_can_be_added_to_what_is_there(kind: str) -> None:
    library, weight = LIBRARIES[0], make_weight(kind, 50, 100, bias=True)
    linear, x = weight.pack(library), inputs(35, 100)
    before = inputs(35, 50)
    after = apply_linear(library, linear, x, before.clone(), ADD)
    assert torch.equal(after, before + linear(x))


@pytest.mark.parametrize("inner", [16, 24, 40, 48, 96, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_a_gated_layer_gives_gate_then_up_whatever_its_size(kind: str, inner: int) -> None:
    weight, x = make_weight(kind, 2 * inner, 72, bias=True), inputs(18, 72)
    for library in LIBRARIES:
        plain, gated = weight.pack(library), weight.pack(library, gated=True)
        assert torch.equal(gated(x), plain(x))


@pytest.mark.parametrize("inner", [16, 24, 40, 96])
@pytest.mark.parametrize("action", [SILU_MUL, GELU_MUL], ids=["silu", "gelu"])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int4/32", "int8/64"])
def test_gates_are_applied_behind_the_product(kind: str, action: int, inner: int) -> None:
    weight, x = make_weight(kind, 2 * inner, 72, bias=True), inputs(300, 72)
    gate = silu_mul if action == SILU_MUL else gelu_tanh_mul
    width = -(-inner // 16) * 16
    for library in LIBRARIES:
        wanted = gate(*weight.pack(library)(x).chunk(2, dim=1))  # 1 + tanh loses digits near −1
        linear = weight.pack(library, gated=True)
        whole = apply_linear(library, linear, x, torch.empty(300, width), action)[:, :inner]
        torch.testing.assert_close(whole, wanted, rtol=2e-6, atol=1e-5)
        for begin, end in ((0, 1), (3, 8), (280, 300), (10, 43)):
            out = torch.empty(end - begin, width)
            part = apply_linear(library, linear, x[begin:end], out, action)
            assert torch.equal(part[:, :inner], whole[begin:end])


@pytest.mark.parametrize("kind", KINDS)
def test_an_embedding_reads_the_rows_that_the_layer_computes_with(kind: str) -> None:
    weight = make_weight(kind, 77, 200)
    ids = torch.tensor([76, 0, 31, 32, 0])
    for library in LIBRARIES:
        assert torch.equal(weight.pack(library).row(ids), weight.exact[ids])


@pytest.mark.parametrize("kind", KINDS)
def test_no_rows_are_no_rows(kind: str) -> None:
    linear = make_weight(kind, 40, 60).pack(LIBRARIES[0])
    assert linear(torch.empty(0, 60)).shape == (0, 40)
    assert linear.row(torch.empty(0, dtype=torch.int64)).shape == (0, 60)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_is_not_a_number_says_so_and_harms_no_other(kind: str, bad: float) -> None:
    weight, x = make_weight(kind, 40, 150), inputs(33, 150)
    broken = x.clone()
    broken[20, 149] = bad
    rest = [row for row in range(33) if row != 20]
    for library in LIBRARIES:
        linear = weight.pack(library)
        found = linear(broken)
        assert not found[20].isfinite().any()
        assert torch.equal(found[rest], linear(x)[rest])
        assert torch.equal(linear(broken[20:21]).isfinite(), found[20:21].isfinite())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("kind", ["int4/32", "int8/64"])
def test_a_weight_that_is_not_a_number_shows_whatever_the_number_of_rows(
    kind: str, bad: float
) -> None:
    affine = make_weight(kind, 40, 150).packed
    assert isinstance(affine, Affine)
    scale = affine.scale.clone()
    scale[5, 1] = bad
    x = inputs(20, 150)
    for library in LIBRARIES:
        sound = NativePacker(library).affine(affine)(x)
        linear = NativePacker(library).affine(replace(affine, scale=scale))
        for rows in (1, 3, 20):
            found = linear(x[:rows])
            assert not found[:, 5].isfinite().any()
            assert torch.equal(found[:, :5], sound[:rows, :5])
            assert torch.equal(found[:, 6:], sound[:rows, 6:])


def test_the_smallest_and_the_largest_inputs_stay_finite() -> None:
    weight = make_weight("int8/32", 40, 64)
    x = torch.stack([torch.full((64,), size) for size in (0.0, 1e-45, 1e-39, 1e-30, 1e30)])
    exact = weight.dense_result(x)
    found = weight.pack(LIBRARIES[0])(x).double()
    torch.testing.assert_close(found, exact, rtol=1e-2, atol=1e-36)


def test_calls_from_two_threads_do_not_meet() -> None:
    library = LIBRARIES[0]
    layers = [make_weight(kind, 576, 320).pack(library) for kind in ("bfloat16", "int4/32")]
    x = inputs(65, 320)
    alone = [layer(x) for layer in layers]
    wrong: list[int] = []

    def call(number: int) -> None:
        for _ in range(50):
            if not torch.equal(layers[number](x), alone[number]):
                wrong.append(number)

    with threads(library, 3):
        callers = [threading.Thread(target=call, args=(number,)) for number in (0, 1, 0)]
        for caller in callers:
            caller.start()
        with threads(library, 2):
            for caller in callers:
                caller.join()
    assert not wrong


def test_a_forked_child_can_compute() -> None:
    library = LIBRARIES[0]
    linear, x = make_weight("bfloat16", 576, 320).pack(library), inputs(40, 320)
    with threads(library, 2), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
        wanted = linear(x)
        child = os.fork()
        if child == 0:
            os._exit(0 if compute_in_child(library, linear, x, wanted) else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert torch.equal(linear(x), wanted)


def compute_in_child(library: Library, linear: NativeLinear, x: Tensor, wanted: Tensor) -> bool:
    alone = torch.equal(linear(x), wanted)
    with threads(library, 2):
        return alone and torch.equal(linear(x), wanted)
