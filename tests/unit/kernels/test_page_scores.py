"""Page scores of the native kernels are the shares of a softmax, and pages can be read apart."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from triptych.testing.kv_prompts import Prompt
from triptych.testing.native_kernels import libraries, threads
from triptych_kernels import page_scores
from triptych_kernels.cpu.native import Library
from triptych_kernels.cpu.structs import AttentionShapeStruct, JobStruct

LIBRARIES = libraries()
pytestmark = pytest.mark.skipif(not LIBRARIES, reason="no native kernels here")

# KV, head dim, group, block tokens, length, rows that score, softcap
CASES = [
    ("float32", 24, 3, 8, 61, 9, 0.0),
    ("float32", 64, 3, 16, 700, 1, 0.0),
    ("bfloat16", 64, 3, 32, 1100, 9, 0.0),
    ("bfloat16", 128, 4, 16, 129, 17, 3.0),
    ("bfloat16", 80, 1, 256, 600, 3, 0.0),
    ("int8", 64, 3, 32, 300, 9, 0.0),
]


def native_scores(
    prompt: Prompt,
    begin: int,
    end: int,
    scored: int,
    softcap: float,
    sinks: Tensor | None = None,
) -> Tensor:
    layout = prompt.pool.layout
    queries = prompt.queries[begin:end].contiguous()
    found = torch.full((layout.num_kv_heads, layout.blocks_for(end)), torch.nan)
    job = JobStruct(0, end - begin, begin, 0, prompt.blocks.data_ptr(), None, 0, 0)
    job.page_scores, job.scored_rows = found.data_ptr(), scored
    sinks_at = None if sinks is None else sinks.data_ptr()
    shape = AttentionShapeStruct(queries.shape[1], layout.head_dim**-0.5, softcap, 0, 0, sinks_at)
    pointer, number = ctypes.c_void_p, ctypes.c_int
    function = prompt.library.bind(
        "tk_page_scores", None, pointer, number, pointer, pointer, number, pointer
    )
    arguments = (ctypes.byref(shape), ctypes.byref(job), 1, queries.data_ptr())
    function(ctypes.byref(prompt.pool.cache), 0, *arguments)
    return found


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.level.name)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_scores_are_what_torch_says(
    case: tuple[str, int, int, int, int, int, float], library: Library
) -> None:
    dtype, dim, group, block_tokens, length, scored, softcap = case
    prompt = Prompt(library, dtype, dim, group, block_tokens, length).put()
    keys, _ = prompt.pool.read(prompt.blocks, length)
    begin = length - scored
    apart = torch.nn.functional.pad(keys, (0, 0, 0, 0, 0, -length % block_tokens))
    exact = page_scores(
        prompt.queries[begin:],
        apart.view(-1, block_tokens, *keys.shape[1:]),
        torch.arange(prompt.pool.layout.blocks_for(length)),
        begin,
        scale=dim**-0.5,
        softcap=softcap or None,
    )
    torch.testing.assert_close(exact.sum(-1), torch.ones(keys.shape[1]))
    rtol, atol = (1e-4, 1e-6) if dtype == "float32" else (2e-2, 1e-4)
    for count in (1, 2):
        with threads(library, count):
            found = native_scores(prompt, max(0, begin - 5), length, scored, softcap)
        torch.testing.assert_close(found, exact, rtol=rtol, atol=atol)


def test_what_falls_on_a_sink_falls_on_no_page() -> None:
    prompt = Prompt(LIBRARIES[0], "float32", 64, 3, 16, 300).put()
    sinks = torch.tensor([-60.0, 0.0, 1.0, 2.0, 5.0, 30.0])
    keys, _ = prompt.pool.read(prompt.blocks, 300)
    apart = torch.nn.functional.pad(keys, (0, 0, 0, 0, 0, 4)).view(-1, 16, *keys.shape[1:])
    exact = page_scores(
        prompt.queries[295:], apart, torch.arange(19), 295, scale=64**-0.5, sinks=sinks
    )
    assert exact.sum(-1).max() < 1 - 1e-3
    found = native_scores(prompt, 290, 300, 5, 0.0, sinks)
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_chosen_pages_are_read_as_if_they_were_all(dtype: str) -> None:
    """Rows behind a shorter table see what a sequence of these pages alone would show."""
    prompt = Prompt(LIBRARIES[0], dtype, 64, 3, 16, 320).put()
    chosen = torch.tensor([0, 3, 4, 11, 18, 19])
    job = replace(
        prompt.rows(319, 320), start=6 * 16 - 1, blocks=prompt.blocks[chosen].contiguous()
    )
    (found,) = prompt.attend(job)
    kept = (chosen[:, None] * 16 + torch.arange(16)).flatten()
    alone = Prompt(LIBRARIES[0], dtype, 64, 3, 16, 96)
    alone.keys, alone.values = prompt.keys[kept], prompt.values[kept]
    alone.put()
    (wanted,) = alone.attend(replace(job, blocks=alone.blocks))
    assert torch.equal(found, wanted)
