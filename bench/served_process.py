"""A real `flexpipe serve` process for benchmarks: started as a user would, and how much processor it and its workers took.

Owns the process and its log folder. It must never know what is measured.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_S_MAX = 300.0
STOP_S_MAX = 60.0


class ServerStartError(Exception):
    """The server ended, or was not ready in time; the sentence holds what it printed."""


@dataclass(frozen=True, slots=True)
class ServedProcess:
    """A server that is ready at ``url``; its JSON logs lie in ``log_folder`` while it lives."""

    pid: int
    url: str
    log_folder: Path

    def cpu_s(self) -> float:
        """Processor seconds of the server and all processes below it so far, ended ones that were waited for included."""
        children: dict[int, list[int]] = {}
        ticks: dict[int, int] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                fields = (folder / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
            except OSError:  # it ended just now
                continue
            pid = int(folder.name)
            children.setdefault(int(fields[1]), []).append(pid)
            ticks[pid] = sum(int(field) for field in fields[11:15])
        total, family = 0, [self.pid]
        while family:
            pid = family.pop()
            total += ticks.get(pid, 0)
            family += children.get(pid, [])
        return total / os.sysconf("SC_CLK_TCK")


def busy_cpu_s() -> float:
    """Processor seconds that anything took on this machine since it started, what its host took from it included."""
    fields = [int(field) for field in Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / os.sysconf("SC_CLK_TCK")


@contextmanager
def served_process(model: str, *options: str) -> Iterator[ServedProcess]:
    """Serve ``model`` on a free port until the context ends. Raises `ServerStartError`."""
    with tempfile.TemporaryDirectory(prefix="flexpipe-bench-") as folder:
        command = [sys.executable, "-m", "flexpipe.cli", "serve", model, "--port", "0", "--log-dir", folder, *options]
        process = subprocess.Popen(  # noqa: S603 - ourselves
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            yield ServedProcess(process.pid, _wait_ready(process, command), Path(folder))
        finally:
            _stop(process)


def _wait_ready(process: subprocess.Popen[str], command: Sequence[str]) -> str:
    """The server's address. What it prints after it fits into the pipe."""
    assert process.stdout is not None
    watchdog = threading.Timer(START_S_MAX, process.kill)
    watchdog.start()
    printed = ""
    try:
        for line in process.stdout:
            printed += line
            if found := re.search(r"ready at (http://[\d.:]+)/v1", line):
                return found[1]
    finally:
        watchdog.cancel()
    raise ServerStartError(f"`{' '.join(command)}` did not come up: {printed.strip() or 'it printed nothing'}")


def _stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    assert process.stdout is not None
    process.stdout.close()
