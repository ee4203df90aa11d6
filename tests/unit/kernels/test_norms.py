import pytest
import torch

from triptych_kernels.cpu.native import native
from triptych_kernels.cpu.norms import NativeNorms, reference_norm_into

pytestmark = pytest.mark.skipif(native() is None, reason="no native library here")


@pytest.mark.parametrize("size", [1, 16, 50, 576])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_normed_where_they_lie(size: int, dtype: torch.dtype) -> None:
    library = native()
    assert library is not None
    torch.manual_seed(size)
    wide, weight = torch.randn(21, 3 * size).to(dtype), torch.randn(size)
    found, wanted = torch.full((21, 2 * size), 7.0), torch.full((21, 2 * size), 7.0)
    for norm_into, out in ((NativeNorms(library), found), (reference_norm_into, wanted)):
        norm_into(wide[:, size : 2 * size], weight, 1e-5, out[:, size:])
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert bool((found[:, :size] == 7.0).all()), "and nothing else is touched"
