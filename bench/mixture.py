"""A mixture of experts that speaks English, made from a dense model and kept in the cache."""

from __future__ import annotations

from pathlib import Path

from triptych.config import cache_dir
from triptych.fingerprint import weight_fingerprint
from triptych.hub import resolve_model
from triptych.models.load import load_config
from triptych.models.upcycle.convert import upcycle
from triptych.models.upcycle.recipe import Recipe

# Copies with noise: a row that goes to another expert than its own gets other tokens.
PERTURBED = Recipe(num_experts=8, top_k=2, how="perturbed", dtype="bfloat16")


def perturbed(model: str, recipe: Recipe = PERTURBED) -> Path:
    """The mixture made of `model`; the model itself if it is one."""
    source = resolve_model(model)
    if load_config(source).moe is not None:
        return source
    name = f"{weight_fingerprint(source)[:12]}-{recipe.how}-{recipe.num_experts}-{recipe.top_k}"
    out = cache_dir() / "upcycled" / f"{name}-{recipe.router}-{recipe.skew:g}-{recipe.seed}"
    if not (out / "config.json").exists():
        print(f"making a mixture of {model} in {out}", flush=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        upcycle(source, out, recipe)
    return out
