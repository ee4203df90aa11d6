"""From a config to an engine: loads the model, reserves the KV pool, puts the parts together."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from transport.kv.region import Region, RegionShape
from triptych.config import ClusterConfig
from triptych.engine.backend import Backend, choose_backend
from triptych.engine.device_kv import DeviceKv, Mirror
from triptych.engine.runner import Runner, make_runner
from triptych.engine.scheduler import Scheduler
from triptych.engine.storage import KvStorage
from triptych.errors import ConfigError
from triptych.experts.make import PoolParts, pool_parts
from triptych.fingerprint import weight_fingerprint
from triptych.hub import resolve_model
from triptych.kv.hashing import root_hash
from triptych.kv.layout import KvLayout
from triptych.kv.ledger import TransferLedger
from triptych.kv.pool import BlockPool
from triptych.launch.machine import usable_cores
from triptych.models.config import ModelConfig
from triptych.models.load import load_config, load_model
from triptych.models.model import Model
from triptych.tokenizer import Tokenizer
from triptych.worker import on_states
from triptych.worker.args import WorkerArgs
from triptych.worker.on_device import check_settings, pin
from triptych_kernels.cpu.native import set_threads

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineParts:
    """Everything a worker's loop is made of. One owner: the process's main."""

    model_path: Path
    model: Model
    layout: KvLayout
    layout_text: str  # must equal the peer's
    region: Region
    pool: BlockPool
    ledger: TransferLedger
    runner: Runner
    scheduler: Scheduler
    max_model_len: int  # what the model and the KV pool both can hold
    backend: Backend
    fingerprint: str  # of the weights
    experts: PoolParts | None  # None: all feed-forward parts are computed here

    def eos_token_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """What ends an answer, by the model's configuration or by its tokenizer."""
        return (*{*self.model.config.eos_token_ids, *tokenizer.eos_token_ids},)

    def root(self, salt: str) -> bytes:
        """Parent hash of the first block of a request with this cache salt."""
        return root_hash(model="", weights="", layout=self.layout_text, salt=salt)


def build_engine(args: WorkerArgs) -> EngineParts:
    """Raises ModelError or ConfigError, with the remedy."""
    config = args.config
    threads = args.pool.threads or usable_cores()
    torch.set_num_threads(threads)
    set_threads(threads)
    kv = config.kv_of(args.pool)
    backend = choose_backend(config.dtype, kv.dtype, config.quant_group, config.device)
    path = resolve_model(config.model)
    if backend.on_triton:
        check_settings(config, load_config(path))
    on_states.check_settings(config, backend, load_config(path))
    began = time.monotonic()
    experts = None
    if config.remote_experts:
        experts = pool_parts(path, config.experts, backend, awaited=config.has_workers("ffn"))
    model = load_model(
        path,
        dtype=backend.weights,
        group=backend.group,
        packer=backend.packer,
        progress=_LoadLog(),
        distant=None if experts is None else experts.experts,
    )
    if model.is_native:
        # What torch does besides is small. Its idle threads would spin where ours compute.
        torch.set_num_threads(1)
    layout = kv_layout(model.config, kv.block_tokens, backend.kv)
    shape = RegionShape(layout.block_bytes, max(1, kv.memory // layout.block_bytes))
    try:
        region = Region.create(shape)
    except OSError as error:
        raise ConfigError(
            f"kv.memory: cannot reserve {shape.total_bytes >> 20} MiB: {error.strerror}"
        ) from error
    storage = _storage(layout, region, backend)
    engine = config.engine_of(args.pool)
    pool = BlockPool(
        shape.num_blocks,
        generations=region.generations,
        hashes=region.hashes,
        cache=engine.prefix_cache,
    )
    log.info(
        "model loaded",
        extra={
            "fields": {
                "model": str(path),
                "kernels": backend.kernels,
                "device": str(backend.device),
                "dtype": backend.weights,
                "kv_dtype": backend.kv,
                "kv_blocks": shape.num_blocks,
                "kv_tokens": shape.num_blocks * kv.block_tokens,
                "experts": "here" if experts is None else "remote",
                "seconds": round(time.monotonic() - began, 2),
            }
        },
    )
    fingerprint = weight_fingerprint(path)
    return EngineParts(
        model_path=path,
        model=model,
        layout=layout,
        layout_text=layout.describe(
            model=config.served_name,
            weights=fingerprint,
            compute=compute_identity(backend, config),
        ),
        region=region,
        pool=pool,
        ledger=TransferLedger(pool),
        runner=make_runner(model, storage, graphs=engine.cuda_graphs),
        scheduler=Scheduler(
            pool,
            block_tokens=kv.block_tokens,
            chunk_tokens=engine.chunk_tokens,
            max_running=engine.max_running,
        ),
        max_model_len=model_len(config.max_model_len, model.config.max_model_len, shape, layout),
        backend=backend,
        fingerprint=fingerprint,
        experts=experts,
    )


def _storage(layout: KvLayout, region: Region, backend: Backend) -> KvStorage | DeviceKv:
    """The region itself, or as many blocks in the device's memory. Raises ConfigError."""
    if not backend.on_triton:
        return KvStorage(layout, region.blocks)
    pin(region.blocks, backend.device)
    mirror = Mirror(region.blocks, region.generations)
    try:
        return DeviceKv(layout, region.shape.num_blocks, backend.device, mirror)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"kv.memory: {region.shape.total_bytes >> 20} MiB do not fit on {backend.device}: "
            f"{error}"
        ) from error


def compute_identity(backend: Backend, config: ClusterConfig) -> str:
    """What a token's bits depend on besides the weights: kernels, types, rows that were rounded."""
    rounded = config.remote_experts and config.experts.rows != "exact"
    return f"{backend.identity}/rows:{config.experts.rows}" if rounded else backend.identity


def kv_layout(model: ModelConfig, block_tokens: int, dtype: str) -> KvLayout:
    return KvLayout(
        num_layers=model.num_layers,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        block_tokens=block_tokens,
        dtype=dtype,
        index_dim=model.index_dim,
        state_bytes=model.state_bytes,
    )


def model_len(wanted: int | None, of_model: int, shape: RegionShape, layout: KvLayout) -> int:
    """Tokens that one request may reach. Pure.

    Raises ConfigError when `max_model_len` was set to more than the model or the pool can hold;
    without a wish, a pool that is smaller than the model's context limits it.
    """
    of_pool = shape.num_blocks * layout.block_tokens
    if wanted is None:
        return min(of_model, of_pool)
    if wanted > of_model:
        raise ConfigError(f"max_model_len: {wanted} is more than the model's context, {of_model}")
    if wanted > of_pool:
        blocks = layout.blocks_for(wanted)
        raise ConfigError(
            f"max_model_len: {wanted} tokens need {blocks} KV blocks, the pool has "
            f"{shape.num_blocks}; set kv.memory to {blocks * layout.block_bytes} or more"
        )
    return wanted


class _LoadLog:
    """Logs the progress of loading, once a second."""

    def __init__(self) -> None:
        self._next = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if total and time.monotonic() >= self._next:
            log.info("loading weights", extra={"fields": {"percent": 100 * done // total}})
            self._next += 1.0
