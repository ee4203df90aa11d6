"""A prompt longer than tiny checkpoints' windows, and positions that are stretched for such."""

from __future__ import annotations

import torch

from triptych.testing.checkpoints import VOCAB_SIZE, WINDOW

PROMPT = torch.randint(
    3, VOCAB_SIZE, (4 * WINDOW + 5,), generator=torch.Generator().manual_seed(1)
).tolist()
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}
