"""`triptych calibrate` on a small model: what it tells is what the engine does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from triptych.calibrate.long_text import JUDGED_ROWS, LongText, difference
from triptych.engine.backend import choose_backend
from triptych.launch.cli import app
from triptych.models.load import load_model
from triptych.request import SparseAttention
from triptych_kernels.cpu.native import native

pytestmark = pytest.mark.skipif(native() is None, reason="no native kernels here")


@pytest.fixture
def text(tiny_model: Path) -> LongText:
    backend = choose_backend("float32", "float32")
    model = load_model(tiny_model, dtype=backend.weights, packer=backend.packer)
    dice = torch.Generator().manual_seed(3)
    phrase = torch.randint(3, 250, (40,), generator=dice).tolist()
    ids = [token for n in range(24) for token in (phrase if n % 3 else [n + 3] * 40)]
    return LongText(model, backend, ids, 16)


def test_a_scale_of_zero_reads_as_dense_attention_does(text: LongText) -> None:
    dense = text.read(None)
    same = text.read(SparseAttention(0.0))
    assert torch.equal(dense.logprobs, same.logprobs)
    assert (same.prompt.skipped, same.decode.skipped) == (0, 0)
    assert dense.logprobs.shape[0] == JUDGED_ROWS
    apart = difference(dense, same)
    assert (apart.same_token, apart.kl) == (1.0, 0.0)


def test_the_more_is_left_out_the_farther_the_answers_are_from_dense_ones(text: LongText) -> None:
    dense = text.read(None)
    readings = [text.read(SparseAttention(scale)) for scale in (100.0, 480.0)]
    shares = [each.decode.share for each in readings]
    apart = [difference(dense, each).kl for each in readings]
    assert shares[0] < shares[1]
    assert apart[0] <= apart[1] and apart[1] > 0


def test_the_command_tells_the_scale_and_what_it_does_at_each_length(
    tiny_model: Path, tmp_path: Path
) -> None:
    words = tmp_path / "words.txt"
    words.write_text("the cat sat on the mat and saw the dog\n" * 60)
    asked = ["calibrate", "--json", "--skip", "0.2", "--tokens", "512", "--text", str(words)]
    found = CliRunner().invoke(
        app, [*asked, "--set", f"model={tiny_model}", "--set", "dtype=float32"]
    )
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout.splitlines()[-1])
    assert told["wanted"] == 0.2 and 1 <= told["scale"] <= 260
    assert told["max_omitted"] is None
    (row,) = told["lengths"]
    assert row["tokens"] == 512 and 0 <= row["prompt"] <= row["decode"] <= 1


def test_a_text_that_cannot_be_read_is_named(tiny_model: Path, tmp_path: Path) -> None:
    asked = ["calibrate", "--set", f"model={tiny_model}", "--text", str(tmp_path / "none.txt")]
    found = CliRunner().invoke(app, asked)
    assert found.exit_code == 2
    assert "--text" in found.output and "none.txt" in found.output
