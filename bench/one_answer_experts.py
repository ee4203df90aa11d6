"""Modes of `bench.one_answer` in which FFN workers compute experts, or a dense model's FFNs."""

from __future__ import annotations

from bench.one_answer_modes import AGGREGATED, PLAIN, Mode

SUFFIX = "speculation.drafters=[{kind: suffix, trees: true}, {kind: ngram}]"


def pools(ffn: int, *, prefill: int = 0) -> str:
    """One decode worker, and the others."""
    kinds = ["{name: decode, role: decode, threads: 1}"]
    kinds += [f"{{name: prefill, role: prefill, replicas: {prefill}, threads: 1}}"] * bool(prefill)
    kinds += [f"{{name: ffn, role: ffn, replicas: {ffn}, threads: 1}}"]
    return f"pools=[{', '.join(kinds)}]"


def ffn(
    workers: int, name: str, batch: int, *more: str, prefill: int = 0, churn: bool = False
) -> Mode:
    """`workers` FFN workers; speculation is off unless `more` says otherwise. With `churn` they are
    re-balanced every second, by the router and, so that it happens for sure, at random.
    """
    settings = (pools(workers, prefill=prefill), PLAIN, *more)
    if churn:
        settings = (*settings, "experts.rebalance_s=1")
    return Mode(f"ffn-{workers}/{name}", settings, batch, workers if churn else 0)


MIXTURE = (
    Mode("mixture/monolithic", AGGREGATED, batch=1),  # the reference
    Mode("mixture/monolithic/batch-32", (*AGGREGATED, "log.level=warning"), batch=32),
    ffn(1, "batch-1", 1),
    ffn(1, "batch-32", 32, "log.level=warning"),
    ffn(2, "batch-32", 32),
    ffn(3, "batch-1", 1),
    ffn(3, "rebalanced", 32, churn=True),
    ffn(3, "micro-batches-3", 32, "experts.micro_batches=3"),
    ffn(3, "tcp", 32, "experts.links=[tcp]"),
    ffn(2, "pd", 32, prefill=1),
    ffn(
        3,
        "pd/rebalanced/layers-6",
        32,
        "transport.announce_layers=6",
        prefill=1,
        churn=True,
    ),
    ffn(2, "speculation/dice", 32, "speculation.mode=dice", SUFFIX),
    ffn(2, "speculation/auto", 8, "speculation.mode=auto", SUFFIX),
    ffn(2, "pd/speculation/dice", 32, "speculation.mode=dice", SUFFIX, prefill=1),
    ffn(3, "speculation/dice/rebalanced", 32, "speculation.mode=dice", SUFFIX, churn=True),
)

DENSE = (
    Mode("dense/monolithic", AGGREGATED, batch=1),  # the reference
    ffn(1, "dense", 32),
    ffn(2, "dense/replica", 32),
    ffn(3, "dense/layer", 32, "experts.dense=layer", "experts.copies=1"),
    ffn(2, "dense/pd/speculation", 32, "speculation.mode=dice", SUFFIX, prefill=1),
)
