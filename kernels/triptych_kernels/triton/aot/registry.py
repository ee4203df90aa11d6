"""Which modules hold kernels. Each has an `AOT_CASES: tuple[AotCase, ...]`."""

from __future__ import annotations

from importlib import import_module

from triptych_kernels.triton.aot.case import AotCase

OP_MODULES: tuple[str, ...] = (
    *("prefill", "decode", "combine", "column_scores", "pages", "page_choice"),
    *("filters", "sampling", "laws", "verify"),
    *("experts", "packed_experts", "routing", "gates", "wire_rows"),
    *("dense_linear", "packed_linear", "norms"),
    *("rope_append", "kv_move"),
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
    """Cases of every kernel that have, together, every feature that one of its cases has."""
    chosen: list[AotCase] = []
    seen: set[tuple[object, str]] = set()
    for case in sorted(all_cases(), key=lambda case: (-len(_features(case)), case.name)):
        new = {(case.kernel, feature) for feature in ("", *_features(case))} - seen
        if new:
            chosen.append(case)
            seen |= new
    return tuple(sorted(chosen, key=lambda case: case.name))


def _features(case: AotCase) -> list[str]:
    return [name for name, value in case.constexprs.items() if value is True]
