"""Real `flexpipe daemon` processes for demos and benches: on hosts of a `namespaces` network or on loopback, with etcd or without.

Owns the processes, their keys and their folders, and ends all of them. It must never know what is measured.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from .namespaces import Host

START_S_MAX = 300.0
STOP_S_MAX = 60.0
NODE_PORT, HTTP_PORT = 7700, 8000
PORTS_EACH = 100
"""Ports of one node's workers; on loopback each node has others."""
ETCD_START_S_MAX = 30.0
API_KEY = "of-a-cluster-under-test"
"""Gateways that listen beyond loopback ask for a key."""


class DaemonStartError(Exception):
    """A process of the cluster ended, or was not ready in time; the sentence holds what it printed."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one daemon lives: its address, its ports, and the words before a command that runs there."""

    name: str
    address: str
    node_port: int
    http_port: int
    first_port: int
    enter: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        """Its gateway's."""
        return f"http://{self.address}:{self.http_port}"

    @property
    def node_address(self) -> str:
        """Where other daemons find it, and as whom."""
        return f"tcp://{self.name}@{self.address}:{self.node_port}"


def on_hosts(hosts: Sequence[Host]) -> tuple[Place, ...]:
    """A place on each host of a network."""
    return tuple(
        Place(host.name, host.address, NODE_PORT, HTTP_PORT, NODE_PORT + 10, tuple(host.command(()))) for host in hosts
    )


def on_loopback(names: Sequence[str], first_port: int = 17_700) -> tuple[Place, ...]:
    """Places that share this host; each has ports of its own."""
    return tuple(
        Place(name, "127.0.0.1", port, port + 1, port + 2)
        for name, port in ((name, first_port + place * (PORTS_EACH + 10)) for place, name in enumerate(names))
    )


@dataclass
class DaemonProcess:
    """One daemon that was started, and perhaps killed."""

    place: Place
    process: subprocess.Popen[str]
    log_folder: Path
    printed: list[str] = field(default_factory=list)
    ready: threading.Event = field(default_factory=threading.Event)

    def read(self) -> None:
        """Take what it prints, until it ends."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.printed.append(line)
            if re.search(r"is ready at", line):
                self.ready.set()
        self.ready.set()

    @property
    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    def events(self, *names: str) -> list[dict[str, Any]]:
        """What it logged so far under ``names``; a line that it is writing is left out."""
        lines = (self.log_folder / "daemon.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
        return [event for event in map(json.loads, lines) if event["event"] in names]

    def kill(self) -> None:
        """SIGKILL, as a node that is gone."""
        self.process.kill()
        self.process.wait()


@dataclass(frozen=True, slots=True)
class Etcd:
    """The cluster's store, and where it answers."""

    url: str
    process: subprocess.Popen[bytes]


