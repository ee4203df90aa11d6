"""`triptych draft train`: texts, a head, a table; cut off anywhere, it goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from triptych.drafters.heads.head_config import HeadKind
from triptych.launch.cli import app
from triptych.testing.checkpoints import tiny_llama
from triptych.training import train as recipe
from triptych.training.checkpoint import load_head_tensors, load_state
from triptych.training.corpus import Corpus
from triptych.training.kept_states import KeptStates
from triptych.training.learner import Settings
from triptych.training.offline import offline_parts
from triptych.training.teacher import Teacher
from triptych.training.train import Plan, train
from triptych.worker.boot import EngineParts

SMALL = ["kv.memory=16MiB", "engine.prefix_cache=false"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def parts(model: Path) -> EngineParts:
    return offline_parts([f"model={model}", *SMALL])


def plan_of(folder: Path, kind: HeadKind = "eagle3") -> Plan:
    settings = Settings(passes=2)
    return Plan(kind, folder, (), 3000, 2, draft_vocab=64, batch_rows=256, settings=settings)


class Watcher:
    def __init__(self, cut_in: str = "", at: int = 0) -> None:
        self._cut = cut_in, at
        self.seen: dict[str, list[int]] = {}
        self._stage = ""

    def stage(self, name: str, total: int) -> None:
        self._stage = name

    def progress(self, done: int, note: str = "") -> None:
        self.seen.setdefault(self._stage, []).append(done)
        if (self._stage, done) == self._cut:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["eagle3", "parallel"])
def test_the_command_leaves_a_head_and_tells_how_often_it_is_right(
    model: Path, tmp_path: Path, kind: str
) -> None:
    options = ["--kind", kind, "--target", str(model), "--out", str(tmp_path), "--tokens", "3000"]
    options += ["--epochs", "1", "--passes", "2", "--vocab", "64"]
    for setting in SMALL:
        options += ["--set", setting]
    result = CliRunner().invoke(app, ["draft", "train", *options])
    assert result.exit_code == 0, result.output
    for word in ("position 1", "position 2", "tokens per round", "the head learns"):
        assert word in result.output
    assert {path.name for path in tmp_path.iterdir()} == {
        "corpus.jsonl",
        "head.json",
        "model.safetensors",
    }
    assert json.loads((tmp_path / "head.json").read_text())["kind"] == kind


def test_a_bad_line_of_prompts_is_named(model: Path, tmp_path: Path) -> None:
    data = tmp_path / "prompts.jsonl"
    data.write_text('{"prompt": "fine"}\n{"text": "not fine"}\n')
    options = ["--target", str(model), "--out", str(tmp_path / "head"), "--data", str(data)]
    result = CliRunner().invoke(app, ["draft", "train", *options])
    assert result.exit_code != 0
    assert "prompts.jsonl:2" in str(result.output) + str(result.exception)


def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(
    parts: EngineParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "_SAVE_EVERY_S", 0.0)
    whole = Watcher()
    score = train(plan_of(tmp_path / "whole"), parts, whole)
    plan = plan_of(tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        train(plan, parts, Watcher("the target writes", whole.seen["the target writes"][5]))
    assert 0 < Corpus(plan.out / "corpus.jsonl").num_texts < len(whole.seen["the target writes"])
    written = (tmp_path / "whole" / "corpus.jsonl").read_bytes()
    (plan.out / "corpus.jsonl").write_bytes(written)  # what is written next depends on the load
    middle = len(whole.seen["the head learns"]) // 2
    with pytest.raises(KeyboardInterrupt):
        train(plan, parts, Watcher("the head learns", middle))
    assert load_state(plan.out) is not None
    rest = Watcher()
    again = train(plan, parts, rest)
    assert rest.seen["the head learns"][0] == middle  # the step in which it was cut is done again
    assert again.reached == score.reached
    ours, theirs = (load_head_tensors(tmp_path / name) for name in ("whole", "cut"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_head_learns(parts: EngineParts, tmp_path: Path) -> None:
    """A tiny model of random weights says little that can be foreseen, but some."""
    plan = plan_of(tmp_path)
    untaught = train(replace(plan, epochs=0), parts, Watcher())
    taught = train(replace(plan, epochs=8), parts, Watcher())
    assert taught.loss < 0.95 * untaught.loss


def test_states_that_were_kept_are_those_that_the_target_has(
    parts: EngineParts, tmp_path: Path
) -> None:
    teacher = Teacher(parts.runner, parts.pool, parts.layout.block_tokens, (0, 1))
    kept = KeptStates(teacher, tmp_path)
    texts = [tuple(range(3, 3 + count)) for count in (40, 7, 19)]
    expected = teacher.states(texts)
    for order in ((0, 1), (1, 2, 0), (2, 0, 1)):
        for place, states in zip(order, kept.states([texts[i] for i in order]), strict=True):
            assert torch.equal(states.taps, expected[place].taps)
            assert torch.equal(states.final, expected[place].final)
    assert not list(tmp_path.iterdir()), "the scratch file has no name"
    kept.close()
