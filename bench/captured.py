"""Keys, values and queries as a real model makes them, for kernels to be measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from triptych.hub import pull_model
from triptych.models.load import load_model
from triptych.tokenizer import Tokenizer

_ROOT = Path(__file__).parents[1]
_ROWS = 1024  # of one pass


@dataclass(frozen=True, slots=True)
class Captured:
    """By layer: keys and values [N, Hkv, D], queries [N, Hq, D], float32, rotated."""

    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    queries: Sequence[Tensor]


@dataclass
class _View:
    """A KvView that remembers everything."""

    keys: dict[int, list[Tensor]] = field(default_factory=dict)
    values: dict[int, list[Tensor]] = field(default_factory=dict)
    queries: dict[int, list[Tensor]] = field(default_factory=dict)

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, **_: Any
    ) -> Tensor:
        for kept, part in ((self.keys, k), (self.values, v), (self.queries, q)):
            kept.setdefault(layer, []).append(part)
        keys, values = torch.cat(self.keys[layer]), torch.cat(self.values[layer])
        end = len(keys)
        mask = torch.arange(end) <= torch.arange(end - len(q), end)[:, None]
        q, keys, values = (part.transpose(0, 1)[None] for part in (q, keys, values))
        found = scaled_dot_product_attention(
            q, keys, values, attn_mask=mask, scale=scale, enable_gqa=True
        )
        return found[0].transpose(0, 1)


def documents() -> str:
    """This project's own, in a fixed order."""
    paths = [_ROOT / "README.md", *sorted((_ROOT / "docs").rglob("*.md")), _ROOT / "CHANGELOG.md"]
    return "\n\n".join(path.read_text() for path in paths)


@torch.inference_mode()
def capture(model: str, tokens: int, layers: int) -> Captured:
    """Of `layers` layers, evenly spaced, over the documents: as many tokens as the model's context
    takes, at most.
    """
    path = pull_model(model)
    loaded = load_model(path, dtype="float32")
    ids = Tokenizer.load(path).encode(documents())
    count = min(tokens, loaded.config.max_model_len, len(ids))
    view = _View()
    for begin in range(0, count, _ROWS):
        end = min(count, begin + _ROWS)
        loaded.forward(torch.tensor(ids[begin:end]), torch.arange(begin, end), view)
        print(f"captured {end} of {count} tokens", flush=True)
    of = [round(i * (loaded.config.num_layers - 1) / max(1, layers - 1)) for i in range(layers)]
    return Captured(
        *(
            [torch.cat(kept[layer]) for layer in of]
            for kept in (view.keys, view.values, view.queries)
        )
    )
