"""What a draft head is, and which target it belongs to: head.json beside its weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from triptych.errors import ModelError
from triptych.models.config import ModelConfig

HeadKind = Literal["eagle3", "parallel"]


class HeadConfig(BaseModel):
    """Shapes are the target's; the head's own are its vocabulary, its taps and its layers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    kind: HeadKind
    target: str = Field(description="fingerprint of the weights that it was trained on")
    target_vocab_size: int
    hidden_size: int
    taps: tuple[int, ...] = Field(description="layers of the target whose output it reads")
    num_layers: int = Field(1, ge=1)
    draft_vocab_size: int
    block: int = Field(8, ge=2, description="rows of one pass of a parallel head, the root's first")
    version: int = Field(0, description="of weights that are learned while serving")

    @property
    def hash(self) -> str:
        """Two workers whose heads differ in this draft differently."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    def save(self, folder: Path) -> None:
        (folder / "head.json").write_text(self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> HeadConfig:
        """Raises ModelError naming the file and the field."""
        path = folder / "head.json"
        try:
            return cls.model_validate(json.loads(path.read_bytes()))
        except OSError as error:
            raise ModelError(
                f"{path}: {error.strerror}; `triptych draft train` makes a head"
            ) from error
        except (ValidationError, ValueError) as error:
            raise ModelError(f"{path}: not a head of this version: {error}") from error


def default_taps(num_layers: int) -> tuple[int, ...]:
    """A low, a middle and a high layer (EAGLE-3, arXiv 2503.01840, section 3.1)."""
    return tuple(sorted({min(2, num_layers - 1), num_layers // 2, max(0, num_layers - 3)}))


def layer_config(target: ModelConfig, head: HeadConfig) -> ModelConfig:
    """The head's layers as a model of their own: the target's last layer, as often as wanted."""
    return replace(
        target,
        num_layers=head.num_layers,
        vocab_size=head.draft_vocab_size,
        ropes=target.ropes[-1:] * head.num_layers,
        windows=(None,) * head.num_layers,
        qkv_bias=False,
        output_bias=False,
        ffn_bias=False,
        qk_norm=False,
        qk_norm_whole=False,
        post_norms=False,
        norm_offset=0.0,
        attention_softcap=None,
        final_softcap=None,
        logits_divisor=1.0,
        branch_scale=1.0,
        moe=None,
        embed_scale=None,
        activation="silu",
        latent=None,
        index=None,
        nsa=None,
        delta=None,
        output_gate=False,
        rotary_dim=None,
        sinks=False,
        draft_layers=0,
    )
