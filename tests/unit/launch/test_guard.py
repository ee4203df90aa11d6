from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

# A launcher of two workers, one of which ignores SIGTERM and has a helper in a session of its own.
LAUNCHER = """
import asyncio, pathlib, sys
from triptych.config import ClusterConfig
from triptych.launch.local import LocalLauncher
from triptych.launch.plan import ProcessSpec

HELPER = "import signal; signal.pause()"
STUBBORN = f'''
import os, signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
helper = subprocess.Popen([sys.executable, "-c", {HELPER!r}], start_new_session=True)
os.write(int(sys.argv[1]), f"{{os.getpid()}} {{helper.pid}} ".encode())
while True: signal.pause()
'''
POLITE = '''
import os, pathlib, signal, sys
def end(*_):
    pathlib.Path(sys.argv[2]).write_text("drained")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
os.write(int(sys.argv[1]), f"{os.getpid()} ".encode())
signal.pause()
'''

async def main():
    place, report = pathlib.Path(sys.argv[1]), sys.argv[2]
    specs = []
    for name, source in (("decode-0", STUBBORN), ("decode-1", POLITE)):
        argv = (sys.executable, "-c", source, report, str(place / "polite"))
        specs.append(ProcessSpec(name, "decode", argv, {}, "attached"))
    config = ClusterConfig(drain_s=0.2)
    await LocalLauncher(config, place / "run", specs=specs, margin_s=0.2).start()
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_a_killed_launcher_takes_its_cluster_with_it(tmp_path: Path) -> None:
    # The workers report their pids through a fifo: it needs no inherited descriptor.
    fifo = tmp_path / "pids"
    os.mkfifo(fifo)
    source = LAUNCHER.replace("os.write(int(sys.argv[1]),", "os.write(os.open(sys.argv[1], 1),")
    argv = [sys.executable, "-c", source, str(tmp_path), str(fifo)]
    reports = os.open(fifo, os.O_RDWR)  # also for writing: opens at once, never at its end
    with subprocess.Popen(argv) as launcher:
        pids = b""
        while len(pids.split()) < 3:
            assert select.select([reports], [], [], 60)[0], "the workers report in time"
            pids += os.read(reports, 100)
        handles = [os.pidfd_open(int(pid)) for pid in pids.split()]
        launcher.kill()
        for handle in handles:
            assert select.select([handle], [], [], 60)[0], "every process ends"
            os.close(handle)
    os.close(reports)
    assert launcher.returncode == -signal.SIGKILL
    assert (tmp_path / "polite").read_text() == "drained"
