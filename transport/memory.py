"""Links inside one process, over a network whose faults come from one seed. Production code: the simulator runs the actors on it.

A link is reliable until lost, so the faults are those that a real connection lets through: *delay* (random, order kept), *loss*
on the way below (a retransmission later, like TCP's: it shows as delay), a *cut* (frames stand still; heal it in time and they
arrive late, else silence ends the link), a process that *hangs*, a *crash* of a process (its connections end without a goodbye,
after what was under way), and *corruption* (the next frame is damaged, the receiver's link ends in `FrameError`). A frame never
comes twice or out of order within a link: real connections see to that, and a link calls it garbage. Protocol and waiting are
the ones real links use (`link_machine`, `link`); time is trio's, so a mock clock makes it virtual. Each direction of each link
draws from its own generator, seeded by the network's seed and the link's address, so one link's traffic does not change
another's luck. Seals are real ones.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from .address import AddressError, MemoryAddress, parse_address
from .frames import check_purpose
from .interface import DEFAULT_LINK_LIMITS, AcceptedLink, LinkLimits
from .link import Wire, WireLink
from .link_machine import LinkMachine
from .memory_wire import CALM, MemoryWire, Weather
from .reception import Reception
from .refusal import OnRefusal, RefusalReason, ignore_refusal
from .seal import Seal
from .sealed_wire import SealedWire


class MemoryNetwork:
    """The meeting place of all `MemoryTransport`s that can reach each other, and the hand that does them harm."""

    def __init__(self, seed: int, weather: Weather = CALM) -> None:
        self.weather = weather
        self._seed = seed
        self._cuts: set[tuple[str, str]] = set()
        self._hung: set[str] = set()
        self._wires: dict[str, list[MemoryWire]] = {}
        self._waiting: dict[tuple[str, str], MemoryWire] = {}
        self._made: Counter[tuple[str, str]] = Counter()
        self._listeners: dict[str, MemoryListener] = {}
        self._callers: dict[str, list[MemoryWire]] = {}  # who wants to connect where nobody listens yet

    @asynccontextmanager
    async def open(
        self, process: str, node: str = "", on_refusal: OnRefusal = ignore_refusal
    ) -> AsyncIterator[MemoryTransport]:
        """A transport for one simulated process; leaving it closes its links, with goodbyes unless it crashed.

        ``node`` is whose key it has; see `AcceptedLink.peer`.
        """
        async with trio.open_nursery() as nursery:
            try:
                yield MemoryTransport(self, process, nursery, node, on_refusal)
            finally:
                for listener in self._listeners_of(process):
                    listener.hang_up()
                nursery.cancel_scope.cancel()

    def cut(self, source: str, target: str) -> None:
        """Stop frames from one process to another, in that direction, those under way included."""
        self._cuts.add((source, target))

    def heal(self, source: str, target: str) -> None:
        """Undo `cut`; what stood still arrives now."""
        self._cuts.discard((source, target))
        for wire in self._wires.get(target, []):
            wire.look_again()

    def hang(self, process: str) -> None:
        """Let nothing reach or leave a process, as if it were stopped, until it crashes."""
        self._hung.add(process)

    def crash(self, process: str) -> None:
        """End a process's connections as kill -9 would. The caller cancels the tasks that played it."""
        self._hung.discard(process)
        for listener in self._listeners_of(process):
            listener.hang_up()
        for wire in list(self._wires.get(process, [])):
            wire.hang_up()

    def corrupt_next(self, source: str, target: str) -> None:
        """Damage the next frame that each link from one process to another carries."""
        for wire in self._wires.get(source, []):
            if wire.peer is not None and wire.peer.process == target:
                wire.corrupts_next = True

    def is_cut(self, source: str, target: str) -> bool:
        """Whether frames from one process to another stand still."""
        return (source, target) in self._cuts or source in self._hung or target in self._hung

    def make_wire(self, process: str, address: MemoryAddress, role: str) -> tuple[MemoryWire, int]:
        """A new end and its session number; the two roles at one address meet. Raises `AddressError` for a second of one role."""
        place = (address.name, role)
        if place in self._waiting:
            raise AddressError(f"{address} already has an end to {role}: close that link first, or use another name")
        wire, session = self._new_wire(process, place)
        other = self._waiting.pop((address.name, "connect" if role == "bind" else "bind"), None)
        if other is None:
            self._waiting[place] = wire
        else:
            wire.meet(other)
        return wire, session

    def call(self, process: str, address: MemoryAddress, node: str) -> tuple[MemoryWire, int]:
        """A new end towards whoever listens at ``address``, now or later, and its session number."""
        wire, session = self._new_wire(process, (address.name, "call"), node)
        listener = self._listeners.get(address.name)
        if listener is None:
            self._callers.setdefault(address.name, []).append(wire)
        else:
            listener.meet(wire)
        return wire, session

    def answer(self, process: str, address: MemoryAddress, caller: MemoryWire) -> tuple[MemoryWire, int]:
        """The listening process's end of a call, joined to the caller's, and its session number."""
        wire, session = self._new_wire(process, (address.name, "answer"))
        wire.meet(caller)
        return wire, session

    def listen(self, listener: MemoryListener) -> None:
        """Let callers of an address reach ``listener``. Raises `AddressError` where another one listens."""
        name = listener.place.name
        if name in self._listeners:
            raise AddressError(f"{listener.place} has a listener already: close that one first, or use another name")
        self._listeners[name] = listener
        for caller in self._callers.pop(name, []):
            listener.meet(caller)

    def unlisten(self, listener: MemoryListener) -> None:
        """Nobody reaches ``listener`` any more."""
        if self._listeners.get(listener.place.name) is listener:
            del self._listeners[listener.place.name]

    def forget(self, wire: MemoryWire) -> None:
        """A wire has ended."""
        self._wires[wire.process].remove(wire)
        self._waiting = {place: waiting for place, waiting in self._waiting.items() if waiting is not wire}
        for name, callers in self._callers.items():
            self._callers[name] = [caller for caller in callers if caller is not wire]

    def _listeners_of(self, process: str) -> list[MemoryListener]:
        return [listener for listener in self._listeners.values() if listener.process == process]

    def _new_wire(self, process: str, place: tuple[str, str], node: str = "") -> tuple[MemoryWire, int]:
        self._made[place] += 1
        name, role = place
        generator = random.Random(f"{self._seed}/{name}/{role}/{self._made[place]}")  # noqa: S311 - reproducible on purpose
        session = generator.getrandbits(64)
        wire = MemoryWire(self, process, generator, node)
        self._wires.setdefault(process, []).append(wire)
        return wire, session


