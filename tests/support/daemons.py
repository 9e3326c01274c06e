"""Real `flexpipe daemon` processes on loopback for tests: each started as a user would, all gone afterwards."""

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import httpx

START_S_MAX = 120
STOP_S_MAX = 60
PORTS_EACH = 20


def free_ports(count):
    """Ports of loopback that nobody has now, all at once."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def free_range(count):
    """The first of ``count`` consecutive free ports."""
    while True:
        (first,) = free_ports(1)
        try:
            probes = []
            for port in range(first, first + count):
                probes.append(probe := socket.socket())
                probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError):
            continue
        else:
            return first
        finally:
            for probe in probes:
                probe.close()


class DaemonProcess:
    """One daemon: its ``url`` once it is up, its log, and how to end it."""

    def __init__(self, name, folder, command):
        self.name = name
        self.folder = folder
        with (folder / "stderr").open("w") as errors:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)
        self.url = ""

    def wait_url(self):
        """Until it says where its gateway is, and that the cluster serves."""
        deadline = time.monotonic() + START_S_MAX
        printed = ""
        while (found := re.search(r"ready at (http://[\d.:]+)/v1", printed)) is None:
            readable, _, _ = select.select([self.process.stdout], [], [], deadline - time.monotonic())
            data = os.read(self.process.stdout.fileno(), 65536) if readable else b""
            if not data:
                raise AssertionError(f"{self.name} is not up: {printed}{self.said()}")
            printed += data.decode()
        self.url = found[1]

    def said(self):
        """What it wrote to stderr."""
        return (self.folder / "stderr").read_text(encoding="utf-8")

    def status(self):
        return httpx.get(f"{self.url}/flexpipe/v1/status").json()

    def devices(self):
        return [stage["device"] for stage in self.status()["stages"]]

    def wait_devices(self, fits):
        """Until ``fits`` is true of the devices that serve: a gateway hears of a change a moment later."""
        deadline = time.monotonic() + STOP_S_MAX
        while not fits(devices := self.devices()):
            assert time.monotonic() < deadline, devices

    def events(self, *names):
        lines = (self.folder / "daemon.jsonl").read_text(encoding="utf-8").splitlines()
        return [event for event in map(json.loads, lines) if event["event"] in names]

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_S_MAX)

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


class Daemons:
    """Several of them. The first leads, unless there is etcd."""

    def __init__(self, model, folder, *options, joins=True):
        self.each = {}
        self._joins = joins
        self._model = model
        self._folder = folder
        self._options = options
        self._leader = ""

    def start(self, name, *options, calls_itself=None, bind=None):
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        if name in self.each:
            self.each[name].end()
        bind = bind or free_ports(1)[0]
        first = free_range(PORTS_EACH)
        address = f"tcp://127.0.0.1:{bind}"
        command = [
            *(sys.executable, "-m", "flexpipe.cli", "daemon", str(self._model), "--name", calls_itself or name),
            *("--bind", address),
            *("--ports", f"{first}-{first + PORTS_EACH - 1}", "--port", "0"),
            *("--state", str(folder / "state"), "--log-dir", str(folder)),
            *(("--join", self._leader) if self._leader and self._joins else ()),
            *self._options,
            *options,
        ]
        self._leader = self._leader or f"tcp://{name}@127.0.0.1:{bind}"
        daemon = self.each[name] = DaemonProcess(name, folder, command)
        return daemon

    def living(self):
        return [daemon for daemon in self.each.values() if daemon.process.poll() is None]

    def wait_ready(self):
        for daemon in self.each.values():
            daemon.wait_url()


@contextmanager
def daemons(model, folder, *options, joins=True):
    """Yield `Daemons`; end them all. ``joins``: all but the first join it."""
    made = Daemons(model, folder, *options, joins=joins)
    try:
        yield made
    finally:
        for daemon in made.each.values():
            daemon.end()