class Cluster:
    """Daemons that serve one model together. Clients need `API_KEY` where they are on hosts of their own."""

    def __init__(
        self, model: str, places: Sequence[Place], folder: Path, options: Sequence[str], etcd: Etcd | None
    ) -> None:
        self.places = {place.name: place for place in places}
        self.daemons: dict[str, DaemonProcess] = {}
        self._model = model
        self._folder = folder
        self._options = tuple(options)
        self._etcd = etcd
        self._keys = _keys(places, folder) if any(place.enter for place in places) else {}

    def start(self, name: str, *options: str) -> DaemonProcess:
        """Start a daemon; it comes up meanwhile. Where there is no etcd the first one leads."""
        place = self.places[name]
        logs = self._folder / "logs" / name
        logs.mkdir(parents=True, exist_ok=True)
        first = next(iter(self.places.values()))
        lead = () if place is first else ("--join", first.node_address)
        if self._etcd is not None:
            lead = ("--etcd", self._etcd.url)
        command = [
            *place.enter,
            *(sys.executable, "-m", "flexpipe.cli", "daemon", self._model, "--name", name),
            *("--bind", f"tcp://{place.address}:{place.node_port}"),
            *("--ports", f"{place.first_port}-{place.first_port + PORTS_EACH - 1}"),
            *("--host", place.address, "--port", str(place.http_port)),
            *("--log-dir", str(logs), "--state", str(self._folder / "state" / name)),
            *(("--keys", str(self._keys[name]), "--api-key", API_KEY) if self._keys else ()),
            # The links between daemons are encrypted all the same; it lets etcd be reached without TLS.
            *(("--insecure", "--insecure") if self._keys and self._etcd is not None else ()),
            *lead,
            *self._options,
            *options,
        ]
        process = subprocess.Popen(  # noqa: S603 - ourselves
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        daemon = self.daemons[name] = DaemonProcess(place, process, logs)
        threading.Thread(target=daemon.read, daemon=True).start()
        return daemon

    def wait_ready(self) -> None:
        """Wait until every daemon says that the cluster serves. Raises `DaemonStartError`."""
        for daemon in self.daemons.values():
            if not daemon.ready.wait(START_S_MAX) or not daemon.is_alive:
                raise DaemonStartError(f"{daemon.place.name} did not come up: {''.join(daemon.printed).strip()}")

    @property
    def has_etcd(self) -> bool:
        """Whether others can lead after the first."""
        return self._etcd is not None

    def leader(self) -> DaemonProcess:
        """The daemon that lives and said last that it leads."""
        said = [
            (event["time_s"], daemon)
            for daemon in self.daemons.values()
            for event in daemon.events("leadership_changed")
            if event["state"] == "leading" and daemon.is_alive
        ]
        return max(said, key=lambda each: float(each[0]))[1]

    def kill_etcd(self) -> None:
        """SIGKILL to etcd; its data stay on disk."""
        assert self._etcd is not None
        self._etcd.process.kill()
        self._etcd.process.wait()

    def end(self) -> None:
        """Stop all of them."""
        alive = [daemon for daemon in self.daemons.values() if daemon.is_alive]
        for daemon in alive:
            daemon.process.send_signal(signal.SIGTERM)
        deadline_s = time.monotonic() + STOP_S_MAX
        for daemon in alive:
            try:
                daemon.process.wait(max(0.1, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                daemon.kill()


@contextmanager
def cluster(model: str, places: Sequence[Place], *options: str, etcd_on: Place | None = None) -> Iterator[Cluster]:
    """A cluster with no daemon yet; all that were started are gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="flexpipe-cluster-") as folder, ExitStack() as stack:
        etcd = stack.enter_context(_etcd(etcd_on, Path(folder))) if etcd_on is not None else None
        made = Cluster(model, places, Path(folder), options, etcd)
        stack.callback(made.end)
        yield made


def has_etcd() -> bool:
    """Whether this machine has etcd."""
    return shutil.which("etcd") is not None


def _keys(places: Sequence[Place], folder: Path) -> dict[str, Path]:
    """A folder of keys for each place, in which all of them are allowed: made with the command that users have."""
    folders = {place.name: folder / "keys" / place.name for place in places}
    for name, own in folders.items():
        _flexpipe("keys", "init", name, "--folder", str(own))
    for name, own in folders.items():
        for other in folders.values():
            if other != own:
                _flexpipe("keys", "add", name, str(own / "allowed" / f"{name}.pub"), "--folder", str(other))
    return folders


def _flexpipe(*arguments: str) -> None:
    command = [sys.executable, "-m", "flexpipe.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - ourselves
    if done.returncode != 0:
        raise DaemonStartError(f"`flexpipe {' '.join(arguments[:2])}` failed: {done.stderr.strip()}")


@contextmanager
def _etcd(place: Place, folder: Path) -> Iterator[Etcd]:
    """An etcd of one member at ``place``."""
    program = shutil.which("etcd")
    if program is None:
        raise DaemonStartError("there is no etcd on this machine: install etcd-server")
    client, peer = (f"http://{place.address}:{place.node_port + port}" for port in (-2, -1))
    command = [
        *place.enter,
        *(program, "--name", "one", "--data-dir", str(folder / "etcd"), "--log-level", "error"),
        *("--listen-client-urls", client, "--advertise-client-urls", client),
        *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"one={peer}"),
    ]
    with (folder / "etcd.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # noqa: S603 - etcd
    try:
        _wait_healthy(client, process)
        yield Etcd(client, process)
    finally:
        process.kill()
        process.wait()


def _wait_healthy(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + ETCD_START_S_MAX
    while process.poll() is None and time.monotonic() < deadline_s:
        try:
            if httpx.get(f"{url}/health", timeout=1.0).json().get("health") == "true":
                return
        except (httpx.HTTPError, ValueError):
            time.sleep(0.1)
    raise DaemonStartError(f"etcd did not come up at {url}")
