"""A real etcd of the test's own, on free loopback ports: one member or three, to be stopped, killed and started again."""

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from contextlib import ExitStack, contextmanager

import pytest
from key_rings import free_port

START_S_MAX = 20.0
ATTEMPTS = 3
"""A port that was free may be somebody else's a moment later."""


def require_etcd():
    """Skip without etcd, but not in CI."""
    if shutil.which("etcd") is None:
        if os.environ.get("CI"):
            pytest.fail("etcd is not installed: apt-get install etcd-server")
        pytest.skip("etcd is not installed (apt-get install etcd-server)")


class EtcdMember:
    """One process. Its data outlive it."""

    def __init__(self, name, folder, client_port, peer_port, cluster):
        self.name = name
        self.endpoint = f"http://127.0.0.1:{client_port}"
        self._peer = f"http://127.0.0.1:{peer_port}"
        self._folder = folder
        self._cluster = cluster
        self._process = None

    def start(self):
        """Begin to start; `wait_healthy` waits."""
        command = [
            *("setpriv", "--pdeathsig", "KILL"),  # it ends with a test run that is killed
            *("etcd", "--name", self.name, "--data-dir", str(self._folder / self.name), "--logger", "zap"),
            *("--listen-client-urls", self.endpoint, "--advertise-client-urls", self.endpoint),
            *("--listen-peer-urls", self._peer, "--initial-advertise-peer-urls", self._peer),
            *("--initial-cluster", self._cluster, "--heartbeat-interval", "50", "--election-timeout", "500"),
        ]
        with (self._folder / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def stop(self):
        """SIGSTOP: it keeps its connections and says nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self):
        """Undo `stop`."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self):
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def ask(self, path, body=b"{}"):
        """One call of its API."""
        request = urllib.request.Request(f"{self.endpoint}/v3/{path}", body)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=2.0) as response:
            return json.load(response)

    def is_healthy(self):
        """Whether it serves, which it does only as part of a majority."""
        try:
            self.ask("kv/range", b'{"key": "YQ=="}')
        except OSError:
            return False
        return True

    def wait_healthy(self):
        """Wait until it serves; False where its process ended or it takes too long."""
        deadline_s = time.monotonic() + START_S_MAX
        while self._process.poll() is None and time.monotonic() < deadline_s:
            if self.is_healthy():
                return True
            time.sleep(0.02)
        return False

    def leads(self):
        """Whether it is the leader of etcd's own members."""
        status = self.ask("maintenance/status")
        return status["leader"] == status["header"]["member_id"]


def _members(folder, count):
    names = [f"m{number}" for number in range(count)]
    ports = [(free_port(), free_port()) for _ in names]
    cluster = ",".join(f"{name}=http://127.0.0.1:{peer}" for name, (_, peer) in zip(names, ports, strict=True))
    return [EtcdMember(name, folder, *pair, cluster) for name, pair in zip(names, ports, strict=True)]


@contextmanager
def running_etcd(folder, members=1):
    """An etcd that serves: its members, killed at the end whatever became of them."""
    require_etcd()
    for attempt in range(ATTEMPTS):
        place = folder / f"etcd-{attempt}"
        place.mkdir()
        with ExitStack() as stack:
            started = _members(place, members)
            for member in started:
                stack.callback(member.kill)
                member.start()
            if all(member.wait_healthy() for member in started):
                yield started
                return
    pytest.fail(f"etcd did not start; its logs are in {folder}")
