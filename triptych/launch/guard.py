"""Ends a cluster whose launcher died without a word (kill -9, OOM killer).

A tiny process beside the cluster: `python -I -S guard.py MARK GRACE_S`, with a pipe from the
launcher as its standard input. Nothing is ever written to that pipe; when the launcher goes,
however it goes, the kernel closes it. Then every process that was started with `TRIPTYCH_RUN=MARK`
in its environment, helpers of helpers included, gets SIGTERM, and SIGKILL after the grace. After
an orderly stop there is none left and it just ends.

Why not PR_SET_PDEATHSIG: it fires when the *thread* that forked ends, has to be set between fork
and exec (preexec_fn: unsafe beside threads), and a worker's own children would not have it. Why
not a pipe that each worker watches: a worker that hangs would not look.

Standard library only, no `site`, no imports of ours: it must start in milliseconds and never fail
to import.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time

MARK_NAME = "TRIPTYCH_RUN"
_POLL_S = 0.05  # these are not our children: nobody tells us when they end
_SWEEPS = 200  # then give up on what even SIGKILL does not end (stuck in the kernel)


def marked_pids(mark: str) -> list[int]:
    """Processes that carry the mark and are not zombies (those have an empty environment)."""
    wanted = f"{MARK_NAME}={mark}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            # Gone meanwhile, or another user's.
            with contextlib.suppress(OSError), open(f"/proc/{entry}/environ", "rb") as file:
                if wanted in file.read().split(b"\0"):
                    found.append(int(entry))
    return found


def end_marked(mark: str, grace_s: float) -> None:
    """SIGTERM to the leaders (their helpers may be needed to drain), SIGKILL to all the rest."""
    told: set[int] = set()
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline:
        leaders = {pid for pid in marked_pids(mark) if _leads(pid)}
        for pid in leaders - told:
            _send(pid, signal.SIGTERM)
        told |= leaders
        if not leaders:
            break
        time.sleep(_POLL_S)
    for _ in range(_SWEEPS):  # again and again: one of them may have been forking
        pids = marked_pids(mark)
        for pid in pids:
            _send(pid, signal.SIGKILL)
        if not pids:
            break
        time.sleep(_POLL_S)


def _leads(pid: int) -> bool:
    # The launcher starts each process of the plan in a session of its own.
    with contextlib.suppress(ProcessLookupError):
        return os.getsid(pid) == pid
    return False


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def main() -> None:
    mark, grace_s = sys.argv[1], float(sys.argv[2])
    while os.read(0, 4096):
        pass
    end_marked(mark, grace_s)


if __name__ == "__main__":
    main()
