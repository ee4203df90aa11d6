"""Files that plans are read from, and what is said about wrong ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from triptych.launch.cli import app
from triptych.plan.inputs import read_inputs
from triptych.plan.lengths import load_of_trace
from triptych.plan.measured import Coefficients, Measured, read_measured, write_measured
from triptych.plan.traces import read_trace

run = CliRunner().invoke

COSTS = {
    "attention_token_us": 0.004,
    "attention_base_us": 40,
    "ffn_cell_us": 0.4,
    "ffn_base_us": 40,
    "link_gbs": 50,
    "ffn_link_gbs": 100,
    "link_base_us": 10,
}
INPUTS: dict[str, Any] = {
    "model": {
        "layers": 8,
        "hidden": 1024,
        "experts": 8,
        "top_k": 2,
        "kv_bytes": 20_000,
        "expert_bytes": "2MB",
    },
    "costs": COSTS,
    "devices": {
        "attention_memory": "4GB",
        "ffn_memory": "4GB",
        "max_attention": 4,
        "max_ffn": 3,
    },
    "lengths": {
        "prompt": {"law": "constant", "mean": 300},
        "output": {"law": "geometric", "mean": 100},
    },
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(INPUTS))
    return path


def test_the_command_shows_the_plan_its_neighbours_and_the_rival(file: Path) -> None:
    result = run(app, ["plan", "afd", str(file)])
    assert result.exit_code == 0, result.output
    for word in ("take", "unsplit", "tokens per slot", "floor"):
        assert word in result.output


def test_json_holds_the_same_answer(file: Path) -> None:
    result = run(app, ["plan", "afd", str(file), "--json", "--set", "goals.tpot_ms=20"])
    answer = json.loads(result.output)
    assert answer["plan"]["tpot_ms"] <= 20
    assert answer["load"]["theta"] == pytest.approx(399)
    assert answer["split_pays"] == (answer["plan"]["score"] > answer["colocated"]["score"])


def test_json_is_yaml_and_a_file_is_optional(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(INPUTS))
    from_file = run(app, ["plan", "afd", str(path), "--json"])
    options = [
        option
        for section, values in INPUTS.items()
        for option in ("--set", f"{section}={json.dumps(values)}")
    ]
    assert run(app, ["plan", "afd", "--json", *options]).output == from_file.output


def test_a_trace_replaces_the_laws(file: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text(
        '{"input_length": 900, "output_length": 3}\n\n{"input_length": 10, "output_length": 1}\n'
    )
    inputs, load = read_inputs(file, trace=trace)
    assert inputs.lengths is not None
    assert load == load_of_trace([(900, 3), (10, 1)])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ours.jsonl", '{"prompt_tokens": 7, "output_tokens": 2}'),
        (
            "mooncake.jsonl",
            '{"timestamp": 0, "input_length": 7, "output_length": 2, "hash_ids": []}',
        ),
        ("azure.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,7,2"),
    ],
)
def test_known_traces(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text + "\n")
    assert read_trace(tmp_path / name) == [(7, 2)]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"input_length": 7}', r":1: expected one of output_tokens"),
        ('{"input_length": 7, "output_length": -2}', r":1: output_length: -2 is no number"),
        ('{"input_length": 7, "output_length": 2}\nnonsense', r":2: no JSON"),
        ("[1]", r":1: expected an object"),
        ('{"input_length": 7, "output_length": 0}', r"no request with output tokens"),
    ],
)
def test_a_wrong_trace_names_its_line(
    file: Path, tmp_path: Path, text: str, complaint: str
) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text(text + "\n")
    result = run(app, ["plan", "afd", str(file), "--trace", str(trace)])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --trace: ")
    assert complaint in result.stderr


def test_measured_coefficients_come_back_and_replace_costs(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    measured = Measured(costs=Coefficients(**{**COSTS, "link_gbs": 7.5}), attention_device="cpu")
    write_measured(path, measured)
    assert read_measured(path) == measured
    inputs, _ = read_inputs(file, measured=path)
    assert inputs.costs.link_gbs == 7.5
    result = run(app, ["plan", "afd", str(file), "--measured", str(path)])
    assert result.exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--set", "goals.tpot=5"], "goals.tpot: unknown key"),
        (["--set", "model.top_k=9"], "top_k: 9 of 8 experts; at most all of them"),
        (["--set", "costs.ffn_cell_us=0"], "costs.ffn_cell_us: Input should be greater than 0"),
        (["--set", "goals.tokens_per_step=2"], "at most draft_tokens + 1"),
        (["--set", "goals.tpot_ms=0.01"], "goals.tpot_ms: 0.01 is below"),
        (["--measured", "nowhere.json"], "`triptych doctor --afd` writes it"),
        (["--set", "lengths={}"], "lengths.prompt: Field required"),
    ],
)
def test_a_wrong_input_is_one_line_that_names_the_field(
    file: Path, arguments: list[str], complaint: str
) -> None:
    result = run(app, ["plan", "afd", str(file), *arguments])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert complaint in result.stderr


@pytest.mark.parametrize(
    ("missing", "remedy"), [("costs", "--measured FILE"), ("lengths", "--trace FILE")]
)
def test_a_missing_section_names_the_option_that_gives_it(
    file: Path, missing: str, remedy: str
) -> None:
    file.write_text(yaml.safe_dump({k: v for k, v in INPUTS.items() if k != missing}))
    result = run(app, ["plan", "afd", str(file)])
    assert result.exit_code == 2
    assert f"{missing}: missing" in result.stderr and remedy in result.stderr


def test_a_damaged_measurement_names_the_field(tmp_path: Path, file: Path) -> None:
    path = tmp_path / "measured.json"
    path.write_text(json.dumps({"costs": {**COSTS, "link_gbs": -1}}))
    result = run(app, ["plan", "afd", str(file), "--measured", str(path)])
    assert result.exit_code == 2
    assert "costs.link_gbs" in result.stderr and "measure again" in result.stderr
