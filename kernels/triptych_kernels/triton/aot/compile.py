"""Compiles a case for an architecture and measures what came out.

Needs no driver and no GPU: Triton's own assembler makes the machine code, and the disassembler that
comes with it shows which instructions are in there. So this proves that a kernel compiles, what it
occupies, and that loads are pipelined and products go to tensor cores. Nothing about its speed.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from triptych_kernels.triton.aot.case import AotCase
from triptych_kernels.triton.common import NO_FUSION


@dataclass(frozen=True)
class Architecture:
    name: str
    capability: int
    shared_of_cta: int  # bytes that one CTA may have
    shared_of_sm: int  # bytes that all CTAs of an SM share, 1 KiB of each for the system
    registers_of_sm: int = 65536
    threads_of_sm: int = 2048
    ctas_of_sm: int = 32


ARCHITECTURES = (
    Architecture("sm_80", 80, 163 * 1024, 164 * 1024),  # A100
    Architecture("sm_90", 90, 227 * 1024, 228 * 1024),  # H100, H200
    Architecture("sm_100", 100, 227 * 1024, 228 * 1024),  # B200
)

# sm_80: HMMA; sm_90: HGMMA where a tile has 64 rows or more, else HMMA; sm_100: UTCHMMA likewise.
_MMA = re.compile(r"\b(UTC[A-Z]*MMA|HGMMA|QGMMA|IGMMA|HMMA|QMMA|IMMA|DMMA)\b")
_ASYNC_COPY = re.compile(r"\b(LDGSTS|UTMALDG)\b")
_LOCAL = re.compile(r"\b(?:STL|LDL)\b")
# What the compiler itself made of a product and a sum; quotients are expanded later, and exact.
_FUSED = re.compile(r"\bfma\.rn\b")
_USAGE = re.compile(r"\b(REG|STACK|LOCAL):(\d+)")


@dataclass(frozen=True)
class Measured:
    """What one kernel is made of on one architecture."""

    registers: int  # of a thread
    spills: int  # instructions that load from or store to local memory, and bytes of stack
    shared: int  # bytes of a CTA
    mma: dict[str, int]  # tensor-core instructions by kind
    async_copies: int
    ctas: int  # per SM, by registers, threads and shared memory

    def golden(self) -> dict[str, object]:
        return asdict(self)


def measure(case: AotCase, arch: Architecture) -> Measured:
    """Compiles; raises what the compiler raises."""
    kernel = triton.compile(
        _source(case),
        target=GPUTarget("cuda", arch.capability, 32),
        options={"num_warps": case.num_warps, "num_stages": case.num_stages, **NO_FUSION},
    )
    fused = _FUSED.findall(kernel.asm["ptx"]) if case.exact else []
    assert not fused, f"{case.name}: {len(fused)} products are fused with sums"
    usage, sass = _disassemble(kernel.asm["cubin"])
    shared = int(kernel.metadata.shared)
    registers = usage["REG"]
    kinds = _MMA.findall(sass)
    return Measured(
        registers=registers,
        spills=usage["STACK"] + usage["LOCAL"] + len(_LOCAL.findall(sass)),
        shared=shared,
        mma={kind: kinds.count(kind) for kind in sorted(set(kinds))},
        async_copies=len(_ASYNC_COPY.findall(sass)),
        ctas=_ctas(arch, registers, 32 * int(kernel.metadata.num_warps), shared),
    )


def complaints(case: AotCase, arch: Architecture, found: Measured) -> list[str]:
    """What must hold with every version of the compiler, and does not."""
    where = f"{case.name} on {arch.name}"
    told = []
    if found.spills and not case.spill_reason:
        told.append(f"{where}: {found.spills} spills, and the case gives no reason")
    if found.shared > arch.shared_of_cta:
        told.append(f"{where}: {found.shared} bytes of shared memory, limit {arch.shared_of_cta}")
    if found.ctas == 0:
        told.append(f"{where}: not one CTA fits into an SM")
    if case.mma and not found.mma:
        told.append(f"{where}: no tensor-core instruction")
    if found.async_copies < case.async_copies:
        told.append(
            f"{where}: {found.async_copies} asynchronous copies, expected {case.async_copies}: "
            "a load fell out of the pipeline"
        )
    return told


def _source(case: AotCase) -> ASTSource:
    names = case.kernel.arg_names
    known = {*case.signature, *case.constexprs}
    assert known == set(names), f"{case.name}: arguments differ: {sorted(known ^ set(names))}"
    signature = {name: case.signature.get(name, "constexpr") for name in names}
    return ASTSource(
        fn=case.kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in case.constexprs.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in case.aligned},
    )


def _disassemble(cubin: bytes) -> tuple[dict[str, int], str]:
    """Resource usage, and the machine code as text."""
    tools = triton.knobs.nvidia
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _output(tools.cuobjdump.path, "--dump-resource-usage", str(path))
        sass = _output(tools.nvdisasm.path, "-c", str(path))
    found = {key: int(value) for key, value in _USAGE.findall(usage)}
    assert found.keys() >= {"REG", "STACK", "LOCAL"}, f"cuobjdump said something else:\n{usage}"
    return found, sass


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _ctas(arch: Architecture, registers: int, threads: int, shared: int) -> int:
    """CTAs per SM. Registers go to warps in units of 8 per thread."""
    by_registers = arch.registers_of_sm // (-(-registers // 8) * 8 * threads)
    by_shared = arch.shared_of_sm // (shared + 1024)
    return min(by_registers, by_shared, arch.threads_of_sm // threads, arch.ctas_of_sm)
