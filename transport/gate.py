"""What an address demands of a socket: keys, a seal's token, or nothing; the rule that nothing leaves this host unproved.

| address | with a seal | with keys | with neither |
| --- | --- | --- | --- |
| ipc | the file's mode | the file's mode | the file's mode |
| tcp, this host only | the token, then the seal | CURVE | nothing |
| tcp beyond it | the token, then the seal | CURVE | refused, unless insecure |

A token follows from the seal's secret. It travels in the clear and is no more than a doorman: it keeps those out who cannot watch
the network, so that knocking on a port ends no link. The seal is what protects the frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import zmq

from .address import Address, AddressError, TcpAddress
from .authenticator import TOKEN_USER, Authenticator, Door, Proof
from .key_ring import KeyRing
from .seal import derive


@dataclass(frozen=True, slots=True)
class Gate:
    """The rule for one transport."""

    keys: KeyRing | None
    insecure: bool
    authenticator: Authenticator

    def guard_binding(self, raw: zmq.Socket[bytes], address: Address, where: str, seal: bytes) -> Door | None:
        """Make a socket that is to bind or listen ask for proof; the door to close with it. Raises `AddressError`."""
        if not isinstance(address, TcpAddress):
            return None
        if self.keys is not None and address.node not in {"", self.keys.name}:
            raise AddressError(
                f"{address} is node {address.node}'s, and this is {self.keys.name}: bind an address of this node"
            )
        if seal:
            raw.setsockopt(zmq.PLAIN_SERVER, 1)
            return self._door(raw, where, token_of(seal))
        if self.keys is not None:
            raw.setsockopt(zmq.CURVE_SERVER, 1)
            raw.setsockopt(zmq.CURVE_SECRETKEY, self.keys.secret)
            return self._door(raw, where, b"")
        self._check_open(address)
        return None

    def guard_connecting(self, raw: zmq.Socket[bytes], address: Address, seal: bytes) -> Proof:
        """Make a socket that is to connect bring proof; whose key the other end must have. Raises `AddressError`."""
        if not isinstance(address, TcpAddress):
            return Proof()
        if seal:
            raw.setsockopt(zmq.PLAIN_USERNAME, TOKEN_USER)
            raw.setsockopt(zmq.PLAIN_PASSWORD, token_of(seal))
            return Proof()
        if self.keys is not None:
            key = self._key_of(self.keys, address)
            raw.setsockopt(zmq.CURVE_SERVERKEY, key)
            raw.setsockopt(zmq.CURVE_PUBLICKEY, self.keys.public)
            raw.setsockopt(zmq.CURVE_SECRETKEY, self.keys.secret)
            return Proof(address.node, key)
        self._check_open(address)
        return Proof()

    def _door(self, raw: zmq.Socket[bytes], where: str, token: bytes) -> Door:
        door = self.authenticator.open_door(where, token)
        raw.setsockopt(zmq.ZAP_DOMAIN, door.domain)
        return door

    def _key_of(self, keys: KeyRing, address: TcpAddress) -> bytes:
        if not address.node:
            raise AddressError(f"{address} does not say whose key must be there: write tcp://NODE@{address.place}")
        keys.refresh()
        key = keys.allowed.get(address.node)
        if key is None:
            raise AddressError(
                f"{address} cannot be trusted, node {address.node} has no key here: flexpipe keys add {address.node} KEY"
            )
        return key

    def _check_open(self, address: TcpAddress) -> None:
        if not (address.is_loopback or self.insecure):
            raise AddressError(
                f"{address} reaches beyond this host and there are no keys: make some with `flexpipe keys init`, or use 127.0.0.1 "
                "or ipc"
            )


def token_of(seal: bytes) -> bytes:
    """The word that opens the door of a sealed link."""
    return derive(seal, b"", "token").hex().encode()
