"""An Ethernet switch in user space, between the network namespaces of a cluster under test: rate, delay and cut cables.

A process of its own (`python -m flexpipe.bench.virtual_switch`), since the kernels that tests meet may have no netem. It owns the
ports' cables and nothing else: it never knows who talks to whom about what. The port devices come as open TAP descriptors;
orders come as JSON lines on stdin, each answered by one line on stdout, so that what follows an order sees it carried out.
"""

from __future__ import annotations

import heapq
import os
import selectors
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

import msgspec

FRAME_BYTES_MAX = 9_018
"""An Ethernet frame with an MTU of 9,000 bytes: large, since each frame costs this process about 10 us."""
QUEUED_BYTES_MAX = 16 * 1024 * 1024
"""Bytes on one port's cable; frames beyond them are dropped, as a switch with a full buffer does. TCP slows down."""
FRAMES_A_TURN_MAX = 64
"""Frames read from one port before others get their turn."""
_BROADCAST = 1
_MAC_BYTES = 6


class Shape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A cable: bits per second (0: as fast as it goes), and seconds from one end to the other."""

    rate_bit_s: float = 0.0
    delay_s: float = 0.0


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Ports from which and to which no frame passes any more, and pairs of ports between which none does. Others pass."""

    cut_ports: tuple[int, ...] = ()
    cut_pairs: tuple[tuple[int, int], ...] = ()


class _Cable:
    """What is on its way to one port."""

    def __init__(self, descriptor: int, shape: Shape) -> None:
        self.descriptor = descriptor
        self._shape = shape
        self._free_at = 0.0
        self._queued_bytes = 0

    def due(self, frame: bytes, now: float) -> float | None:
        """When ``frame``, put on the cable now, comes out; None where the cable has no room for it."""
        if self._queued_bytes + len(frame) > QUEUED_BYTES_MAX:
            return None
        self._queued_bytes += len(frame)
        sending_s = len(frame) * 8 / self._shape.rate_bit_s if self._shape.rate_bit_s else 0.0
        self._free_at = max(now, self._free_at) + sending_s
        return self._free_at + self._shape.delay_s

    def deliver(self, frame: bytes) -> None:
        """Hand it to the port's kernel; one that takes no more drops it."""
        self._queued_bytes -= len(frame)
        with suppress(OSError):
            os.write(self.descriptor, frame)


class VirtualSwitch:
    """Learns who is behind which port, and forwards frames along the cables of their ports."""

    def __init__(self, descriptors: Sequence[int], shape: Shape) -> None:
        self._cables = [_Cable(descriptor, shape) for descriptor in descriptors]
        self._ports: dict[bytes, int] = {}
        self._order = Order()
        self._under_way: list[tuple[float, int, int, bytes]] = []  # (due, order of sending, port, frame)
        self._sent = 0

    def run(self) -> None:
        """Switch until stdin ends."""
        # Not epoll, whose timeouts are whole milliseconds, as long as a cable's delay.
        with selectors.SelectSelector() as selector:
            selector.register(sys.stdin.fileno(), selectors.EVENT_READ, None)
            for port, cable in enumerate(self._cables):
                os.set_blocking(cable.descriptor, False)
                selector.register(cable.descriptor, selectors.EVENT_READ, port)
            while True:
                for key, _ in selector.select(self._wait_s()):
                    if key.data is None:
                        if not self._obey():
                            return
                    else:
                        self._read(key.data)
                self._deliver()

    def _obey(self) -> bool:
        line = sys.stdin.buffer.readline()
        if not line:
            return False
        self._order = msgspec.json.decode(line, type=Order)
        sys.stdout.buffer.write(b"done\n")
        sys.stdout.buffer.flush()
        return True

    def _read(self, port: int) -> None:
        descriptor, now = self._cables[port].descriptor, time.monotonic()
        for _ in range(FRAMES_A_TURN_MAX):
            try:
                frame = os.read(descriptor, FRAME_BYTES_MAX)
            except OSError:
                return
            self._ports[frame[_MAC_BYTES : 2 * _MAC_BYTES]] = port
            for target in self._targets(frame, port):
                self._put(frame, port, target, now)

    def _targets(self, frame: bytes, port: int) -> Sequence[int]:
        known = None if frame[0] & _BROADCAST else self._ports.get(frame[:_MAC_BYTES])
        return [known] if known is not None else [other for other in range(len(self._cables)) if other != port]

    def _put(self, frame: bytes, source: int, target: int, now: float) -> None:
        if self._is_cut(source, target):
            return
        due = self._cables[target].due(frame, now)
        if due is not None:
            self._sent += 1
            heapq.heappush(self._under_way, (due, self._sent, target, frame))

    def _is_cut(self, source: int, target: int) -> bool:
        ports, pairs = self._order.cut_ports, self._order.cut_pairs
        return source in ports or target in ports or (source, target) in pairs or (target, source) in pairs

    def _deliver(self) -> None:
        now = time.monotonic()
        while self._under_way and self._under_way[0][0] <= now:
            _, _, port, frame = heapq.heappop(self._under_way)
            self._cables[port].deliver(frame)

    def _wait_s(self) -> float | None:
        return max(0.0, self._under_way[0][0] - time.monotonic()) if self._under_way else None


def main() -> int:
    """Take the shape and the descriptors from the command line, and switch."""
    shape = msgspec.json.decode(sys.argv[1].encode(), type=Shape)
    VirtualSwitch([int(text) for text in sys.argv[2:]], shape).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
