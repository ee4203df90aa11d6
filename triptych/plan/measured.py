"""What stages cost on some hardware: the coefficients that a plan is computed from, as a file."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from triptych.errors import ConfigError


class Coefficients(BaseModel):
    """Microseconds are of one layer and one micro-batch; GB/s are 10⁹ bytes, each direction."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attention_token_us: float = Field(ge=0, description="attention, per cached token")
    attention_row_us: float = Field(0.0, ge=0, description="attention's other work, per row")
    attention_base_us: float = Field(ge=0, description="attention, whatever its rows")
    ffn_cell_us: float = Field(gt=0, description="FFN, per row and expert, compute-bound")
    expert_us: float = Field(0.0, ge=0, description="FFN, per distinct expert: reading weights")
    ffn_base_us: float = Field(ge=0, description="FFN, whatever its rows")
    link_gbs: float = Field(gt=0, description="link of an attention device")
    ffn_link_gbs: float = Field(gt=0, description="link of an FFN device")
    link_base_us: float = Field(ge=0, description="one way, whatever its bytes")


class Measured(BaseModel):
    """Coefficients and where they were measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    costs: Coefficients
    model: str = ""
    attention_device: str = ""
    ffn_device: str = ""


def write_measured(path: Path, measured: Measured) -> None:
    path.write_text(json.dumps(measured.model_dump(), indent=1) + "\n")


def read_measured(path: Path) -> Measured:
    """Raises ConfigError naming the file and the field."""
    try:
        return Measured.model_validate_json(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; `triptych doctor --afd` writes it") from error
    except ValidationError as error:
        from triptych.config import problems_of

        raise ConfigError(f"{path}: {problems_of(error)}; measure again") from error
