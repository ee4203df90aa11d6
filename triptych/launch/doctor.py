"""Is this machine fit for this config? Facts, findings and KV links proven by moving bytes."""

from __future__ import annotations

import json
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.table import Table

from transport.kv.probe import LinkReport, probe_links
from triptych.config import ClusterConfig, LinkName
from triptych.launch.console import Row, say, show_rows
from triptych.launch.machine import Machine, this_machine
from triptych.launch.timings import byte_size

_PACKAGES = ("triptych-runtime", "torch", "grpcio", "numpy", "nixl-cu12")


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact about the machine, and what is wrong with it for this config."""

    name: str
    value: str
    problem: str = ""  # with the remedy; "": fine


@dataclass(frozen=True, slots=True)
class Report:
    versions: Mapping[str, str]
    machine: Sequence[Finding]
    links: Sequence[LinkReport]
    needed: frozenset[str]  # links that must work

    @property
    def healthy(self) -> bool:
        return all(link.ok for link in self.links if link.link in self.needed)


def examine(config: ClusterConfig, links: Sequence[str] | None, mib: int) -> Report:
    """Probes `links`, which must all work; None: all there are, and those of the config must."""
    names = list(links) if links is not None else list(get_args(LinkName))
    needed = frozenset(links if links is not None else needed_links(config))
    with tempfile.TemporaryDirectory(prefix="triptych-") as place:
        reports = probe_links(names, mib=mib, run_dir=Path(place))
    return Report(_versions(), judge_machine(config, this_machine()), reports, needed)


def alone(config: ClusterConfig, pool_name: str) -> ClusterConfig:
    """The same config for a machine, or a container, that holds one worker of this pool and no
    other. Raises ConfigError for an unknown pool.
    """
    pool = config.pool(pool_name).model_copy(update={"replicas": 1})
    return config.model_copy(update={"pools": (pool,)})


def needed_links(config: ClusterConfig) -> Sequence[str]:
    """A required link is the only one that is used."""
    required = config.transport.require
    return config.transport.links if required is None else [required]


def judge_machine(config: ClusterConfig, machine: Machine) -> list[Finding]:
    """What the machine has, next to what the config wants of it."""
    wanted = sum((pool.threads or machine.cores) * pool.replicas for pool in config.pools)
    pools = sum(
        config.kv_of(pool).memory * pool.replicas
        for pool in config.pools
        if pool.role in ("prefill", "decode")  # the others hold no KV
    )
    pinned = "nixl" in config.transport.links and machine.memlock is not None
    return [
        Finding(
            "cores",
            f"{machine.cores} ({' '.join(machine.cpu_features) or 'no vector units we know'})",
            f"{wanted} compute threads share them: set pools' `threads`, or expect slower steps"
            if wanted > machine.cores
            else "",
        ),
        Finding(
            "memory",
            f"{byte_size(machine.free_memory)} free of {byte_size(machine.total_memory)}",
            f"the KV pools alone take {byte_size(pools)}: lower kv.memory"
            if pools > machine.free_memory
            else "",
        ),
        Finding("/dev/shm", "none" if machine.shm is None else byte_size(machine.shm)),
        Finding(
            "memlock",
            "no limit" if machine.memlock is None else byte_size(machine.memlock),
            "RDMA pins the KV pool: raise it (ulimit -l unlimited)" if pinned else "",
        ),
        Finding("open files", str(machine.open_files)),
    ]


def report_json(report: Report) -> str:
    return json.dumps(
        {
            "healthy": report.healthy,
            "versions": dict(report.versions),
            "machine": [asdict(finding) for finding in report.machine],
            "links": [
                {**asdict(link), "needed": link.link in report.needed} for link in report.links
            ],
        },
        indent=2,
    )


def print_report(console: Console, report: Report) -> None:
    show_rows(console, [Row(name, value) for name, value in report.versions.items()])
    say(console)
    show_rows(console, [Row(f.name, f.value, f.problem) for f in report.machine])
    say(console)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("KV link", "works", "path", "GB/s", "memcpy GB/s", ""):
        table.add_column(heading, justify="right" if "GB/s" in heading else "left")
    for link in report.links:
        table.add_row(*link_cells(link, needed=link.link in report.needed))
    console.print(table, markup=False, highlight=False)
    say(console)
    say(console, "healthy" if report.healthy else "not healthy: a link that is needed fails")


def findings_json(findings: Sequence[Finding]) -> str:
    """Of a cluster."""
    healthy = not any(finding.problem for finding in findings)
    return json.dumps(
        {"healthy": healthy, "cluster": [asdict(finding) for finding in findings]}, indent=2
    )


def print_findings(console: Console, findings: Sequence[Finding]) -> None:
    """Of a cluster."""
    show_rows(console, [Row(f.name, f.value, f.problem) for f in findings])
    say(console)
    count = sum(bool(finding.problem) for finding in findings)
    say(console, f"not healthy: {count} of these" if count else "healthy")


def link_cells(link: LinkReport, *, needed: bool) -> list[str]:
    """A line of the table of links."""
    if link.ok:
        return [link.link, "yes", link.path, f"{link.gb_s:.2f}", f"{link.memcpy_gb_s:.2f}", ""]
    verdict = "NO" if needed else "no"
    note = link.reason if needed else f"{link.reason} (not needed by this config)"
    return [link.link, verdict, link.path or "-", "-", "-", note]


def _versions() -> Mapping[str, str]:
    found = {"python": platform.python_version(), "kernel": platform.release()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
