"""Where two workers of an epoch meet: the place as the coordinator names it, and how a worker finds it on its own host.

A place on one node is a *name* ("here://3-1-activations-2"), which each worker looks up in the folder of sockets that its own
daemon gave it; so no path of one host is ever told to another. Between nodes it is a tcp address of the node that binds.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import msgspec

from ..transport.address import AddressError, IpcAddress, parse_address
from ..transport.interface import Link, Transport

HERE = "here://"
"""The scheme of names on one node."""
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


class LinkPlace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An address, and the 32-byte key that seals what travels between hosts; b"" where frames stay on one."""

    address: str
    seal: bytes = b""


class LinkPlaces(Protocol):
    """Finds places for the links of one pipeline's epochs."""

    def begin(self, epoch: int, keep: Collection[int]) -> None:
        """Links of ``epoch`` come next; those of every other epoch but ``keep`` are closed, or will never be."""
        ...

    def place(self, epoch: int, link: str, binder: str, connector: str) -> LinkPlace:
        """A place for ``link`` between workers on these devices. Raises `RouteError` where there is none."""
        ...


class NamedPlaces:
    """Places of a pipeline whose workers all share a host: ``pattern`` is an address with {epoch} and {link}."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern

    def begin(self, epoch: int, keep: Collection[int]) -> None:
        """See `LinkPlaces.begin`. Names are never used up."""

    def place(self, epoch: int, link: str, binder: str, connector: str) -> LinkPlace:  # noqa: ARG002 - one host
        """See `LinkPlaces.place`."""
        return LinkPlace(self._pattern.format(epoch=epoch, link=link))


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a worker needs to find a place: its transport, and its node's folder of sockets.

    Without a folder addresses are taken as they are; that is for workers whose coordinator shares their process.
    """

    transport: Transport
    sockets: str = ""

    async def bind(self, place: LinkPlace, *, name: str) -> Link:
        """Be the binding end. Raises `AddressError` where the place is none for this worker."""
        return await self.transport.bind(self.address(place), name=name, seal=place.seal)

    async def connect(self, place: LinkPlace, *, name: str) -> Link:
        """Be the connecting end. Raises `AddressError` where the place is none for this worker."""
        return await self.transport.connect(self.address(place), name=name, seal=place.seal)

    def ring_path(self, place: LinkPlace) -> str | None:
        """Where the ring of a link lies; None where its ends are not on one host for sure."""
        parsed = parse_address(self.address(place))
        return f"{parsed.path}.ring" if isinstance(parsed, IpcAddress) else None

    def address(self, place: LinkPlace) -> str:
        """The address on this host."""
        if not self.sockets:
            return place.address
        return address_here(place.address, self.sockets)


def address_here(address: str, sockets: str) -> str:
    """What an address that came from another process means where ``sockets`` is the folder of sockets. Raises `AddressError`."""
    if address.startswith(HERE):
        name = address.removeprefix(HERE)
        if not _NAME.fullmatch(name):
            raise AddressError(f"{name[:80]!r} is no name of a link: small letters, digits and dashes, 64 at most")
        return f"ipc://{sockets}/{name}"
    if address.startswith("ipc:"):
        raise AddressError(f"address {address[:80]!r} names a path, which only this host's own daemon may choose")
    return address
