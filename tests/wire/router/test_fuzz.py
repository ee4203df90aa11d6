"""Whatever the OpenAPI document allows, and what it forbids: the router keeps to its document."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# A schema cannot know the model's name, vocabulary and context: valid bodies may be refused.
UNKNOWABLE = "positive_data_acceptance"


def test_the_router_keeps_to_its_document(thread_url: str, tmp_path: Path) -> None:
    """Every field at its edges and beyond (coverage), then random bodies (fuzzing)."""
    fuzzer = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{thread_url}/openapi.json"),
            *("--phases", "coverage,fuzzing", "--mode", "all", "--max-examples", "25"),
            *("--max-time", "25", "--seed", "1", "--request-timeout", "10"),
            *("--exclude-checks", UNKNOWABLE, "--warnings", "off", "--no-color"),
            *("--generation-database", "none", "--no-shrink"),
        ],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert fuzzer.returncode == 0, fuzzer.stdout
