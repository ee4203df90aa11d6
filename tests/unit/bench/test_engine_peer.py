"""Talking to engines in other processes, with a stand-in for an engine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.engine_peer import KINDS, Peer, PeerError, Timed, peer_command

STAND_IN = """
import sys
from bench.peers.lines import serve

class StandIn:
    def load(self, model, threads, batch, tokens, eager):
        print("a banner on standard output")
        return {"engine": f"stand-in of {model}", "settings": {"eager": eager}}

    def decode(self, prompts, steps):
        return {"tokens": steps * len(prompts), "seconds": 2.0, "drawn": prompts}

    def prefill(self, prompt):
        sys.exit("out of ideas")

serve(StandIn())
"""


@pytest.fixture
def start() -> Iterator[Callable[[], Peer]]:
    started: list[Peer] = []

    def start() -> Peer:
        command = [sys.executable, "-c", STAND_IN]
        started.append(
            Peer("x", command, Path("m.gguf"), threads=2, batch=4, tokens=64, eager=True)
        )
        return started[-1]

    yield start
    for peer in started:
        peer.close()


def test_a_peer_answers_and_what_it_prints_does_not_get_in_the_way(
    start: Callable[[], Peer],
) -> None:
    peer = start()
    assert peer.engine == "stand-in of m.gguf"
    assert peer.settings == {"eager": True}
    assert peer.decode([[1, 2], [3, 4]], steps=10) == Timed(20, 2.0, [[1, 2], [3, 4]])
    assert peer.decode([[1]], steps=3).tokens_s == 1.5


def test_a_peer_that_dies_is_reported_with_its_last_words(start: Callable[[], Peer]) -> None:
    peer = start()
    with pytest.raises(PeerError, match=r"x died at 'prefill', exit code 1:\n(?s:.*)out of ideas"):
        peer.prefill([1])


def test_a_peer_that_is_not_installed_names_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("bench.engine_peer.PEERS", tmp_path)
    with pytest.raises(PeerError, match="make peers"):
        peer_command(KINDS["vllm"])


def test_peers_are_asked_only_for_what_they_are_compared_in() -> None:
    assert KINDS["vllm"].takes("decode", 32) and KINDS["vllm"].takes("prefill", 2048)
    assert KINDS["llama_cpp"].takes("decode", 1) and not KINDS["llama_cpp"].takes("decode", 32)
    assert not any(kind.takes("verify", 5) for kind in KINDS.values())
