"""Heads on disk: weights for workers, and the state that training goes on from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from triptych.errors import ModelError
from triptych.training.learner import HeadLearner

_STATE = "training.pt"


def save_head(learner: HeadLearner, folder: Path) -> None:
    """What `DraftHead` loads: model.safetensors (bfloat16) and head.json. Whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / "model.safetensors.part"
    save_file(head_tensors(learner), scratch)
    learner.module.config.save(folder)
    os.replace(scratch, folder / "model.safetensors")


def head_tensors(learner: HeadLearner) -> dict[str, Tensor]:
    """The head as it is now, in checkpoint names; copies."""
    tensors = {
        name: value.detach().to(torch.bfloat16, copy=True).contiguous()
        for name, value in learner.module.state_dict().items()
    }
    tensors["draft_ids"] = learner.draft_ids.float()  # exact: ids are far below 2^24
    return tensors


def load_head_tensors(folder: Path) -> dict[str, Tensor]:
    """What `save_head` wrote."""
    return load_file(folder / "model.safetensors")


def save_state(learner: HeadLearner, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f"{_STATE}.part"
    torch.save({"learner": learner.state(), "draft_ids": learner.draft_ids}, scratch)
    os.replace(scratch, folder / _STATE)


def load_state(folder: Path) -> dict[str, Any] | None:
    """None: nothing to go on from. Raises ModelError for a damaged file."""
    path = folder / _STATE
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
    except Exception as error:
        raise ModelError(f"{path}: {error}; remove it to start over") from error
    return state


def drop_state(folder: Path) -> None:
    (folder / _STATE).unlink(missing_ok=True)
