"""`device: cuda`: what it needs, what it refuses, which steps are recorded; and whole answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from decode_worker.loop import DecodeLoop
from decode_worker.speculate.fixed import Fixed
from decode_worker.speculate.speculator import Speculator
from transport.protos import worker_pb2 as pb
from triptych.config import parse_config
from triptych.drafters.ngram import NgramDrafter
from triptych.engine import backend
from triptych.engine.backend import choose_backend, resolve_cuda_types
from triptych.engine.device_kv import DeviceKv, Mirror
from triptych.engine.rows import RowJob
from triptych.engine.runner import Runner, make_runner
from triptych.engine.sampler import Sampler
from triptych.engine.scheduler import Scheduler
from triptych.engine.sequence import Sequence
from triptych.engine.step_graph import Bucket, DecodeBuffers, bucket_for
from triptych.engine.storage import plain_storage
from triptych.engine.triton_bundles import Bundle
from triptych.errors import ConfigError, ModelError, RequestError
from triptych.kv.pool import BlockPool
from triptych.models.load import load_config, load_model
from triptych.obs.metrics import WorkerMetrics, new_registry
from triptych.request import SamplingParams
from triptych.testing.checkpoints import tiny_checkpoint
from triptych.testing.on_triton import BLOCK_TOKENS, TINY, layout_of, sequence_of
from triptych.worker.check import check_sparse
from triptych.worker.on_device import check_settings, make_sampler
from triptych_kernels.triton import common

PROMPTS = [[5, 6, 7, 5, 6, 7, 5, 6], [9, 8, 40]]
NUM_BLOCKS = 8


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"), "llama", **TINY)


def answers(runner: Runner, sampler: Sampler, pool: BlockPool, drafts: int = 0) -> list[list[int]]:
    """Both prompts side by side through a home's loop: one greedy, one sampled with penalties."""
    params = [
        SamplingParams(seed=1, max_tokens=4, temperature=0.0, ignore_eos=True),
        SamplingParams(
            seed=2, max_tokens=3, temperature=0.8, presence_penalty=0.5, ignore_eos=True
        ),
    ]
    scheduler = Scheduler(pool, block_tokens=BLOCK_TOKENS, chunk_tokens=32, max_running=4)
    drafters = {"ngram": NgramDrafter(1, 2)} if drafts else None
    speculator = Speculator(
        scheduler,
        drafters,
        Fixed("ngram", drafts) if drafts else None,
        max_model_len=64,
        vocab_size=TINY["vocab_size"],
    )
    loop = DecodeLoop(
        scheduler,
        runner,
        sampler,
        speculator,
        lambda outputs: None,
        WorkerMetrics(new_registry()),
        eos_token_ids=(),
        max_model_len=64,
    )
    sequences = [
        Sequence(str(number), list(prompt), b"root", BLOCK_TOKENS, params=of)
        for number, (prompt, of) in enumerate(zip(PROMPTS, params, strict=True))
    ]
    for sequence in sequences:
        loop.submit(sequence)
    while loop.step():
        pass
    assert drafts == 0 or sequences[0].num_drafted > 0
    return [sequence.tokens[sequence.num_prompt :] for sequence in sequences]


def test_the_engine_says_with_drafts_what_it_says_on_the_cpu_without(checkpoint: Path) -> None:
    """As a worker is put together, mirror and sampler on the device included."""
    found = choose_backend("float32", "auto", device="cuda")
    model = load_model(checkpoint, dtype=found.weights, packer=found.packer)
    layout = layout_of(model, found.kv)
    region = np.zeros((NUM_BLOCKS, layout.block_bytes), dtype=np.uint8)
    pool = BlockPool(NUM_BLOCKS)
    kv = DeviceKv(layout, NUM_BLOCKS, found.device, Mirror(region, pool.generations))
    said = answers(make_runner(model, kv), make_sampler((), on_triton=True), pool, drafts=3)
    plain = load_model(checkpoint, dtype="float32")
    runner = make_runner(plain, plain_storage(layout, NUM_BLOCKS))
    assert said == answers(runner, Sampler(()), BlockPool(NUM_BLOCKS))


@pytest.mark.parametrize(
    ("rows", "tokens", "expected"),
    [
        (1, 1, Bucket(1, 1024)),
        (3, 1024, Bucket(4, 1024)),
        (4, 1025, Bucket(4, 2048)),
        (33, 5000, Bucket(64, 6000)),
        (64, 6000, Bucket(64, 6000)),
        (65, 10, None),
        (0, 10, None),
    ],
)
def test_a_step_gets_the_smallest_bucket_that_holds_it(
    rows: int, tokens: int, expected: Bucket | None
) -> None:
    assert bucket_for(rows, tokens, 6000) == expected


def test_bundles_that_share_a_prefix_are_a_bucket_of_their_own() -> None:
    assert bucket_for(7, 5000, 8192, bundles=3) == Bucket(8, 8192, 4)


