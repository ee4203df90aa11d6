"""A short name for the weights in a checkpoint, so that KV of other weights is never taken for
ours.
"""

from __future__ import annotations

from pathlib import Path

import xxhash

_SAMPLE_BYTES = 1 << 16
_SAMPLES = 64


def weight_fingerprint(path: Path) -> str:
    """Hash of every file's size and of 64 evenly spaced samples of it; milliseconds for any size.

    path: a checkpoint directory or a single file. Tells checkpoints apart; it is no proof against
    an adversary who edits weights between the samples.
    """
    digest = xxhash.xxh3_128()
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    for file in files:
        if file.suffix not in {".safetensors", ".gguf", ".json"}:
            continue
        size = file.stat().st_size
        digest.update(f"{file.name if path.is_dir() else ''}:{size};".encode())
        with file.open("rb") as stream:
            for sample in range(_SAMPLES):
                stream.seek(sample * max(0, size - _SAMPLE_BYTES) // (_SAMPLES - 1))
                digest.update(stream.read(_SAMPLE_BYTES))
                if size <= _SAMPLE_BYTES:
                    break
    return digest.hexdigest()
