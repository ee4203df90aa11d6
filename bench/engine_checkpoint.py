"""The same weights for engines that read no GGUF: a Hugging Face directory in bfloat16."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from triptych.config import cache_dir
from triptych.gguf_vocab import read_gguf
from triptych.models.families import parse_config
from triptych.models.gguf_config import config_fields
from triptych.models.gguf_header import read_header
from triptych.models.gguf_source import ROPE_FACTORS, GgufSource

_KEYS = (
    "architectures", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings",
    "rms_norm_eps", "rope_theta", "rope_scaling", "attention_bias", "mlp_bias",
    "tie_word_embeddings",
)  # fmt: skip


def bfloat16_folder(gguf: Path, cache: Path | None = None) -> Path:
    """config.json, tokenizer.json and model.safetensors of a Llama's GGUF file, dequantised.

    Written once into the cache, under a name with the file's size and date. Raises ModelError.
    """
    state = gguf.stat()
    folder = (cache or cache_dir() / "bench") / f"{gguf.stem}-{state.st_size}-{state.st_mtime_ns}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            _write(gguf, scratch)
            os.replace(scratch, folder)  # whoever finds the folder finds all of it
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
    return folder


def _write(gguf: Path, folder: Path) -> None:
    header = read_header(gguf)
    fields = config_fields(header, str(gguf))
    config = parse_config(fields)
    assert config.architecture == "llama", "other families write more keys"
    source = GgufSource(gguf, header, config)
    assert ROPE_FACTORS not in source.names(), "Hugging Face has these as rope_scaling"
    values = {key: fields.get(key) for key in _KEYS}
    values |= {
        "model_type": "llama",
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        "eos_token_id": list(config.eos_token_ids),
    }
    (folder / "config.json").write_text(json.dumps(values, indent=1))
    read_gguf(gguf).backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
    )
    weights = {name: source.read(name).to(torch.bfloat16).contiguous() for name in source.names()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
