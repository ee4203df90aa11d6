"""`triptych plan`: sizes of pools."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from triptych.plan.answer import Answer

app = typer.Typer(no_args_is_help=True, help="How many devices of which kind.")


@app.callback()
def _pools() -> None:
    """How many devices of which kind."""


@app.command()
def afd(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Inputs: YAML or JSON.")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="Lengths of requests: JSON lines or CSV; instead of `lengths`."),
    ] = None,
    measured: Annotated[
        Path | None,
        typer.Option(help="What `triptych doctor --afd` wrote; instead of `costs`."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Set an input, e.g. goals.tpot_ms=50. Repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Size a split of attention and FFN, and say whether it beats the same devices unsplit."""
    from triptych.plan.answer import find_answer
    from triptych.plan.inputs import read_inputs

    inputs, load = read_inputs(file, overrides or (), trace=trace, measured=measured)
    answer = find_answer(inputs, load)
    if as_json:
        import json
        from dataclasses import asdict

        typer.echo(json.dumps({**asdict(answer), "split_pays": answer.split_pays}))
        return
    from triptych.launch.console import open_console

    _show(answer, open_console())


def _show(answer: Answer, console: Console) -> None:
    from triptych.launch.console import Row, say, show_rows

    load = answer.load
    plain = load.mean_prompt + load.mean_output
    console.print(_plans(answer))
    reach = "above" if answer.link_gbs >= answer.floor_gbs else "below"
    rows = [
        Row(
            "tokens per slot",
            f"{load.theta:.0f} ± {load.nu:.0f}",
            f"mean prompt + mean output: {plain:.0f}",
        ),
        Row(
            "FFN link",
            f"{answer.link_gbs:.3g} GB/s",
            f"{reach} the floor of {answer.floor_gbs:.3g} GB/s for a compute-bound FFN",
        ),
    ]
    show_rows(console, rows)
    for note in answer.notes:
        say(console, f"! {note}")


_SHOWN = 4  # near plans


def _plans(answer: Answer) -> object:
    from rich.table import Table

    table = Table()
    table.add_column("plan")
    for name in ("attention", "FFN", "slots", "micro-batches", "TPOT ms", "tokens/s", "per price"):
        table.add_column(name, justify="right")
    table.add_column("busiest")
    for name, plan in (("take", answer.plan), *(("near", near) for near in answer.near[:_SHOWN])):
        numbers = (plan.attention, plan.ffn, plan.slots, plan.micro_batches)
        speeds = (f"{plan.tpot_ms:.3g}", f"{plan.throughput:.0f}", f"{plan.score:.1f}")
        table.add_row(name, *map(str, numbers), *speeds, plan.regime)
    if (rival := answer.colocated) is not None:
        numbers = (rival.devices, 0, rival.slots, rival.micro_batches)
        speeds = (f"{rival.tpot_ms:.3g}", f"{rival.throughput:.0f}", f"{rival.score:.1f}")
        table.add_row("unsplit", *map(str, numbers), *speeds, rival.way)
    return table
