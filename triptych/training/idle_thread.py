"""Teaches while nobody waits for an answer."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import torch

from triptych.training.learning_drafter import LearningHead
from triptych.training.online import DraftTrainer

_log = logging.getLogger(__name__)
_PAUSE_S = 0.05


class IdleTeacher:
    """A thread that makes one short step at a time, and none while `is_busy`."""

    def __init__(
        self, trainer: DraftTrainer, drafter: LearningHead, is_busy: Callable[[], bool]
    ) -> None:
        self._trainer = trainer
        self._drafter = drafter
        self._is_busy = is_busy
        self._leave = threading.Event()
        self._thread = threading.Thread(target=self._run, name="draft-trainer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """After the step under way."""
        self._leave.set()
        self._thread.join()

    def _run(self) -> None:
        torch.set_num_threads(1)  # of this thread: a request that comes finds the other cores free
        while not self._leave.wait(0.0 if self._step() else _PAUSE_S):
            pass

    def _step(self) -> bool:
        """False: nothing to do for now."""
        if self._is_busy() or not self._drafter.is_ready or not self._trainer.has_work:
            return False
        try:
            head = self._trainer.learn()
        except Exception:
            _log.exception("training of drafter %s failed and stops", self._drafter.name)
            self._leave.set()
            return False
        if head is not None:
            self._drafter.publish(head)
        return True
