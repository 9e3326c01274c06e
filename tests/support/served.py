"""A real `flexpipe serve` process for tests: started as a user would, stopped by a signal."""

import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import httpx

START_S_MAX = 300
STOP_S_MAX = 60


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

    def stop(self, number=signal.SIGTERM):
        """Send a signal and wait; the exit code and what was written to stderr."""
        self.process.send_signal(number)
        self.process.wait(STOP_S_MAX)
        self._reader.join()
        return self.process.returncode, self.process.stderr.read()


@contextmanager
def served(model, *options, log_folder: Path):
    """Serve ``model`` on a free port; end it afterwards in any case."""
    command = [sys.executable, "-m", "flexpipe.cli", "serve", str(model), "--port", "0", "--log-dir", str(log_folder)]
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
