"""What a mixture is made of, as values that a command line can give."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from triptych.errors import ConfigError

How = Literal["copies", "split", "perturbed"]
RouterKind = Literal["auto", "random", "skewed"]
StoredDtype = Literal["bfloat16", "float32"]

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True, slots=True)
class Recipe:
    """copies: every expert is the dense FFN. split: each has a part of its neurons. perturbed:
    copies, each with noise of its own.

    Raises ConfigError naming the value that cannot be.
    """

    num_experts: int = 8
    top_k: int = 2
    how: How = "copies"
    noise: float = 0.02  # perturbed: standard deviation over the RMS of each matrix
    # random: experts are equally popular. skewed: the r-th most popular has a share of 1 / r^skew.
    # auto: random; for split the experts whose neurons matter most.
    router: RouterKind = "auto"
    skew: float = 1.0
    seed: int = 0
    dtype: StoredDtype = "bfloat16"

    def __post_init__(self) -> None:
        for name, kinds in (("how", How), ("router", RouterKind), ("dtype", StoredDtype)):
            if getattr(self, name) not in get_args(kinds):
                raise ConfigError(f"{name}: expected one of {', '.join(get_args(kinds))}")
        if self.num_experts < 1:
            raise ConfigError(f"experts: expected 1 or more, found {self.num_experts}")
        if not 1 <= self.top_k <= self.num_experts:
            raise ConfigError(
                f"top-k: expected 1 to {self.num_experts}, the number of experts, "
                f"found {self.top_k}"
            )
        if not 0 <= self.noise < 1:
            raise ConfigError(f"noise: expected 0 or more, less than 1, found {self.noise}")
        if not 0 <= self.skew <= 10:
            raise ConfigError(f"skew: expected 0 to 10, found {self.skew}")

    def generator(self, *place: int) -> torch.Generator:
        """Random numbers for one place (layer, expert, …): the same whatever came before."""
        digest = hashlib.sha256(repr((self.seed, *place)).encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))

    @property
    def is_exact_split(self) -> bool:
        """All parts of every row are added up: the dense model again."""
        return self.how == "split" and self.top_k == self.num_experts and self.router == "auto"
