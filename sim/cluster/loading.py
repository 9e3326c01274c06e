"""Transfers over shared links: how long weights and KV are on their way when others are too.

Owns who shares what. It must never know what is transferred. A link is shared equally by the flows on it, and a flow goes at the
least share along its way: what it cannot use of the other links is lost to all, which is somewhat less than max-min fairness.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from math import inf

ENDED_BYTES = 1024.0
"""Fewer bytes than this are none: at 10 GB/s a day's clock rounds away a tenth of one."""


@dataclass(slots=True)
class Flow:
    """``bytes_left`` over ``links``, at ``rate_max`` bytes per second at most."""

    bytes_left: float
    links: tuple[Hashable, ...]
    rate_max: float = inf
    rate: float = field(default=0.0, init=False)


class LoadNetwork:
    """Flows in groups: a group has ended when its last flow has. ``capacity`` gives a link's bytes per second."""

    def __init__(self, capacity: Callable[[Hashable], float]) -> None:
        self._capacity = capacity
        self._groups: dict[int, list[Flow]] = {}
        self._at_s = 0.0

    def begin(self, now_s: float, group: int, flows: Iterable[Flow]) -> None:
        """A new group; its number must not be in use. One without bytes ends at once, at the next `ended`."""
        self._pass(now_s)
        self._groups[group] = [flow for flow in flows if flow.bytes_left > ENDED_BYTES]
        self._share()

    def cancel(self, now_s: float, group: int) -> None:
        """The group is gone, if it is there."""
        self._pass(now_s)
        if self._groups.pop(group, None) is not None:
            self._share()

    def next_end_s(self) -> float:
        """When the next flow ends, if none begins before; infinite without any."""
        if any(not flows for flows in self._groups.values()):
            return self._at_s
        waits = (flow.bytes_left / flow.rate for flows in self._groups.values() for flow in flows)
        return self._at_s + min(waits, default=inf)

    def ended(self, now_s: float) -> list[int]:
        """The groups that have ended by now, in the order in which they began."""
        self._pass(now_s)
        for group, flows in self._groups.items():
            self._groups[group] = [flow for flow in flows if flow.bytes_left > ENDED_BYTES]
        over = [group for group, flows in self._groups.items() if not flows]
        for group in over:
            del self._groups[group]
        self._share()
        return over

    def _pass(self, now_s: float) -> None:
        for flows in self._groups.values():
            for flow in flows:
                flow.bytes_left -= flow.rate * (now_s - self._at_s)
        self._at_s = now_s

    def _share(self) -> None:
        users: dict[Hashable, int] = {}
        flows = [flow for group in self._groups.values() for flow in group]
        for flow in flows:
            for link in flow.links:
                users[link] = users.get(link, 0) + 1
        for flow in flows:
            flow.rate = min([flow.rate_max, *(self._capacity(link) / users[link] for link in flow.links)])
