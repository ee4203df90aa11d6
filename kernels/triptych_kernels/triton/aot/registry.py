"""Which modules hold kernels. Each has an `AOT_CASES: tuple[AotCase, ...]`."""

from __future__ import annotations

from importlib import import_module

from triptych_kernels.triton.aot.case import AotCase

OP_MODULES: tuple[str, ...] = (
    *("prefill", "decode", "column_scores", "pages", "states"),
    *("filters", "sampling", "laws", "verify"),
    *("experts", "wire_rows", "packed_linear", "norms", "rope_append", "kv_move"),
    *("nsa", "indexer", "top_k"),
)


def all_cases() -> tuple[AotCase, ...]:
    """Every case of every op, by name."""
    cases: list[AotCase] = []
    for module in OP_MODULES:
        cases.extend(import_module(f"triptych_kernels.triton.{module}").AOT_CASES)
    cases.sort(key=lambda case: case.name)
    names = [case.name for case in cases]
    twice = {name for name in names if names.count(name) > 1}
    assert not twice, f"AOT cases need names of their own: {sorted(twice)}"
    return tuple(cases)


def covering_cases() -> tuple[AotCase, ...]:
    """Of every kernel the case with most features switched on, which holds most of its code."""
    most: dict[object, AotCase] = {}
    for case in all_cases():
        known = most.setdefault(case.kernel, case)
        if _features(case) > _features(known):
            most[case.kernel] = case
    return tuple(most.values())


def _features(case: AotCase) -> int:
    return sum(value is True for value in case.constexprs.values())