class MemoryListener:
    """The `Listener` of a simulated process."""

    def __init__(
        self, transport: MemoryTransport, place: MemoryAddress, name: str, limits: LinkLimits, reception: Reception
    ) -> None:
        self.place = place
        self.process = transport.process
        self._transport = transport
        self._name = name
        self._limits = limits
        self._reception = reception

    @property
    def address(self) -> str:
        """See `Listener.address`."""
        return str(self.place)

    def meet(self, caller: MemoryWire) -> None:
        """Somebody wants a link."""
        if self._reception.is_full:
            self._reception.refuse(RefusalReason.CROWDED, caller.node, caller.process, "too many wait to be accepted")
            caller.turn_away()
            return
        link = self._transport.answer(
            f"{self._name} with {caller.node or caller.process}", self._limits, self.place, caller
        )
        self._reception.admit(link, caller.node, caller.process)

    async def accept(self) -> AcceptedLink:
        """See `Listener.accept`."""
        return await self._reception.accept()

    async def aclose(self) -> None:
        """See `Listener.aclose`."""
        for accepted in self.hang_up():
            await accepted.link.aclose()
        await trio.lowlevel.checkpoint()

    def hang_up(self) -> list[AcceptedLink]:
        """Accept nobody any more; what nobody has accepted yet."""
        self._transport.network.unlisten(self)
        return self._reception.close()


class MemoryTransport:
    """The `Transport` of one simulated process of a `MemoryNetwork`. Addresses are "memory://name"."""

    def __init__(
        self, network: MemoryNetwork, process: str, nursery: trio.Nursery, node: str, on_refusal: OnRefusal
    ) -> None:
        self.network = network
        self.process = process
        self._nursery = nursery
        self._node = node
        self._on_refusal = on_refusal

    async def bind(
        self, address: str, *, name: str, limits: LinkLimits = DEFAULT_LINK_LIMITS, seal: bytes = b""
    ) -> WireLink:
        """See `Transport.bind`. Raises `AddressError` where another end waits there already."""
        return await self._start(address, "bind", name, limits, seal)

    async def connect(
        self, address: str, *, name: str, limits: LinkLimits = DEFAULT_LINK_LIMITS, purpose: str = "", seal: bytes = b""
    ) -> WireLink:
        """See `Transport.connect`. Raises `AddressError` where another end waits there already."""
        if not purpose:
            return await self._start(address, "connect", name, limits, seal)
        check_purpose(purpose, seal)
        wire, session = self.network.call(self.process, _memory(address), self._node)
        link = self._tend(LinkMachine(name, limits, session, trio.current_time(), purpose=purpose), wire)
        await trio.lowlevel.cancel_shielded_checkpoint()
        return link

    async def listen(self, address: str, *, name: str, limits: LinkLimits = DEFAULT_LINK_LIMITS) -> MemoryListener:
        """See `Transport.listen`. Raises `AddressError` where somebody listens there already."""
        reception = Reception(name, self._nursery, self._on_refusal)
        listener = MemoryListener(self, _memory(address), name, limits, reception)
        self.network.listen(listener)
        await trio.lowlevel.cancel_shielded_checkpoint()
        return listener

    def answer(self, name: str, limits: LinkLimits, place: MemoryAddress, caller: MemoryWire) -> WireLink:
        """This process's end of a call to a listener of its own."""
        wire, session = self.network.answer(self.process, place, caller)
        return self._tend(LinkMachine(name, limits, session, trio.current_time(), listens=True), wire)

    async def _start(self, address: str, role: str, name: str, limits: LinkLimits, seal: bytes) -> WireLink:
        made = Seal(seal, binds=role == "bind") if seal else None
        wire, session = self.network.make_wire(self.process, _memory(address), role)
        machine = LinkMachine(name, limits, session, trio.current_time())
        link = self._tend(machine, SealedWire(wire, made) if made else wire)
        # Shielded: a cancel here would leave the caller without the link that is already running.
        await trio.lowlevel.cancel_shielded_checkpoint()
        return link

    def _tend(self, machine: LinkMachine, wire: Wire) -> WireLink:
        link = WireLink(machine.name, machine, wire)
        self._nursery.start_soon(link.tend, name=f"tend {machine.name}")
        return link


def _memory(address: str) -> MemoryAddress:
    parsed = parse_address(address)
    if not isinstance(parsed, MemoryAddress):
        raise AddressError(f"{address} leads out of this process: here only memory://name can be reached")
    return parsed
