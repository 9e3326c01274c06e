"""Links between processes over ZeroMQ: who may bind and connect, and the tasks behind it all.

Owns the context, its I/O thread, and which links belong to whose key. Each link of two ends has a pair of DEALER sockets of its own
(`zmq_wire`), so nothing is routed and nothing is dropped silently; a listener has a ROUTER (`zmq_listener`). What an address
demands of a peer is the `gate`'s to say, and who passes is the `authenticator`'s.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import trio
import zmq

from .address import parse_address
from .authenticator import Authenticator, Door, Proof
from .frames import check_purpose
from .gate import Gate
from .interface import DEFAULT_LINK_LIMITS, LinkLimits
from .key_ring import KeyRing
from .link import WireLink
from .link_machine import LinkMachine
from .reception import Reception
from .refusal import OnRefusal, Refusal, RefusalReason, ignore_refusal
from .seal import Seal
from .sealed_wire import SealedWire
from .zmq_listener import ZmqListener
from .zmq_wire import ZmqWire, configure

KEYS_POLL_S = 0.5
"""How soon a link notices that its peer's key was revoked. A new connection notices at once."""


class ZmqTransport:
    """Makes links over ZeroMQ. Use as ``async with ZmqTransport.open() as transport``; leaving it closes all its links."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        nursery: trio.Nursery,
        gate: Gate,
        on_refusal: OnRefusal,
    ) -> None:
        self._context = context
        self._nursery = nursery
        self._gate = gate
        self._on_refusal = on_refusal
        self._proved: list[tuple[WireLink, Proof]] = []

    @classmethod
    @asynccontextmanager
    async def open(
        cls, keys: KeyRing | None = None, *, insecure: bool = False, on_refusal: OnRefusal = ignore_refusal
    ) -> AsyncIterator[ZmqTransport]:
        """A transport with its own I/O thread. Pin the process to its cores before, if at all: the thread inherits them.

        With ``keys``, tcp is encrypted and open to the nodes that they allow, and a link ends when its peer's key is revoked.
        Without, tcp stays on this host, unless it is ``insecure``: then everybody is let in, and everything can be read.
        """
        context = zmq.Context()
        try:
            async with trio.open_nursery() as nursery:
                try:
                    authenticator = Authenticator(context, keys, on_refusal)
                    nursery.start_soon(authenticator.serve)
                    transport = cls(context, nursery, Gate(keys, insecure, authenticator), on_refusal)
                    if keys is not None:
                        nursery.start_soon(transport._watch, keys)
                    yield transport
                finally:
                    nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(context.term)

    async def bind(
        self, address: str, *, name: str, limits: LinkLimits = DEFAULT_LINK_LIMITS, seal: bytes = b""
    ) -> WireLink:
        """See `Transport.bind`. Raises `AddressError` where the address is in use or not allowed (see `gate`).

        An ipc file is readable and writable by its owner only, and the file a killed process left behind is taken over.
        """
        made = Seal(seal, binds=True) if seal else None
        parsed = parse_address(address)
        raw = self._socket(zmq.DEALER, limits)
        wire, door = ZmqWire(raw, partial(self._refuse_stranger, name)), None
        try:
            door = self._gate.guard_binding(raw, parsed, name, seal)
            wire.bind(parsed)
        except BaseException:
            self._drop(wire, door)
            raise
        link = self._tend(LinkMachine(name, limits, secrets.randbits(64), trio.current_time()), wire, made, door)
        if door is not None:
            self._remember(link, door.latest)
        # Shielded: a cancel here would leave the caller without the link that is already running.
        await trio.lowlevel.cancel_shielded_checkpoint()
        return link

    async def connect(
        self,
        address: str,
        *,
        name: str,
        limits: LinkLimits = DEFAULT_LINK_LIMITS,
        purpose: str = "",
        seal: bytes = b"",
    ) -> WireLink:
        """See `Transport.connect`. Raises `AddressError` where the address cannot be used at all, or not allowed (see `gate`)."""
        if purpose:
            check_purpose(purpose, seal)
        made = Seal(seal, binds=False) if seal else None
        parsed = parse_address(address)
        raw = self._socket(zmq.DEALER, limits)
        wire = ZmqWire(raw, partial(self._refuse_stranger, name))
        try:
            proof = self._gate.guard_connecting(raw, parsed, seal)
            wire.connect(parsed)
        except BaseException:
            self._drop(wire, None)
            raise
        machine = LinkMachine(name, limits, secrets.randbits(64), trio.current_time(), purpose=purpose)
        link = self._tend(machine, wire, made, None)
        self._remember(link, proof)
        await trio.lowlevel.cancel_shielded_checkpoint()
        return link

    async def listen(self, address: str, *, name: str, limits: LinkLimits = DEFAULT_LINK_LIMITS) -> ZmqListener:
        """See `Transport.listen`. Raises `AddressError` as `bind` does."""
        parsed = parse_address(address)
        raw = self._socket(zmq.ROUTER, limits)
        reception = Reception(name, self._nursery, self._on_refusal)
        door: Door | None = None

        def ended() -> None:
            if door is not None:
                self._gate.authenticator.close_door(door)

        listener = ZmqListener(raw, name, limits, self._nursery, reception, self._remember, ended)
        try:
            door = self._gate.guard_binding(raw, parsed, name, b"")
            listener.bind(parsed)
        except BaseException:
            listener.close()
            raise
        self._nursery.start_soon(listener.run, name=f"listen {name}")
        await trio.lowlevel.cancel_shielded_checkpoint()
        return listener

    def _socket(self, kind: int, limits: LinkLimits) -> zmq.Socket[bytes]:
        raw = self._context.socket(kind)
        configure(raw, limits)
        return raw

    def _tend(self, machine: LinkMachine, wire: ZmqWire, seal: Seal | None, door: Door | None) -> WireLink:
        link = WireLink(machine.name, machine, SealedWire(wire, seal) if seal else wire)

        async def tend() -> None:
            try:
                await link.tend()
            finally:
                if door is not None:
                    self._gate.authenticator.close_door(door)

        self._nursery.start_soon(tend, name=f"tend {machine.name}")
        return link

    def _drop(self, wire: ZmqWire, door: Door | None) -> None:
        wire.close(0)
        if door is not None:
            self._gate.authenticator.close_door(door)

    def _refuse_stranger(self, name: str, detail: str) -> None:
        self._on_refusal(Refusal(RefusalReason.HANDSHAKE, name, "", "", detail))

    # --- revocation ---------------------------------------------------------------------------------------------

    def _remember(self, link: WireLink, proof: Proof) -> None:
        """Watch over the key that a link's peer proves; ``proof`` may be filled in later."""
        self._proved = [(each, known) for each, known in self._proved if each.is_open]
        self._proved.append((link, proof))

    async def _watch(self, keys: KeyRing) -> None:
        while True:
            await trio.sleep(KEYS_POLL_S)
            keys.refresh()
            for link, proof in self._proved:
                if link.is_open and proof.node and keys.allowed.get(proof.node) != proof.key:
                    detail = f"the key of node {proof.node} was revoked"
                    self._on_refusal(Refusal(RefusalReason.KEY_REVOKED, link.name, proof.node, "", detail))
                    link.lose(detail)
