"""`triptych draft`: drafters that are trained for a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from triptych.errors import ConfigError
from triptych.launch.commands.options import ConfigFile, Overrides

if TYPE_CHECKING:
    from rich.console import Console

    from triptych.training.learner import Score

app = typer.Typer(no_args_is_help=True, help="Drafters that are trained for a model.")


@app.command()
def train(
    kind: Annotated[
        Literal["eagle3", "parallel"],
        typer.Option(help="eagle3: token by token; parallel: all tokens of a draft in one pass."),
    ] = "eagle3",
    target: Annotated[
        str | None, typer.Option(help="Model to draft for; default: the configuration's.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Prompts to begin with, JSON lines with `turns`, `question` or `prompt`; after "
            "them, or without any, the target writes prompts itself."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory of the head; default: in the cache.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of answers that it learns from.")] = 600_000,
    epochs: Annotated[int, typer.Option(help="How often it sees them.")] = 5,
    vocab: Annotated[int, typer.Option(help="Tokens that the head can draft.")] = 8192,
    layers: Annotated[int, typer.Option(help="Of the head.")] = 1,
    start: Annotated[
        Path | None, typer.Option(help="Directory of a head of the same model to begin with.")
    ] = None,
    passes: Annotated[
        int | None, typer.Option(help="Length of the drafts it is trained for; 3, parallel: 8.")
    ] = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Distil a head from the target's own answers. Interrupted, it goes on when called again."""
    from triptych.config import load_config
    from triptych.drafters.heads.place import head_dir
    from triptych.launch.commands.models import ensure_model
    from triptych.launch.console import open_console, say
    from triptych.training.learner import Settings
    from triptych.training.offline import offline_parts
    from triptych.training.train import Plan
    from triptych.training.train import train as run

    console = open_console()
    settings = [*(overrides or []), *([f"model={target}"] if target else [])]
    ensure_model(load_config(config, settings).model, console)
    parts = offline_parts([*settings, "engine.prefix_cache=false"], config)
    folder = out or head_dir(parts.fingerprint, kind)
    plan = Plan(
        kind=kind,
        out=folder,
        given=_read_prompts(data) if data else (),
        answer_tokens=tokens,
        epochs=epochs,
        draft_vocab=vocab,
        num_layers=layers,
        start=start,
        settings=Settings(passes=passes or (8 if kind == "parallel" else 3)),
    )
    with _Bars(console) as bars:
        score = run(plan, parts, bars)
    _tell(score, folder, console)
    say(console, f'use it: --set speculation.drafters=[{{"kind":"suffix"}},{{"kind":"{kind}"}}]')


def _read_prompts(path: Path) -> list[str]:
    """Raises ConfigError naming the line that is none."""
    prompts = []
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise ConfigError(f"--data: {path}: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            text = record["turns"][0] if "turns" in record else None
            prompts.append(str(text or record.get("question") or record["prompt"]))
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ConfigError(
                f"--data: {path}:{number}: expected an object with turns, question or prompt"
            ) from error
    return prompts


def _tell(score: Score, folder: Path, console: Console) -> None:
    from triptych.launch.console import Row, show_rows

    rows = [
        Row(f"position {index}", f"{rate:.1%}", "right if all before were")
        for index, rate in enumerate(score.acceptance, 1)
    ]
    per_round = f"{score.tokens_per_round:.2f}"
    rows.append(Row("tokens per round", per_round, "held-out answers, greedy drafts"))
    rows.append(Row("head", str(folder)))
    show_rows(console, rows)


class _Bars:
    """A bar per stage on a terminal, a line per tenth elsewhere."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Left

        self._console = console
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Left())
        self._bars = Progress(*columns, TextColumn("{task.fields[note]}"), console=console)
        self._name, self._total, self._next = "", 1, 0

    def __enter__(self) -> _Bars:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def stage(self, name: str, total: int) -> None:
        self._name, self._total, self._next = name, max(1, total), 0
        self._task = self._bars.add_task(name, total=total, note="")

    def progress(self, done: int, note: str = "") -> None:
        self._bars.update(self._task, completed=done, note=note)
        tenth = 10 * done // self._total
        if not self._console.is_terminal and tenth >= self._next:
            from triptych.launch.console import say

            say(self._console, f"{self._name}: {done} of {self._total} {note}".rstrip())
            self._next = tenth + 1
