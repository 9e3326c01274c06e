"""Who may come in: answers libzmq's question about every handshake (ZAP, ZeroMQ RFC 27), for all sockets of one context.

Owns the socket at inproc://zeromq.zap.01 and which door wants what proof. A *door* is one listening socket: it wants the CURVE key
of an allowed node (the name is then what the socket's messages carry as their user), or the token of one sealed link. A door that
wants nothing is not asked about. While nobody answers nobody gets in: libzmq then fails the handshake.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import zmq
from zmq.utils import z85

from .key_ring import KeyRing
from .refusal import OnRefusal, Refusal, RefusalReason
from .zmq_socket import ZmqSocket

ZAP_ENDPOINT = "inproc://zeromq.zap.01"
_VERSION = b"1.0"
_REQUEST_FRAMES_MIN = 8
TOKEN_USER = b"link"
"""The user name of PLAIN, which only the token proves."""


@dataclass(slots=True)
class Proof:
    """Whose key the other end of a connection proved: a node's name and its public key; both empty before, or without keys."""

    node: str = ""
    key: bytes = b""


@dataclass(slots=True)
class Door:
    """A listening socket that wants a proof; ``where`` is its name in refusals. ``latest`` is whom it let in last."""

    where: str
    domain: bytes
    token: bytes
    latest: Proof


class Authenticator:
    """Answers for the doors of ``context``; ``keys`` is None where no node has any."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], keys: KeyRing | None, on_refusal: OnRefusal) -> None:
        raw = context.socket(zmq.ROUTER)
        raw.setsockopt(zmq.LINGER, 0)
        raw.bind(ZAP_ENDPOINT)
        self._socket = ZmqSocket(raw)
        self._keys = keys
        self._on_refusal = on_refusal
        self._doors: dict[bytes, Door] = {}
        self._numbers = count(1)

    def open_door(self, where: str, token: bytes = b"") -> Door:
        """A door that wants ``token``, or an allowed key where there is none. Its domain is for the socket's ZAP_DOMAIN."""
        domain = f"door-{next(self._numbers)}".encode()
        door = self._doors[domain] = Door(where, domain, token, Proof())
        return door

    def close_door(self, door: Door) -> None:
        """The socket is closed."""
        self._doors.pop(door.domain, None)

    async def serve(self) -> None:
        """Answer until cancelled."""
        try:
            while True:
                segments = [bytes(segment) for segment in await self._socket.receive()]
                if len(segments) >= _REQUEST_FRAMES_MIN:
                    self._socket.send_nowait(self._answer(segments))
        finally:
            self._socket.close()

    def _answer(self, segments: Sequence[bytes]) -> list[bytes]:
        asker, empty, _version, request, domain, host, _identity, mechanism, *credentials = segments
        proof = self._judge(self._doors.get(domain), host.decode("latin-1"), mechanism, credentials)
        code, words = (b"400", b"refused") if proof is None else (b"200", b"welcome")
        user = user_of(proof) if proof else b""
        return [asker, empty, _VERSION, request, code, words, user, b""]

    def _judge(self, door: Door | None, host: str, mechanism: bytes, credentials: Sequence[bytes]) -> Proof | None:
        """Who it is; None where it may not come in."""
        if door is None:
            return None  # its socket was closed in the meantime
        if door.token:
            if mechanism == b"PLAIN" and len(credentials) == 2 and hmac.compare_digest(credentials[1], door.token):
                return Proof()
            self._refuse(RefusalReason.HANDSHAKE, door, host, "it does not know the token of this sealed link")
            return None
        if mechanism != b"CURVE" or len(credentials) != 1 or self._keys is None:
            self._refuse(RefusalReason.HANDSHAKE, door, host, "it brought no key")
            return None
        self._keys.refresh()
        key = z85.encode(credentials[0])
        node = self._keys.node_of(key)
        if node is None:
            self._refuse(RefusalReason.KEY_UNKNOWN, door, host, f"no allowed node has the public key {key.decode()}")
            return None
        door.latest.node, door.latest.key = node, key
        return door.latest

    def _refuse(self, reason: RefusalReason, door: Door, host: str, detail: str) -> None:
        self._on_refusal(Refusal(reason, door.where, "", host, detail))


def user_of(proof: Proof) -> bytes:
    """A proof as libzmq's user id, which every message of the connection carries. No key contains a space."""
    return f"{proof.node} {proof.key.decode()}".encode() if proof.node else b""


def proof_of(user: str) -> Proof:
    """The proof that `user_of` wrote."""
    node, _, key = user.partition(" ")
    return Proof(node, key.encode())
