"""An open checkpoint: what its model is, and where its weights come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from triptych.errors import ModelError
from triptych.models.config import ModelConfig
from triptych.models.families import parse_config
from triptych.models.families_nsa import common_name
from triptych.models.fields import Fields
from triptych.models.gguf_config import config_fields
from triptych.models.gguf_header import read_header
from triptych.models.gguf_source import GgufSource
from triptych.models.packed_source import PackedSource
from triptych.models.safetensors_source import SafetensorsSource, text_name
from triptych.models.sources import WeightSource


def load_config(path: Path) -> ModelConfig:
    """Reads no weights. `path` is a Hugging Face directory or a .gguf file. Raises ModelError."""
    if path.is_dir():
        return _directory_config(path)
    return parse_config(config_fields(read_header(path), str(path)))


def open_checkpoint(path: Path) -> tuple[ModelConfig, WeightSource]:
    """Of a directory or a file as above; its weights are read when they are asked for."""
    if path.is_dir():
        config = _directory_config(path)
        names = text_name if config.nsa is None else common_name
        return config, PackedSource(SafetensorsSource(path, names))
    header = read_header(path)
    config = parse_config(config_fields(header, str(path)))
    return config, GgufSource(path, header, config)


def _directory_config(directory: Path) -> ModelConfig:
    """config.json; generation_config.json may name more tokens that end an answer."""
    values = _read_json(directory / "config.json")
    generation = directory / "generation_config.json"
    if generation.is_file():
        both = (values, _read_json(generation))
        ids = [Fields(v, str(directory)).token_ids("eos_token_id") for v in both]
        values = values | {"eos_token_id": [*ids[0], *ids[1]] or None}
    return parse_config(Fields(values, str(directory / "config.json")))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ModelError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values
