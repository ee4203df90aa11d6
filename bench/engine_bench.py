"""The measurements of bench.engine: every engine in turn, cell by cell, round by round."""

from __future__ import annotations

import contextlib
import random
import sys
from dataclasses import dataclass

from bench.engine_attention import CONTEXT, DTYPE, LongAttention
from bench.engine_checkpoint import bfloat16_folder
from bench.engine_ours import OurEngine
from bench.engine_peer import KINDS, Peer, peer_command
from bench.engine_roofline import Rates, decode_seconds, prefill_seconds
from bench.engine_rows import Cell, Row, Samples
from bench.probe import Limits, measure_limits, typical
from triptych.hub import pull_model
from triptych.models.load import load_config
from triptych_kernels.cpu.native import native

VERIFY_CONTEXT = 512
VERIFY_REPEATS = 8
ATTENTION_ROWS = (1, 5, 16)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, in which order."""

    dtypes: tuple[str, ...]
    cells: tuple[Cell, ...]  # of phases decode, prefill and verify
    peers: tuple[str, ...]
    rounds: int
    context: int  # tokens of each prompt that is decoded from
    steps: int  # timed decode steps
    threads: int

    @property
    def batch(self) -> int:
        return max((cell.size for cell in self.cells if cell.phase == "decode"), default=1)

    @property
    def longest(self) -> int:
        prompts = [cell.size for cell in self.cells if cell.phase == "prefill"]
        return max([VERIFY_CONTEXT, *prompts])


class Bench:
    """The engines of one run, and what they have shown."""

    def __init__(self, plan: Plan, stack: contextlib.ExitStack) -> None:
        """Loads everything; peers end with `stack`. Raises PeerError."""
        self._plan = plan
        self._samples = Samples()
        self._limits: list[Limits] = []
        self._random = random.Random(0)
        self._model = pull_model("smollm2-135m")
        self._prompts = [self._prompt(plan.context) for _ in range(plan.batch)]
        self.ours = [self._start_ours(dtype) for dtype in plan.dtypes]
        self.peers = [stack.enter_context(self._start_peer(name)) for name in plan.peers]
        self._attention = None if native() is None else LongAttention(load_config(self._model))

    @property
    def limits(self) -> Limits:
        return typical(self._limits)

    def run(self) -> None:
        for number in range(self._plan.rounds):
            self._limits.append(measure_limits(self._plan.threads))
            found = self._limits[-1]
            tell(
                f"round {number + 1}: {found.read_gb_s:.1f} GB/s, "
                f"{found.bfloat16_tflop_s:.2f} TFLOP/s"
            )
            for cell in self._plan.cells:
                self._measure(cell)
            self._measure_attention()

    def rows(self) -> list[Row]:
        cells = self._plan.cells
        rows = [self._row(engine, cell) for cell in cells for engine in self.ours]
        return rows + self._attention_rows()

    def _start_ours(self, dtype: str) -> OurEngine:
        tell(f"loading {dtype}")
        plan = self._plan
        return OurEngine(self._model, dtype, self._prompts, steps=plan.steps, longest=plan.longest)

    def _start_peer(self, name: str) -> Peer:
        tell(f"starting {name}")
        plan, kind = self._plan, KINDS[name]
        weights = bfloat16_folder(self._model) if kind.dtype == "bfloat16" else self._model
        return Peer(
            name,
            peer_command(kind),
            weights,
            threads=plan.threads,
            batch=plan.batch,
            tokens=max(plan.batch * (plan.context + plan.steps + 8), plan.longest + 8),
            **kind.options,
        )

    def _measure(self, cell: Cell) -> None:
        """One cell, by everybody in turn: what disturbs one disturbs all."""
        steps = self._plan.steps
        prompt = self._prompt(cell.size if cell.phase == "prefill" else VERIFY_CONTEXT)
        for engine in self.ours:
            match cell.phase:
                case "decode":
                    tokens_s = engine.decode(cell.size, steps).tokens_s
                case "prefill":
                    tokens_s = engine.prefill(prompt).tokens_s
                case _:
                    tokens_s = cell.size / engine.verify(prompt, cell.size, VERIFY_REPEATS)
            self._note(engine.dtype, cell, tokens_s)
        for peer in self.peers:
            if not KINDS[peer.name].takes(cell.phase, cell.size):
                continue
            if cell.phase == "decode":
                timed = peer.decode(self._prompts[: cell.size], steps)
            else:
                timed = peer.prefill(prompt)
            self._note(peer.name, cell, timed.tokens_s)

    def _measure_attention(self) -> None:
        if self._attention is None:
            return
        for rows in ATTENTION_ROWS:
            seconds = self._attention.seconds(rows, VERIFY_REPEATS)
            self._note(f"attention over {CONTEXT}", Cell("attention", rows), rows / seconds)

    def _note(self, engine: str, cell: Cell, tokens_s: float) -> None:
        self._samples.add(engine, cell, tokens_s)
        tell(f"  {cell.phase} {cell.size}: {engine}, {tokens_s:.1f} tokens/s")

    def _prompt(self, tokens: int) -> list[int]:
        """Any ordinary tokens: speed does not depend on what they say."""
        return [self._random.randrange(100, 40_000) for _ in range(tokens)]

    def _row(self, engine: OurEngine, cell: Cell) -> Row:
        tokens_s = self._samples.typical(engine.dtype, cell)
        assert tokens_s is not None, "every cell was measured"
        rates = Rates(self.limits.read_gb_s, self.limits.matmul_tflop_s(engine.dtype))
        sizes, plan = engine.sizes(), self._plan
        match cell.phase:
            case "decode":
                context = plan.context + plan.steps / 2
                least = decode_seconds(sizes, rates, batch=cell.size, context=context)
            case "prefill":
                least = prefill_seconds(sizes, rates, cell.size)
            case _:
                least = decode_seconds(
                    sizes, rates, batch=1, context=VERIFY_CONTEXT, rows=cell.size
                )
        theirs = {
            peer.name: self._samples.typical(peer.name, cell)
            for peer in self.peers
            if KINDS[peer.name].dtype == engine.dtype
        }
        return Row(
            cell,
            engine.dtype,
            tokens_s,
            least * tokens_s / cell.size,
            {name: found for name, found in theirs.items() if found is not None},
            self._ratio(engine.dtype, cell) if cell.phase == "verify" else None,
        )

    def _ratio(self, engine: str, cell: Cell) -> float | None:
        """Time of the cell's step to that of a step with one row."""
        one = self._samples.typical(engine, Cell(cell.phase, 1))
        many = self._samples.typical(engine, cell)
        return None if one is None or many is None else cell.size * one / many

    def _attention_rows(self) -> list[Row]:
        if self._attention is None:
            return []
        name, found = f"attention over {CONTEXT}", []
        rates = Rates(self.limits.read_gb_s, self.limits.bfloat16_tflop_s)
        for rows in ATTENTION_ROWS:
            cell = Cell("attention", rows)
            tokens_s = self._samples.typical(name, cell)
            assert tokens_s is not None, "measured in every round"
            share = self._attention.least_seconds(rows, rates) * tokens_s / rows
            found.append(Row(cell, DTYPE, tokens_s, share, ratio=self._ratio(name, cell)))
        return found


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
