"""`triptych doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

from triptych.launch.commands.options import ConfigFile, Overrides


def doctor(
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    links: Annotated[
        str | None, typer.Option(help="Probe these KV links, e.g. shm,nixl:rdma; all must work.")
    ] = None,
    mib: Annotated[int, typer.Option(min=1, help="Bytes that each link moves, in MiB.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Check this machine: versions, memory, limits, and each KV link by moving bytes over it.

    Exits with 1 when a link that is needed does not work or turns out to be another one.
    """
    from triptych.config import load_config
    from triptych.launch.console import open_console
    from triptych.launch.doctor import examine, print_report, report_json

    config = load_config(config_file, overrides or ())
    report = examine(config, _names(links), mib)
    if as_json:
        typer.echo(report_json(report))
    else:
        print_report(open_console(), report)
    if not report.healthy:
        raise typer.Exit(1)


def _names(links: str | None) -> list[str] | None:
    from typing import get_args

    from triptych.config import LinkName

    if links is None:
        return None
    names = [name.strip() for name in links.split(",")]
    known = get_args(LinkName)
    for name in names:
        if name.partition(":")[0] not in known:  # "nixl:rdma" asks for one path of a link
            raise typer.BadParameter(
                f"{name!r} is no link; there are {', '.join(known)}", param_hint="--links"
            )
    return names
