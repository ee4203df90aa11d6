"""What kernels measured when somebody last looked, to notice what changed.

Registers and instruction counts belong to one version of the compiler, and are compared only with
that one. `complaints` in compile.py holds for all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import triton

from triptych_kernels.triton.aot.compile import ARCHITECTURES, Measured

PATH = Path(__file__).with_name("goldens.json")


def load() -> dict[str, dict[str, dict[str, object]]] | None:
    """By case and architecture; None: they are of another compiler."""
    if not PATH.exists():
        return None
    stored = json.loads(PATH.read_text())
    if stored["triton"] != triton.__version__:
        return None
    cases: dict[str, dict[str, dict[str, object]]] = stored["cases"]
    return cases


def store(results: Mapping[tuple[str, str], Measured]) -> None:
    """One line per case and architecture, so that a difference shows what changed."""
    lines = []
    for name in sorted({name for name, _ in results}):
        rows = [
            f"      {json.dumps(arch)}: {json.dumps(found.golden())}"
            for (of, arch), found in results.items()
            if of == name
        ]
        lines.append(f"    {json.dumps(name)}: {{\n" + ",\n".join(rows) + "\n    }")
    text = ",\n".join(lines)
    version = json.dumps(triton.__version__)
    PATH.write_text(f'{{\n  "triton": {version},\n  "cases": {{\n{text}\n  }}\n}}\n')


def differences(results: Mapping[tuple[str, str], Measured]) -> list[str]:
    """Where results are not what was stored; nothing where the compiler is another one."""
    goldens = load()
    if goldens is None:
        return []
    told = []
    for (name, arch), found in results.items():
        golden = goldens.get(name, {}).get(arch)
        if golden is None:
            told.append(f"{name} on {arch}: no golden; write them with --write")
            continue
        for key, value in found.golden().items():
            if golden[key] != value:
                told.append(f"{name} on {arch}: {key} is {value}, was {golden[key]}")
    return told


def markdown() -> str:
    """The stored figures as the table of docs/kernels.md."""
    stored = json.loads(PATH.read_text())["cases"]
    names = [arch.name for arch in ARCHITECTURES]
    lines = [f"| case | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    for case, by_arch in stored.items():
        cells = [_cell(Measured(**by_arch[name])) if name in by_arch else "–" for name in names]
        lines.append(f"| `{case}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(found: Measured) -> str:
    products = " ".join(f"{kind} {count}" for kind, count in found.mma.items()) or "–"
    spills = f", **{found.spills} spills**" if found.spills else ""
    return (
        f"{found.registers} · {found.shared / 1024:.0f} KiB · {found.ctas} · {products} · "
        f"{found.async_copies}{spills}"
    )
