"""`triptych up`."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from triptych.launch.commands.options import ConfigFile, Overrides


class LauncherName(enum.StrEnum):
    LOCAL = "local"
    RAY = "ray"


def up(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A known name, a Hugging Face directory, a .gguf file or hf://org/name."
        ),
    ] = None,
    config_file: ConfigFile = None,
    prefill: Annotated[
        int | None, typer.Option(min=0, help="Prefill workers; 0: decode workers prefill.")
    ] = None,
    decode: Annotated[int | None, typer.Option(min=1, help="Decode workers.")] = None,
    ffn: Annotated[
        int | None, typer.Option(min=0, help="FFN workers; 0: experts and FFNs stay at home.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Of the router; 0: any free one.")
    ] = None,
    overrides: Overrides = None,
    prompt: Annotated[
        str | None, typer.Option(help="Ask this once it is up, and show where the time went.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of the prompt's answer.")] = 128,
    leave: Annotated[bool, typer.Option("--exit", help="Stop after the prompt's answer.")] = False,
    run_dir: Annotated[
        Path | None, typer.Option(help="For sockets and logs; default: a temporary one.")
    ] = None,
    launcher: Annotated[
        LauncherName, typer.Option(help="Who runs the workers: this machine, or a Ray cluster.")
    ] = LauncherName.LOCAL,
    ray_address: Annotated[
        str,
        typer.Option(help="Of the Ray cluster; auto: the one that runs here; local: a new one."),
    ] = "auto",
) -> None:
    """Run a cluster: a router and pools of workers, one process each, on this machine or on Ray."""
    import asyncio
    import json

    from triptych.config import load_config
    from triptych.launch.commands.models import ensure_models
    from triptych.launch.console import open_console
    from triptych.launch.local import LocalLauncher
    from triptych.launch.plan import scale_pool
    from triptych.launch.rundir import own_or_temporary
    from triptych.launch.up import Question, run_up

    if leave and prompt is None:
        raise typer.BadParameter("only with --prompt", param_hint="--exit")
    settings = list(overrides or [])
    if model is not None:
        settings.append(f"model={json.dumps(_absolute(model))}")  # JSON is YAML
    if port is not None:
        settings.append(f"router.port={port}")
    config = load_config(config_file, settings)
    if prefill is not None:
        config = scale_pool(config, "prefill", prefill)
    if decode is not None:
        config = scale_pool(config, "decode", decode)
    if ffn is not None:
        config = scale_pool(config, "ffn", ffn)
    console = open_console()
    ensure_models(config, console)
    with own_or_temporary(run_dir) as place:
        question = Question(prompt, max_tokens) if prompt is not None else None
        if launcher is LauncherName.RAY:
            from triptych.launch.ray_launcher import RayLauncher

            chosen: LocalLauncher = RayLauncher(config, place, address=ray_address)
        else:
            chosen = LocalLauncher(config, place)
        asyncio.run(run_up(config, chosen, console, question, leave=leave))


def _absolute(model: str) -> str:
    """A path in full: the config in the run directory must mean the same from everywhere."""
    from triptych.hub import known_models

    path = Path(model).expanduser()
    known = any(known.name == model for known in known_models())
    return str(path.resolve()) if path.exists() and not known else model
