"""`python -m triptych_kernels.triton.aot [--write] [NAME …]`: compiles all kernels for all GPUs.

Prints what they occupy, and what is not as it should be: then the exit status is 1. With --write
the goldens are replaced. With names (or their beginnings), or --cover (every kernel and
feature once, for the GPUs in turn, as in the test suite), only those cases, and nothing is written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

import triton

from triptych_kernels.triton.aot import goldens
from triptych_kernels.triton.aot.case import AotCase
from triptych_kernels.triton.aot.compile import (
    ARCHITECTURES,
    Architecture,
    Measured,
    complaints,
    measure,
)
from triptych_kernels.triton.aot.registry import all_cases, covering_cases

_HEAD = (
    f"{'kernel':48} {'GPU':6} {'regs':>4} {'spills':>6} {'shared':>8} {'CTAs/SM':>7}"
    "  products, copies"
)


def main() -> int:
    args = _arguments()
    if args.table:
        print(goldens.markdown())
        return 0
    results: dict[tuple[str, str], Measured] = {}
    told: list[str] = []
    print(_HEAD)
    for case, arch in _wanted(args.names, args.cover):
        found = results[case.name, arch.name] = measure(case, arch)
        told += complaints(case, arch, found)
        print(_row(case.name, arch.name, found), flush=True)
    if args.write:
        goldens.store(results)
    told += goldens.differences(results)
    if goldens.load() is None:
        print(f"No goldens for triton {triton.__version__}: exact figures were not compared.")
    print("\n".join(told) or f"{len(results)} compiled, nothing to complain about.")
    return 1 if told else 0


def _wanted(names: Sequence[str], cover: bool) -> Iterator[tuple[AotCase, Architecture]]:
    for number, case in enumerate(covering_cases() if cover else all_cases()):
        if names and not case.name.startswith(tuple(names)):
            continue
        able = [arch for arch in ARCHITECTURES if arch.capability >= case.least]
        for arch in [able[number % len(able)]] if cover else able:
            yield case, arch


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m triptych_kernels.triton.aot")
    parser.add_argument("names", nargs="*", help="cases, or how their names begin; default: all")
    parser.add_argument("--write", action="store_true", help="replace the goldens")
    parser.add_argument("--cover", action="store_true", help="every kernel and feature once")
    parser.add_argument("--table", action="store_true", help="print the goldens as Markdown")
    args = parser.parse_args()
    if args.write and (args.names or args.cover):
        parser.error("--write needs all cases: leave names and --cover out")
    if triton.knobs.runtime.interpret and not args.table:
        parser.error("TRITON_INTERPRET is set: kernels are interpreted and cannot be compiled")
    return args


def _row(name: str, arch: str, found: Measured) -> str:
    products = " ".join(f"{kind}×{count}" for kind, count in found.mma.items()) or "none"
    return (
        f"{name:48} {arch:6} {found.registers:4} {found.spills:6} {found.shared:8} "
        f"{found.ctas:7}  {products}, {found.async_copies} async"
    )


if __name__ == "__main__":
    sys.exit(main())
