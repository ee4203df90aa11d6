"""`triptych doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from triptych.launch.commands.options import ApiKey, ConfigFile, Overrides


def doctor(
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    links: Annotated[
        str | None, typer.Option(help="Probe these KV links, e.g. shm,nixl:rdma; all must work.")
    ] = None,
    mib: Annotated[int, typer.Option(min=1, help="Bytes that each link moves, in MiB.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    pool: Annotated[
        str | None, typer.Option(help="This machine, or container, holds one worker of this pool.")
    ] = None,
    afd: Annotated[
        Path | None,
        typer.Option(
            help="Measure what attention, experts and their messages cost here, into this file: "
            "`triptych plan afd --measured` reads it."
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(help="Check the cluster behind this router instead of this machine."),
    ] = None,
    api_key: ApiKey = None,
) -> None:
    """Check this machine: versions, memory, limits, and each KV link by moving bytes over it.

    Exits with 1 when a link that is needed does not work or turns out to be another one. With
    --url: when a worker is missing or unreachable from here, or no answer comes.
    """
    if afd is not None:
        _measure(config_file, overrides, afd)
        return
    if url is not None:
        _check_cluster(config_file, overrides, url, api_key, as_json)
        return
    from triptych.config import load_config
    from triptych.launch.console import open_console
    from triptych.launch.doctor import alone, examine, print_report, report_json

    config = load_config(config_file, overrides or ())
    if pool is not None:
        config = alone(config, pool)
    report = examine(config, _names(links), mib)
    if as_json:
        typer.echo(report_json(report))
    else:
        print_report(open_console(), report)
    if not report.healthy:
        raise typer.Exit(1)


def _check_cluster(
    config_file: Path | None,
    overrides: list[str] | None,
    url: str,
    api_key: str | None,
    as_json: bool,
) -> None:
    import asyncio

    from triptych.config import load_config
    from triptych.launch.checkup import check_cluster
    from triptych.launch.console import open_console
    from triptych.launch.doctor import findings_json, print_findings

    config = load_config(config_file, overrides or ())
    findings = asyncio.run(check_cluster(config, url, api_key))
    if as_json:
        typer.echo(findings_json(findings))
    else:
        print_findings(open_console(), findings)
    if any(finding.problem for finding in findings):
        raise typer.Exit(1)


def _names(links: str | None) -> list[str] | None:
    from typing import get_args

    from transport.kv.paths import link_of
    from triptych.config import LinkName

    if links is None:
        return None
    names = [name.strip() for name in links.split(",")]
    known = get_args(LinkName)
    for name in names:
        if link_of(name) not in known:
            raise typer.BadParameter(
                f"{name!r} is no link; there are {', '.join(known)}", param_hint="--links"
            )
    return names


def _measure(config_file: Path | None, overrides: list[str] | None, target: Path) -> None:
    from triptych.config import load_config
    from triptych.launch.commands.models import ensure_model
    from triptych.launch.console import Row, open_console, say, show_rows
    from triptych.plan.measure import measure_afd
    from triptych.plan.measured import Coefficients, write_measured

    config, console = load_config(config_file, overrides or ()), open_console()
    ensure_model(config.model, console)
    measured = measure_afd(config, lambda text: say(console, f"{text} …"))
    write_measured(target, measured)
    fields = Coefficients.model_fields
    rows = [
        Row(name, f"{value:.4g}", fields[name].description or "")
        for name, value in measured.costs.model_dump().items()
    ]
    show_rows(console, rows)
    say(console, f"written to {target}")
