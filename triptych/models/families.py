"""The supported families: how each one's config.json becomes a ModelConfig.

Keys and defaults are those of Hugging Face's configuration classes, old spelling (`rope_theta`,
`rope_scaling`) and new (`rope_parameters`). A new family is one function and one table entry here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from triptych.errors import ModelError
from triptych.models.config import ModelConfig
from triptych.models.families_deepseek import (
    parse_deepseek_v2,
    parse_deepseek_v3,
    parse_deepseek_v32,
)
from triptych.models.families_delta import parse_qwen3_next
from triptych.models.families_dense import (
    parse_gemma3,
    parse_llama,
    parse_mistral,
    parse_qwen2,
    parse_qwen3,
)
from triptych.models.families_gpt_oss import parse_gpt_oss
from triptych.models.families_moe import (
    parse_granitemoe,
    parse_granitemoeshared,
    parse_mixtral,
    parse_olmoe,
    parse_qwen2_moe,
    parse_qwen3_moe,
)
from triptych.models.families_nsa import parse_nsa
from triptych.models.fields import Fields
from triptych.models.packed_tensors import FP8_BLOCK

_FAMILIES: dict[str, Callable[[Fields], ModelConfig]] = {
    "LlamaForCausalLM": parse_llama,
    "MistralForCausalLM": parse_mistral,
    "Qwen2ForCausalLM": parse_qwen2,
    "Qwen3ForCausalLM": parse_qwen3,
    "Gemma3ForCausalLM": parse_gemma3,
    "Gemma3ForConditionalGeneration": parse_gemma3,
    "MixtralForCausalLM": parse_mixtral,
    "Qwen2MoeForCausalLM": parse_qwen2_moe,
    "Qwen3MoeForCausalLM": parse_qwen3_moe,
    "OlmoeForCausalLM": parse_olmoe,
    "GraniteMoeForCausalLM": parse_granitemoe,
    "GraniteMoeSharedForCausalLM": parse_granitemoeshared,
    "DeepseekV2ForCausalLM": parse_deepseek_v2,
    "DeepseekV3ForCausalLM": parse_deepseek_v3,
    "DeepseekV32ForCausalLM": parse_deepseek_v32,
    "GptOssForCausalLM": parse_gpt_oss,
    "Qwen3NextForCausalLM": parse_qwen3_next,
    "NSAForCausalLM": parse_nsa,
}


def parse_config(fields: Fields) -> ModelConfig:
    """Raises ModelError naming the file and the key, or the architecture and the supported ones."""
    architectures = fields.get("architectures")
    if not isinstance(architectures, list) or len(architectures) != 1:
        raise fields.error("architectures", f"expected a list of one name, found {architectures!r}")
    parse = _FAMILIES.get(architectures[0])
    if parse is None:
        raise ModelError(
            f"{fields.origin}: architecture {architectures[0]!r} is not supported; "
            f"supported: {', '.join(_FAMILIES)}"
        )
    _check_packing(fields)
    config = parse(fields)
    if config.moe is not None and not any(config.moe.layers):
        return replace(config, moe=None)  # its FFNs may leave, as those of any dense model
    return config


def _check_packing(fields: Fields) -> None:
    """How the weights are stored; see packed_source."""
    section = fields.section("quantization_config")
    method = None if section is None else section.get("quant_method")
    if section is None or method == "mxfp4":
        return
    if method == "fp8" and section.get("weight_block_size") == [FP8_BLOCK, FP8_BLOCK]:
        return
    raise fields.error(
        "quantization_config",
        f"quantised checkpoints may be GGUF, FP8 in blocks of {FP8_BLOCK} × {FP8_BLOCK}, or MXFP4, "
        f"this one is {method!r} otherwise; or use the original weights",
    )
