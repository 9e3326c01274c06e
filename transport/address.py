"""Addresses of links: text in, typed address out, with errors that name what to mend.

Owns the three schemes ("ipc:///path", "tcp://host:port", "memory://name"), the names of nodes and their limits. Knows no socket.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from .interface import TransportError

IPC_PATH_BYTES_MAX = 107
"""``sun_path`` of a Unix socket holds 108 bytes, the closing NUL included (unix(7))."""

LOOPBACK_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})


NODE_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")
"""Names of nodes: host names, with or without their domain."""


class AddressError(TransportError, ValueError):
    """An address cannot be used; the sentence says which and why."""


@dataclass(frozen=True, slots=True)
class IpcAddress:
    """A Unix socket on this host. ``path`` is absolute."""

    path: str

    def __str__(self) -> str:
        return f"ipc://{self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host (name, IPv4, or IPv6 without brackets) and a port in 1..65535.

    ``node`` is whose key must be there ("tcp://n2@10.0.0.2:7700"), "" where the address does not say.
    """

    host: str
    port: int
    node: str = ""

    def __str__(self) -> str:
        return f"tcp://{self.node}@{self.place}" if self.node else f"tcp://{self.place}"

    @property
    def place(self) -> str:
        """Host and port."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this host can reach it."""
        return self.host in LOOPBACK_HOSTS


@dataclass(frozen=True, slots=True)
class MemoryAddress:
    """A meeting point inside one process."""

    name: str

    def __str__(self) -> str:
        return f"memory://{self.name}"


Address = IpcAddress | TcpAddress | MemoryAddress


def parse_address(text: str) -> Address:
    """Read an address; ``str()`` of the result is its canonical text. Raises `AddressError`."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        raise AddressError(f"address {text!r} has no scheme: write ipc:///path, tcp://host:port or memory://name")
    if "\0" in rest:
        raise AddressError(f"address {text!r} contains a NUL byte: remove it")
    match scheme:
        case "ipc":
            return _ipc(text, rest)
        case "tcp":
            return _tcp(text)
        case "memory":
            return _memory(text, rest)
    raise AddressError(f"address {text!r} has the unknown scheme {scheme!r}: use ipc, tcp or memory")


def _ipc(text: str, path: str) -> IpcAddress:
    if not path.startswith("/") or path.endswith("/"):
        raise AddressError(
            f"address {text!r} needs the absolute path of a socket file, as in ipc:///run/flexpipe/stage-0"
        )
    size = len(path.encode())
    if size > IPC_PATH_BYTES_MAX:
        raise AddressError(
            f"the path of {text!r} is {size} bytes long, a Unix socket takes at most {IPC_PATH_BYTES_MAX}: "
            "use a shorter run directory"
        )
    return IpcAddress(path)


def _tcp(text: str) -> TcpAddress:
    try:
        url = urlsplit(text)
        host, port, node = url.hostname, url.port, url.username
    except ValueError as error:
        raise AddressError(f"address {text!r} is not tcp://host:port: {error}") from error
    if not host or not port or url.path or url.query or url.fragment or url.password is not None:
        raise AddressError(f"address {text!r} is not tcp://host:port with a port in 1..65535")
    if node is not None and not NODE_NAME.fullmatch(node):
        raise AddressError(
            f"address {text!r} names the node {node!r}: small letters, digits, dots and dashes, 1 to 63 of them"
        )
    return TcpAddress(host, port, node or "")


def _memory(text: str, name: str) -> MemoryAddress:
    if not name:
        raise AddressError(f"address {text!r} has no name: write memory://name")
    return MemoryAddress(name)
