"""Settings of a worker whose model keeps states: what nobody asked for is left out, what somebody
did is refused with the remedy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from triptych.config import ClusterConfig
from triptych.engine.backend import Backend, KvDtype
from triptych.errors import ConfigError
from triptych.models.config import ModelConfig
from triptych.models.load import load_config
from triptych.speculation_config import SpeculationConfig
from triptych.testing.checkpoints import tiny_checkpoint, tiny_llama
from triptych.worker.on_states import check_settings, speculation_beside
from triptych_kernels.packer import ReferencePacker


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return load_config(tiny_checkpoint(tmp_path_factory.mktemp("delta"), "qwen3_next"))


def backend(kv: KvDtype = "float32") -> Backend:
    return Backend(ReferencePacker(), "torch", "float32", kv, 32)


def config(**values: Any) -> ClusterConfig:
    return ClusterConfig.model_validate({"model": "tiny", **values})


def test_drafts_that_nobody_asked_for_are_off(model: ModelConfig, tmp_path: Path) -> None:
    assert speculation_beside(model, SpeculationConfig()).mode == "off"
    assert speculation_beside(model, SpeculationConfig(max_nodes=4)).mode == "off"
    other = load_config(tiny_llama(tmp_path))
    assert speculation_beside(other, SpeculationConfig()).mode == "auto"
    check_settings(config(), backend(), model)


@pytest.mark.parametrize("asked", [{"mode": "dice"}, {"drafters": [{"kind": "ngram"}]}], ids=str)
def test_drafts_that_somebody_asked_for_are_refused(
    model: ModelConfig, asked: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=r"qwen3_next keeps states.*set speculation\.mode: off"):
        check_settings(config(speculation=asked), backend(), model)


def test_int8_kv_and_experts_elsewhere_are_refused(model: ModelConfig) -> None:
    with pytest.raises(ConfigError, match=r"kv\.dtype: .*set bfloat16 or float32"):
        check_settings(config(), backend("int8"), model)
    with pytest.raises(ConfigError, match=r"experts\.run: .*set experts\.run: local"):
        check_settings(config(experts={"run": "remote"}), backend(), model)
