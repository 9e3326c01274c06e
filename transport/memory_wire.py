"""One end of a wire inside a process: frames under way, each with the time it arrives, and the weather that delays them.

Knows its network only by what may stop frames on their way. Time is trio's, so a mock clock makes it virtual.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from typing import Protocol

import trio

from .link import WireEvent
from .link_machine import Segments

NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Weather:
    """What happens to frames under way. A frame takes a uniform delay, plus ``retransmit_s`` for each time it is lost."""

    delay_s_min: float = 0.0
    delay_s_max: float = 0.0
    loss_probability: float = 0.0
    retransmit_s: float = 0.2

    def __post_init__(self) -> None:
        if not (
            0 <= self.delay_s_min <= self.delay_s_max and 0 <= self.loss_probability < 1 and self.retransmit_s >= 0
        ):
            raise ValueError(f"impossible weather: {self}")

    def draw_delay_s(self, generator: random.Random) -> float:
        """How long the next frame is under way."""
        delay_s = generator.uniform(self.delay_s_min, self.delay_s_max)
        while generator.random() < self.loss_probability:
            delay_s += self.retransmit_s
        return delay_s


CALM = Weather()
"""No delay and no loss."""


class WeatherReport(Protocol):
    """What a wire asks of the network around it."""

    weather: Weather

    def is_cut(self, source: str, target: str) -> bool:
        """Whether frames from one process to another stand still."""
        ...

    def forget(self, wire: MemoryWire) -> None:
        """A wire has ended."""
        ...


class MemoryWire:
    """One end of a `Wire` in memory: a queue of frames, each with the time it arrives."""

    def __init__(self, network: WeatherReport, process: str, generator: random.Random, node: str) -> None:
        self.process = process
        self.node = node
        self.peer: MemoryWire | None = None
        self.corrupts_next = False
        self._arrivals = trio.lowlevel.ParkingLot()  # where whoever wants frames waits
        self._events = trio.lowlevel.ParkingLot()  # where whoever wants events waits
        self._network = network
        self._generator = generator
        self._under_way: deque[tuple[float, list[memoryview]]] = deque()
        self._last_arrival_at = 0.0
        self._peer_process = ""
        self._met = False
        self._ends_at = NEVER
        self._closed = False

    def meet(self, other: MemoryWire) -> None:
        """Join two ends."""
        for wire, peer in ((self, other), (other, self)):
            wire.peer = peer
            wire._peer_process = peer.process  # noqa: SLF001 - the other end, of the same class
            wire._met = True  # noqa: SLF001
            wire.look_again()

    def look_again(self) -> None:
        """Wake whoever waits: what they wait for may have changed."""
        self._arrivals.unpark_all()
        self._events.unpark_all()

    def send_nowait(self, segments: Segments) -> bool:
        """See `Wire`. Copies, as a process boundary would."""
        peer = self.peer
        if peer is None or self._closed:
            return False
        copies = [bytes(segment) for segment in segments]
        if self.corrupts_next:
            self.corrupts_next = False
            copies[0] = bytes([copies[0][0] ^ 0xFF]) + copies[0][1:]
        peer.arrive(self._delay_s(), [memoryview(copy) for copy in copies])
        return True

    def arrive(self, delay_s: float, segments: list[memoryview]) -> None:
        """A frame set out towards this end; it arrives after ``delay_s``, never before an earlier one."""
        self._last_arrival_at = max(self._last_arrival_at, trio.current_time() + delay_s)
        self._under_way.append((self._last_arrival_at, segments))
        if len(self._under_way) == 1:  # else somebody sleeps until an earlier one arrives
            self._arrivals.unpark_all()

    def receive_nowait(self) -> list[memoryview] | None:
        """See `Wire`."""
        if trio.current_time() < self._next_arrival_at():
            return None
        return self._under_way.popleft()[1]

    async def wait_receivable(self) -> None:
        """See `Wire`."""
        while True:
            await _sleep_until(self._arrivals, self._next_arrival_at())
            if trio.current_time() >= self._next_arrival_at():
                return

    async def next_event(self) -> WireEvent:
        """See `Wire`."""
        while True:
            if self._met:
                self._met = False
                await trio.lowlevel.cancel_shielded_checkpoint()
                return WireEvent.CONNECTED
            if trio.current_time() >= self._end_noticed_at():
                self._ends_at = NEVER
                await trio.lowlevel.cancel_shielded_checkpoint()
                return WireEvent.DISCONNECTED
            await _sleep_until(self._events, self._end_noticed_at())

    def settle(self) -> None:
        """See `Wire`. Ends that met are joined to nobody else anyway."""

    async def aclose(self, *, flush: bool) -> None:  # noqa: ARG002 - what was sent is under way already
        """See `Wire`."""
        if not self._closed:
            self.hang_up()
        await trio.lowlevel.checkpoint()

    def turn_away(self) -> None:
        """Meet nobody: the other side wants no connection."""
        self._met = True
        self._hear_the_end(self._delay_s())

    def hang_up(self) -> None:
        """End the connection; the peer notices after what is under way."""
        self._closed = True
        self._network.forget(self)
        if self.peer is not None:
            self.peer._hear_the_end(self._delay_s())  # noqa: SLF001 - the other end, of the same class

    def _hear_the_end(self, delay_s: float) -> None:
        self._ends_at = max(self._last_arrival_at, trio.current_time() + delay_s)
        self.peer = None
        self._events.unpark_all()

    def _delay_s(self) -> float:
        return self._network.weather.draw_delay_s(self._generator)

    def _next_arrival_at(self) -> float:
        return self._under_way[0][0] if self._under_way and not self._is_cut_off() else NEVER

    def _end_noticed_at(self) -> float:
        return NEVER if self._is_cut_off() else self._ends_at

    def _is_cut_off(self) -> bool:
        return self._network.is_cut(self._peer_process, self.process)


async def _sleep_until(lot: trio.lowlevel.ParkingLot, when: float) -> None:
    """Sleep until ``when``, or until woken."""
    if when == NEVER:
        await lot.park()
        return
    with trio.move_on_at(when):
        await lot.park()
