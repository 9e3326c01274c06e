"""A real `flexpipe serve` process for tests: started as a user would, stopped by a signal."""

import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx

START_S_MAX = 300
STOP_S_MAX = 60
END_S_MAX = 30
"""How long a process that was let go, or killed, may take to be gone."""


class Served:
    """A running server: its ``url``, its process, and what it printed."""

    def __init__(self, process, log_folder):
        self.process = process
        self.log_folder = log_folder
        self.printed = ""
        self.url = self._wait_ready()
        # Nobody reads the rest otherwise, and a full pipe would stop the server.
        self._reader = threading.Thread(target=self._read_on, daemon=True)
        self._reader.start()

    def _wait_ready(self):
        for line in self.process.stdout:
            self.printed += line
            found = re.search(r"ready at (http://[\d.:]+)/v1", line)
            if found:
                return found[1]
        raise AssertionError(f"the server ended: {self.printed}{self.process.stderr.read()}")

    def _read_on(self):
        for line in self.process.stdout:
            self.printed += line

    def status(self):
        return httpx.get(f"{self.url}/flexpipe/v1/status").json()

    def pids(self):
        return [stage["pid"] for stage in self.status()["stages"]]

    def is_ready(self):
        return httpx.get(f"{self.url}/ready").json()["ready"]

    def wait_ready(self):
        while not self.is_ready():
            pass

    def events(self, *names):
        """The daemon's log, or its events of some names."""
        lines = (self.log_folder / "daemon.jsonl").read_text(encoding="utf-8").splitlines()
        events = [json.loads(line) for line in lines]
        return [event for event in events if not names or event["event"] in names]

    def wait_event(self, name, **fields):
        """Wait until the daemon's log has an event ``name`` with these fields."""
        deadline_s = time.monotonic() + END_S_MAX
        while not any(fields.items() <= event.items() for event in self.events(name)):
            assert time.monotonic() < deadline_s, f"{name} was not logged"

    def spawned(self):
        """Worker → pid, of every worker there ever was."""
        return {event["worker"]: event["pid"] for event in self.events("worker_spawned")}

    def fork_server(self):
        """The pid of the process whose children the workers are."""
        return parent_of(self.pids()[0])

    def wait_no_worker_left(self):
        """Wait until only the workers that serve are alive."""
        for pid in set(self.spawned().values()) - set(self.pids()):
            wait_gone(pid)

    def stop(self, number=signal.SIGTERM):
        """Send a signal and wait; the exit code and what was written to stderr."""
        self.process.send_signal(number)
        self.process.wait(STOP_S_MAX)
        self._reader.join()
        return self.process.returncode, self.process.stderr.read()


def alive(pid):
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return _stat(pid)[0] != "Z"
    except FileNotFoundError:
        return False


def parent_of(pid):
    return int(_stat(pid)[1])


def _stat(pid):
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()


def wait_gone(pid):
    """Wait until a process, a child of anybody's, has ended."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    readable, _, _ = select.select([handle], [], [], END_S_MAX)
    os.close(handle)
    assert readable, f"process {pid} lives on"


@contextmanager
def served(model, *options, log_folder: Path, program=("-m", "flexpipe.cli")):
    """Serve ``model`` on a free port; end it afterwards in any case. ``program`` is what Python runs."""
    command = [sys.executable, *program, "serve", str(model), "--port", "0", "--log-dir", str(log_folder)]
    process = subprocess.Popen(
        [*command, *options], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    watchdog = threading.Timer(START_S_MAX, process.kill)
    watchdog.start()
    try:
        server = Served(process, log_folder)
        watchdog.cancel()
        yield server
    finally:
        watchdog.cancel()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(STOP_S_MAX)
        process.stdout.close()
        process.stderr.close()