def test_a_step_without_bundles_reads_nothing_together(device: torch.device) -> None:
    """Whatever the bundles of the step before shared."""
    buffers = DecodeBuffers(Bucket(4, 2048, 2), BLOCK_TOKENS, device)
    system = list(range(1024 // BLOCK_TOKENS))
    jobs = [RowJob(sequence_of([7] * 1030, [*system, 70 + n]), 1029, 1030) for n in range(3)]
    buffers.fill(jobs, [Bundle(2, 1)])
    assert buffers.shared.own[:, 0].tolist() == [1, 1, 0, 0]
    assert buffers.shared.splits.tolist() == [[0, 1], [0, 0]]
    assert buffers.shared.row_starts.tolist() == [0, 2, 2]
    buffers.fill(jobs)
    assert buffers.shared.own[:, 0].tolist() == [0, 0, 0, 0]
    assert buffers.shared.row_starts.tolist() == [0, 0, 0]


def test_a_short_context_has_one_bucket_of_tokens() -> None:
    assert bucket_for(2, 30, 100) == Bucket(2, 1024)


def test_a_step_leaves_nothing_of_the_one_before_in_its_padding(device: torch.device) -> None:
    buffers = DecodeBuffers(Bucket(4, 1024), BLOCK_TOKENS, device)

    def jobs(count: int) -> list[RowJob]:
        return [RowJob(sequence_of([7] * 20, [2, 3 + n]), 19, 20) for n in range(count)]

    buffers.fill(jobs(4))
    buffers.fill(jobs(3))
    assert buffers.slots.tolist() == [51, 67, 83, -1]
    assert buffers.lengths.tolist() == [20, 20, 20, 0]
    assert buffers.positions.tolist() == [19, 19, 19, 0]
    assert buffers.tables[:, :3].tolist() == [[2, 3, 0], [2, 4, 0], [2, 5, 0], [0, 0, 0]]


def test_without_a_cuda_device_the_error_names_the_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        ConfigError,
        match="device: cuda was asked for, torch sees no CUDA device: install the CUDA build of "
        "torch or set device: cpu",
    ):
        choose_backend("auto", "auto", device="cuda")


def test_int8_kv_is_refused_on_a_device() -> None:
    with pytest.raises(ConfigError, match="kv.dtype: device: cuda has no kernel that appends int8"):
        choose_backend("auto", "int8", device="cuda")


def test_fp8_is_refused_where_nothing_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="dtype: fp8 is computed by device: cuda alone: set dtyp"):
        choose_backend("fp8", "auto")
    assert resolve_cuda_types("fp8", "auto") == ("fp8", "bfloat16")
    monkeypatch.setattr(common, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(ConfigError, match="dtype: fp8 needs a GPU of compute capability 8.9 or"):
        choose_backend("fp8", "auto", device="cuda")


def test_auto_is_the_cpu_as_long_as_no_gpu_has_run_this() -> None:
    assert choose_backend("float32", "auto", device="auto").device == backend.CPU
    assert not choose_backend("float32", "auto", device="auto").on_triton


def test_backends_of_different_kernels_do_not_exchange_kv() -> None:
    on_cuda, on_cpu = (choose_backend("float32", "auto", device=of) for of in ("cuda", "cpu"))  # type: ignore[arg-type]
    assert on_cuda.identity != on_cpu.identity


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"experts": {"run": "remote"}}, "experts.run: device: cuda computes all layers itself"),
        (
            {"speculation": {"max_nodes": 65}},
            "max_nodes: device: cuda verifies up to 64 tokens",
        ),
        (
            {"speculation": {"drafters": [{"kind": "draft_model", "model": "x"}]}},
            "speculation.drafters: device: cuda does not run 'draft_model' yet",
        ),
    ],
    ids=["experts", "max_nodes", "drafters"],
)
def test_settings_that_do_not_run_on_a_device_are_refused(
    checkpoint: Path, settings: dict[str, Any], told: str
) -> None:
    model = load_config(checkpoint)
    check_settings(parse_config({"device": "cuda"}), model)
    with pytest.raises(ConfigError, match=told):
        check_settings(parse_config({"device": "cuda", **settings}), model)


@pytest.mark.parametrize("kernels", ["triton-interpreted", "triton-sm_90", "avx2"])
def test_sparse_attention_is_refused_by_plain_torch_alone(checkpoint: Path, kernels: str) -> None:
    request = pb.GenerateRequest(sparse_attention=pb.SparseAttention(scale=1.0))
    model = load_config(checkpoint)
    check_sparse(request, kernels, model)
    with pytest.raises(RequestError, match="native kernels or those of device: cuda"):
        check_sparse(request, "torch", model)


@pytest.mark.parametrize(
    ("family", "told"),
    [
        ("olmoe", "norms over all heads of a row yet, and olmoe has them: set device: cpu"),
        ("deepseek_v3", "attention out of low ranks"),
    ],
)
def test_families_that_do_not_run_on_a_device_are_refused(
    tmp_path: Path, family: str, told: str
) -> None:
    tiny_checkpoint(tmp_path, family)
    with pytest.raises(ModelError, match=told):
        check_settings(parse_config({"device": "cuda"}), load_config(tmp_path))
