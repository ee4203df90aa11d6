"""Topologies and ways of speculating that `bench.one_answer` goes through."""

from __future__ import annotations

from dataclasses import dataclass

from triptych.drafters.heads.place import head_dir
from triptych.fingerprint import weight_fingerprint
from triptych.hub import resolve_model


@dataclass(frozen=True, slots=True)
class Mode:
    """One pass over the workload. Modes of one `cluster` share its processes, and so its cache."""

    name: str
    cluster: tuple[str, ...]  # config overrides
    batch: int  # requests in flight
    churning: int = 0  # FFN workers between which experts move every second, all the time


NIXL = "nixl"
PLAIN = "speculation.mode=off"
ONE_POOL = "pools=[{name: decode, role: decode}]"
AGGREGATED = (ONE_POOL, PLAIN)


def pd(link: str, *more: str) -> tuple[str, ...]:
    return (PLAIN, f"transport.links=[{link}]", f"transport.require={link}", *more)


MODES = (
    Mode("aggregated", AGGREGATED, batch=1),  # the reference
    Mode("aggregated/warm", AGGREGATED, batch=32),
    Mode("aggregated/batch-32", (*AGGREGATED, "log.level=warning"), batch=32),
    Mode("aggregated/chunk-64", (*AGGREGATED, "engine.chunk_tokens=64"), batch=32),
    Mode("pd/shm", pd("shm"), batch=32),
    Mode("pd/shm/warm", pd("shm"), batch=32),
    Mode("pd/shm/batch-1", pd("shm", "log.level=warning"), batch=1),
    Mode("pd/shm/chunk-64", pd("shm", "engine.chunk_tokens=64"), batch=32),
    Mode("pd/shm/layers-6", pd("shm", "transport.announce_layers=6"), batch=32),
    Mode("pd/tcp", pd("tcp"), batch=32),
    Mode(f"pd/{NIXL}", pd(NIXL), batch=32),
)


REMOTE = "remote, pool: draft"
# Its drafters differ from those at home, so that it shows which were at work.
SMALL_MODEL = "draft_model, model: smollm2-135m, dtype: int4"
DRAFT_POOL = (
    "pools=[{name: decode, role: decode}, "
    "{name: draft, role: draft, threads: 1, drafters: [{kind: suffix, trees: true}]}]",
    PLAIN,
)


def drafting(batch: int, mode: str, *kinds: str, pools: tuple[str, ...] = AGGREGATED) -> Mode:
    """Speculation of one kind, on top of `pools`."""
    drafters = ", ".join(f"{{kind: {kind}}}" for kind in kinds)
    name = "aggregated" if pools in (AGGREGATED, DRAFT_POOL) else "pd"
    overrides = (f"speculation.mode={mode}", f"speculation.drafters=[{drafters}]")
    return Mode(f"{name}/{mode}/{'+'.join(kinds)}/{batch}", (*pools, *overrides), batch)


SPECULATION = (
    drafting(32, "fixed", "ngram"),
    drafting(1, "fixed", "ngram"),
    drafting(32, "fixed", "suffix"),
    drafting(1, "fixed", "suffix"),
    drafting(32, "fixed", "suffix, trees: true"),
    drafting(32, "table", "suffix"),
    drafting(32, "dice", "suffix, trees: true", "ngram"),
    drafting(1, "dice", "suffix, trees: true", "ngram"),
    drafting(32, "auto", "suffix", "ngram"),
    drafting(32, "auto", "suffix", "ngram", pools=pd("shm")),
    drafting(32, "dice", "suffix, trees: true", "ngram", pools=pd("shm")),
    drafting(32, "fixed", REMOTE, pools=DRAFT_POOL),
    drafting(32, "auto", REMOTE, "ngram", pools=DRAFT_POOL),
    drafting(32, "dice", f"{REMOTE}, trouble: 0.3", "ngram", pools=DRAFT_POOL),
    drafting(1, "dice", f"{REMOTE}, trouble: 0.3", "ngram", pools=DRAFT_POOL),
    drafting(32, "dice", SMALL_MODEL, "sparse"),
    drafting(1, "fixed", SMALL_MODEL),
    drafting(32, "dice", f"switching, between: [{{kind: suffix}}, {{kind: {SMALL_MODEL}}}]"),
    drafting(32, "length_aware", "suffix", SMALL_MODEL, pools=pd("shm")),
)
# Need what `triptych draft train` makes.
HEADS = (
    drafting(32, "dice", "eagle3, width: 3", "suffix"),
    drafting(1, "fixed", "eagle3"),
    drafting(32, "auto", "eagle3, learn: true", "suffix"),
    drafting(32, "dice", "eagle3", "suffix", pools=pd("shm")),
)


def speculation(model: str) -> tuple[Mode, ...]:
    """All kinds of drafts that can be made here."""
    path = resolve_model(model)
    if (head_dir(weight_fingerprint(path), "eagle3") / "head.json").exists():
        return (*SPECULATION, *HEADS)
    print("no head was trained for this model: its modes are left out", flush=True)
    return SPECULATION
