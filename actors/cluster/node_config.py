"""What a daemon is told about itself and its cluster, beside the settings that `flexpipe serve` has, too.

Owns the checks of it. Knows no socket and no model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...transport.address import NODE_NAME, AddressError, TcpAddress, parse_address
from ..config import ConfigError, ServeConfig

DEFAULT_PORTS = "7710-7909"
PORTS_MIN = 8
"""A pipeline of a few stages needs as many while it changes."""
_UNSPECIFIED = frozenset({"0.0.0.0", "::"})  # noqa: S104 - refused


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """The cluster ``name`` serves ``model``, once ``nodes`` nodes are here; ``serve`` as in `flexpipe serve`."""

    name: str
    model: str
    nodes: int
    serve: ServeConfig

    def __post_init__(self) -> None:
        """Refuse what cannot be, by name."""
        if self.nodes < 1:
            raise ConfigError(f"nodes is {self.nodes}; it must be at least 1")
        if self.serve.auto:
            raise ConfigError("auto is for flexpipe serve: the autopilot does not know links between nodes yet")


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """One daemon: its name, the address of its listener, the ports of its workers, and whom it joins (None: it coordinates)."""

    name: str
    bind: TcpAddress
    join: TcpAddress | None
    first_port: int
    last_port: int

    @property
    def address(self) -> str:
        """Where others find it."""
        return str(TcpAddress(self.bind.host, self.bind.port, self.name))


def node_options(name: str, bind: str, join: str | None, ports: str) -> NodeOptions:
    """Check a daemon's flags. Raises `ConfigError`, one sentence."""
    if not NODE_NAME.fullmatch(name):
        raise ConfigError(f"name is {name!r}; use 1 to 63 small letters, digits and dashes")
    at = _tcp("bind", bind)
    if at.host in _UNSPECIFIED:
        raise ConfigError(f"bind is {bind}; name one address, at which the other nodes reach this one")
    first, last = _ports(ports)
    if first <= at.port <= last:
        raise ConfigError(f"port {at.port} of bind lies in ports {ports}, which are for workers; choose another one")
    return NodeOptions(name, at, _tcp("join", join) if join is not None else None, first, last)


def _tcp(flag: str, text: str) -> TcpAddress:
    try:
        address = parse_address(text)
    except AddressError as error:
        raise ConfigError(f"{flag}: {error}") from error
    if not isinstance(address, TcpAddress):
        raise ConfigError(f"{flag} is {text}; nodes meet at tcp://host:port")
    return address


def _ports(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})-(\d{1,5})", text)
    first, last = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= first <= last <= 65535 or last - first + 1 < PORTS_MIN:
        raise ConfigError(f"ports is {text!r}; write a range of {PORTS_MIN} ports or more, as {DEFAULT_PORTS}")
    return first, last
