"""A teacher that computes each text once: later epochs read its states from a scratch file."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from triptych.training.teacher import States, Teacher

_LEAVE_FREE = 4 << 30  # bytes of the disk


class KeptStates:
    """What a `Teacher` says, from a file without a name: it goes when the process does. 4.5 KiB a
    token for a model that is 576 wide; what finds no room is computed again.
    """

    def __init__(self, teacher: Teacher, folder: Path) -> None:
        self._teacher = teacher
        self.vocabulary = teacher.vocabulary
        self._folder = folder
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - `close` closes it
        self._places: dict[tuple[int, ...], int] = {}  # offset of a text's rows
        self._end = 0

    def states(self, texts: Sequence[Sequence[int]]) -> list[States]:
        """As `Teacher.states`."""
        new = [text for text in texts if tuple(text) not in self._places]
        fresh = dict(zip(map(tuple, new), self._teacher.states(new), strict=True))
        for text, states in fresh.items():
            self._keep(text, states)
        return [fresh.get(tuple(text)) or self._read(tuple(text)) for text in texts]

    def close(self) -> None:
        self._file.close()

    def _keep(self, text: tuple[int, ...], states: States) -> None:
        rows = torch.cat(states, dim=-1)
        size = rows.numel() * rows.element_size()
        if shutil.disk_usage(self._folder).free < _LEAVE_FREE + size:
            return
        self._file.seek(self._end)
        self._file.write(rows.view(torch.int16).numpy().tobytes())
        self._places[text] = self._end
        self._end += size

    def _read(self, text: tuple[int, ...]) -> States:
        width = self._teacher.taps_size + self._teacher.hidden_size
        self._file.seek(self._places[text])
        raw = bytearray(self._file.read(2 * width * len(text)))
        rows = torch.frombuffer(raw, dtype=torch.bfloat16).view(len(text), width)
        return States(rows[:, : self._teacher.taps_size], rows[:, self._teacher.taps_size :])
