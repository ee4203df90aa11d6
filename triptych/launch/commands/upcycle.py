"""`triptych models upcycle`: a mixture of experts out of a dense checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from triptych.models.upcycle.convert import Report
    from triptych.models.upcycle.recipe import Recipe


def upcycle(
    dense: Annotated[
        str, typer.Argument(help="A known name, a Hugging Face directory or a .gguf file.")
    ],
    out: Annotated[Path, typer.Argument(help="Directory to make.")],
    experts: Annotated[int, typer.Option(help="Experts of a layer.")] = 8,
    top_k: Annotated[int, typer.Option(help="Experts of a token.")] = 2,
    how: Annotated[
        Literal["copies", "split", "perturbed"],
        typer.Option(
            help="copies: every expert is the dense FFN, so the mixture answers as the dense model "
            "does. perturbed: copies, each with noise of its own, so that a token at the wrong "
            "expert shows. split: each expert has a part of the neurons; with --top-k equal to "
            "--experts the dense model again, with fewer an approximation that gets poor quickly."
        ),
    ] = "copies",
    noise: Annotated[
        float, typer.Option(help="perturbed: standard deviation over the RMS of each matrix.")
    ] = 0.02,
    router: Annotated[
        Literal["auto", "random", "skewed"],
        typer.Option(
            help="random: all experts are about equally popular. skewed: by --skew. auto: random; "
            "for split the experts whose neurons matter most to the token."
        ),
    ] = "auto",
    skew: Annotated[
        float,
        typer.Option(help="skewed: the r-th most popular expert of a layer gets 1 / r^SKEW."),
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Of routers and noise.")] = 0,
    dtype: Annotated[Literal["bfloat16", "float32"], typer.Option(help="Of all tensors.")] = (
        "bfloat16"
    ),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a model directory that is there.")
    ] = False,
) -> None:
    """Make a mixture of experts with real weights from a dense Llama, Mistral or Qwen3.

    Written as a Hugging Face directory in Mixtral's format (Qwen3: Qwen3-MoE's), which Triptych and
    transformers load. Nothing is trained.
    """
    from triptych.hub import resolve_model
    from triptych.launch.commands.models import ensure_model
    from triptych.launch.console import Row, open_console, show_rows
    from triptych.launch.progress import show_bytes
    from triptych.models.upcycle.convert import upcycle as run
    from triptych.models.upcycle.recipe import Recipe

    recipe = Recipe(experts, top_k, how, noise, router, skew, seed, dtype)
    console = open_console()
    ensure_model(dense, console)
    with show_bytes(console, f"writing {out}") as progress:
        report = run(resolve_model(dense), out, recipe, overwrite=overwrite, progress=progress)
    show_rows(
        console,
        [
            Row(str(out), f"{report.architecture}, {report.weight_bytes / 1e9:.2f} GB"),
            Row("experts", f"{top_k} of {experts}", _nearness(recipe, report)),
            Row("busiest", f"{report.busiest:.2f} × the mean", "tokens of an expert, sample text"),
        ],
    )


def _nearness(recipe: Recipe, report: Report) -> str:
    if recipe.how == "copies" or recipe.is_exact_split:
        return "the dense model, but for rounding"
    if recipe.how == "perturbed":
        return f"the dense FFN with {recipe.noise:.1%} noise each"
    return f"an approximation: FFNs miss {report.ffn_error:.0%} of their output (mean square)"
