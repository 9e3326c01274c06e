"""Hosts on one machine: network namespaces joined by a `virtual_switch`, for clusters under test.

Owns the namespaces, their addresses and their cables, and takes all of them away again. Needs root, `ip` and /dev/net/tun;
`missing` says what a machine lacks. It must never know what runs in the namespaces.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from .virtual_switch import FRAME_BYTES_MAX, Order, Shape

TUN = Path("/dev/net/tun")
HOSTS_MAX = 16
"""Hosts of one network; each is a namespace and a port of one switch."""
UNSHAPED = Shape()
_TUNSETIFF = 0x400454CA
_IFF_TAP_WITHOUT_HEADER = 0x0002 | 0x1000
_ETHERNET_HEADER_BYTES = 18


class NamespaceError(Exception):
    """The hosts cannot be made; the sentence says what is missing."""


@dataclass(frozen=True, slots=True)
class Host:
    """A network namespace with one address. ``port`` is its port of the switch."""

    name: str
    namespace: str
    address: str
    port: int

    def command(self, arguments: Sequence[str]) -> list[str]:
        """``arguments`` as a command that runs on this host."""
        return [_ip(), "netns", "exec", self.namespace, *arguments]


class HostNetwork:
    """Hosts, and this process beside them at ``own_address``. Cables can be cut and mended."""

    def __init__(self, hosts: tuple[Host, ...], own_address: str, switch: subprocess.Popen[bytes]) -> None:
        self.hosts = hosts
        self.own_address = own_address
        self._switch = switch

    def cut(self, *hosts: Host) -> None:
        """Nothing reaches or leaves ``hosts`` from now on; everything else is mended."""
        self._order(Order(cut_ports=tuple(host.port for host in hosts)))

    def cut_between(self, *pairs: tuple[Host, Host]) -> None:
        """Nothing passes between the two of each pair from now on; everything else is mended."""
        self._order(Order(cut_pairs=tuple((one.port, other.port) for one, other in pairs)))

    def mend(self) -> None:
        """Everything passes again."""
        self._order(Order())

    def _order(self, order: Order) -> None:
        assert self._switch.stdin is not None
        assert self._switch.stdout is not None
        self._switch.stdin.write(msgspec.json.encode(order) + b"\n")
        self._switch.stdin.flush()
        if not self._switch.stdout.readline():
            raise NamespaceError("the switch between the hosts ended")


def missing() -> str:
    """What this machine lacks for namespaces of ours, as a sentence; "" where nothing is missing."""
    if os.geteuid() != 0:
        return "network namespaces are made by root only: run as root"
    if shutil.which("ip") is None:
        return "network namespaces are made with ip: install iproute2"
    if not os.access(TUN, os.R_OK | os.W_OK):
        return f"hosts are joined through {TUN}, which cannot be opened here"
    return ""


@contextmanager
def host_network(names: Sequence[str], shape: Shape = UNSHAPED) -> Iterator[HostNetwork]:
    """Hosts by ``names``, each with a cable of ``shape`` to one switch; gone afterwards. Raises `NamespaceError`."""
    if sentence := missing():
        raise NamespaceError(sentence)
    if not 0 < len(names) <= HOSTS_MAX:
        raise NamespaceError(f"a network has 1 to {HOSTS_MAX} hosts, not {len(names)}")
    mark, subnet = f"fp{os.getpid()}", f"10.99.{os.getpid() % 250}"
    hosts = tuple(
        Host(name, f"{mark}-{name}", f"{subnet}.{number + 1}", number + 1) for number, name in enumerate(names)
    )
    descriptors: list[int] = []
    try:
        descriptors.append(_tap(f"{mark}h", None, f"{subnet}.254"))
        for host in hosts:
            _run("netns", "add", host.namespace)
            _run("-n", host.namespace, "link", "set", "lo", "up")
            descriptors.append(_tap(f"{mark}p{host.port}", host.namespace, host.address))
        with _switch(descriptors, shape) as switch:
            yield HostNetwork(hosts, f"{subnet}.254", switch)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
        for host in hosts:
            with suppress(NamespaceError):
                _run("netns", "delete", host.namespace)


def _tap(name: str, namespace: str | None, address: str) -> int:
    """A TAP device with ``address``, in a namespace or beside us; its descriptor stays valid wherever the device goes."""
    descriptor = os.open(TUN, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TAP_WITHOUT_HEADER))
    except OSError as error:
        os.close(descriptor)
        raise NamespaceError(
            f"the device {name} cannot be made: {error.strerror}; a process has one network"
        ) from error
    if namespace is not None:
        _run("link", "set", name, "netns", namespace)
    where = ("-n", namespace) if namespace is not None else ()
    _run(*where, "link", "set", name, "mtu", str(FRAME_BYTES_MAX - _ETHERNET_HEADER_BYTES), "up")
    _run(*where, "address", "add", f"{address}/24", "dev", name)
    return descriptor


@contextmanager
def _switch(descriptors: Sequence[int], shape: Shape) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "flexpipe.bench.virtual_switch", msgspec.json.encode(shape).decode()]
    process = subprocess.Popen(  # noqa: S603 - ourselves
        [*command, *map(str, descriptors)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=descriptors
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def _ip() -> str:
    path = shutil.which("ip")
    if path is None:
        raise NamespaceError(missing())
    return path


def _run(*arguments: str) -> None:
    done = subprocess.run([_ip(), *arguments], capture_output=True, text=True, check=False)  # noqa: S603 - `ip`
    if done.returncode != 0:
        raise NamespaceError(f"ip {' '.join(arguments)} failed: {done.stderr.strip()}")
