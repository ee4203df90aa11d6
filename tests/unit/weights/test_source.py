from __future__ import annotations

import pytest

from triptych.errors import ModelError
from triptych.weights.source import HubSource, UrlSource, is_source, parse_source

SUM = "ab" * 32


@pytest.mark.parametrize(
    "text, expected",
    [
        ("hf://org/name", HubSource("org/name")),
        ("hf://org/name@v1.0", HubSource("org/name", "v1.0")),
        ("hf://org/name@refs/pr/7", HubSource("org/name", "refs/pr/7")),
        ("hf://org/name/q4.gguf", HubSource("org/name", file="q4.gguf")),
        ("hf://org/name@abc/sub/q4.gguf", HubSource("org/name", "abc", "sub/q4.gguf")),
        ("https://host/q4.gguf", UrlSource("https://host/q4.gguf")),
        (f"https://host/q4.gguf#sha256={SUM}", UrlSource("https://host/q4.gguf", SUM)),
    ],
)
def test_sources_are_understood(text: str, expected: object) -> None:
    assert is_source(text)
    assert parse_source(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "hf://name",
        "hf://org/name@",
        "https://host/",
        "https:///q4.gguf",
        "ftp://h/f",
        "https://h/..",
    ],
)
def test_what_is_no_source_gets_the_forms_that_there_are(text: str) -> None:
    with pytest.raises(ModelError, match=r"expected hf://org/name\[@revision\]"):
        parse_source(text)


def test_checksums_must_be_such() -> None:
    with pytest.raises(ModelError, match="expected 64 lower-case hexadecimal digits"):
        parse_source("https://host/q4.gguf", "AB" * 32)
    with pytest.raises(ModelError, match="behind # only sha256="):
        parse_source("https://host/q4.gguf#top")
    with pytest.raises(ModelError, match="--sha256 is for one file"):
        parse_source("hf://org/name", SUM)


@pytest.mark.parametrize(
    "text, name",
    [
        ("hf://org/name@v1", "name"),
        ("hf://org/name/q4.gguf", "q4.gguf"),
        ("https://host/some/q4.gguf?X-Signature=1", "q4.gguf"),
        ("https://host/llama/SHA256SUMS", "llama"),
    ],
)
def test_a_model_is_called_by_its_repository_file_or_folder(text: str, name: str) -> None:
    assert parse_source(text).short_name == name


def test_a_new_signature_does_not_make_another_source() -> None:
    first, second = (parse_source(f"https://me:pw@host/q4.gguf?sig={sig}") for sig in "ab")
    assert str(first) == str(second) == "https://host/q4.gguf"
    assert first.cache_name == second.cache_name


def test_other_sources_have_other_folders() -> None:
    texts = ["hf://o/n", "hf://o/n@v1", "hf://o/n/a.gguf", "hf://o/n/b.gguf", "https://h/a.gguf"]
    assert len({parse_source(text).cache_name for text in texts}) == len(texts)
