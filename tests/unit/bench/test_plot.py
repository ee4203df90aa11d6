"""The picture of an engine result."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from bench.plot import lines_of, markdown_of, svg_of


@pytest.fixture
def result() -> dict[str, Any]:
    def row(dtype: str, batch: int, tokens_s: float, **peers: float) -> dict[str, Any]:
        return {
            "phase": "decode",
            "dtype": dtype,
            "batch": batch,
            "tokens_s": tokens_s,
            "roofline": 0.5,
            "peers": peers,
        }

    rows = [
        row("bfloat16", 16, 900.0, vllm=300.0),
        row("bfloat16", 1, 70.0, vllm=20.0),
        row("int4", 1, 150.0, llama_cpp=80.0),
        {
            "phase": "prefill",
            "dtype": "int4",
            "roofline": 0.6,
            "tokens": 2048,
            "tokens_s": 9e3,
            "peers": {},
        },
    ]
    return {"rows": rows, "machine": {"cores": 2}}


def test_every_engine_has_a_line_and_every_dtype_of_ours_a_limit(result: dict[str, Any]) -> None:
    lines = {line.name: line for line in lines_of(result)}
    assert list(lines) == [
        "Triptych bfloat16", "limit of bfloat16", "Triptych int4", "limit of int4",
        "vllm bfloat16", "llama_cpp int4",
    ]  # fmt: skip
    assert lines["Triptych bfloat16"].points == ((1, 70.0), (16, 900.0))
    assert lines["limit of bfloat16"].points == ((1, 140.0), (16, 1800.0))
    assert lines["vllm bfloat16"].points == ((1, 20.0), (16, 300.0))


def test_the_picture_is_valid_svg_inside_its_frame(result: dict[str, Any]) -> None:
    root = ElementTree.fromstring(svg_of(lines_of(result), "a < b"))
    width, height = (float(part) for part in root.attrib["viewBox"].split()[2:])
    space = "{http://www.w3.org/2000/svg}"
    assert [text.text for text in root.iter(f"{space}text")][0] == "a < b"
    for line in root.iter(f"{space}polyline"):
        for point in line.attrib["points"].split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= width and 0 <= y <= height


def test_the_table_has_decode_and_prefill_with_their_ratios(result: dict[str, Any]) -> None:
    lines = markdown_of(result).splitlines()
    assert lines[0] == (
        "|  | weights | tokens/s | of the limit | against vllm | against llama_cpp |"
    )
    assert lines[2] == "| decode, batch 16 | bfloat16 | 900 | 50 % | 3.0× |  |"
    assert lines[-1] == "| prompt of 2,048 tokens | int4 | 9,000 | 60 % |  |  |"
