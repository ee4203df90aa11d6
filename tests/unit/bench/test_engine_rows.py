"""What the engine benchmark reports, for people and for machines."""

from __future__ import annotations

from bench.engine_rows import Cell, Row, Samples, table_of


def test_the_median_of_the_rounds_is_reported() -> None:
    samples = Samples()
    for tokens_s in (30.0, 10.0, 11.0):
        samples.add("int4", Cell("decode", 1), tokens_s)
    assert samples.typical("int4", Cell("decode", 1)) == 11.0
    assert samples.typical("int4", Cell("decode", 4)) is None


def test_a_row_names_its_size_after_its_phase() -> None:
    decode = Row(Cell("decode", 16), "bfloat16", 300.123, 0.51234, {"vllm": 100.0}).to_json()
    assert decode == {
        "phase": "decode",
        "dtype": "bfloat16",
        "batch": 16,
        "tokens_s": 300.12,
        "roofline": 0.5123,
        "peers": {"vllm": 100.0},
    }
    assert Row(Cell("prefill", 512), "int8", 1.0, 0.1).to_json()["tokens"] == 512
    verify = Row(Cell("verify", 5), "int8", 1.0, 0.1, ratio=1.23456).to_json()
    assert (verify["rows"], verify["ratio"]) == (5, 1.235)


def test_the_table_shows_ratios_only_beside_what_was_compared() -> None:
    rows = [
        Row(Cell("decode", 1), "bfloat16", 50.0, 0.5, {"vllm": 20.0}),
        Row(Cell("verify", 5), "bfloat16", 1234.0, 0.4, ratio=1.1),
    ]
    columns, lines = table_of(rows, ["vllm"])
    assert columns == [
        "phase", "dtype", "size", "tokens/s", "% of limit", "vllm", "ratio", "time of one row",
    ]  # fmt: skip
    assert lines[0] == ["decode", "bfloat16", "batch 1", "50.0", "50 %", "20.0", "2.50×", ""]
    assert lines[1] == ["verify", "bfloat16", "rows 5", "1,234", "40 %", "", "", "× 1.10"]
