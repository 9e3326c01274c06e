"""Where a cluster keeps who leads it and what its pipelines decided: what every such store promises.

Owns the promises, and the words for what breaks them. Knows no database: `sqlite_store` is the one of a single coordinator,
`etcd_store` the one of several, `sim.memory_store` the simulated one.

Who wants to lead makes a *claim*. At most one stands at a time, and it lapses unless it is kept alive. Every claim that is made
over another's has a higher *term*; a claim that lapsed may be made anew in its old term for as long as nobody led since. What a
leader writes down is written only while its claim stands: the store compares, not the leader.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import NoReturn, Protocol

import msgspec

from ..journal import Journal

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
"""What clusters and pipelines may be called: they become parts of keys and of file names."""


class ClusterStoreError(Exception):
    """A store cannot do what was asked; the sentence says why, and what to do."""


class StoreUnavailableError(ClusterStoreError):
    """The store did not answer. What was asked may have happened or not; to ask again is safe."""


class StoreRefusedError(ClusterStoreError):
    """The store answered that it never will: wrong password, no rights, full, of another kind."""


class StoreInUseError(ClusterStoreError):
    """The store is for one process at a time, and another one has it."""


class AlreadyLedError(ClusterStoreError):
    """Somebody leads, so nobody else can."""


class LeadershipLostError(ClusterStoreError):
    """The claim does not stand: it lapsed, was given back, or another one was made since."""


class Candidate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who wants to lead: a node's name, and the address under which it is found when it does."""

    name: str
    address: str


class LeaderRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who leads, where it is found, and in which term."""

    name: str
    address: str
    term: int


class Claim(Protocol):
    """A claim to lead that this process made. One task at a time may ask it; its journals are independent of that."""

    @property
    def record(self) -> LeaderRecord:
        """What others see of it. It never changes."""
        ...

    async def keep_alive(self) -> None:
        """Let it stand for the store's ``ttl_s`` from now on. Raises `LeadershipLostError`, `StoreUnavailableError`."""
        ...

    async def reclaim(self) -> None:
        """Make it anew, in its old term, after it lapsed; where it stands: nothing.

        Raises `LeadershipLostError` where somebody else led since, or this one was resigned; `StoreUnavailableError`.
        """
        ...

    async def resign(self) -> None:
        """Give it back at once. Again: nothing. Raises `StoreUnavailableError`; then it lapses by itself."""
        ...

    def journal(self, pipeline: str) -> AbstractAsyncContextManager[Journal]:
        """The journal of ``pipeline``, to be written while this claim stands.

        Its writes raise `JournalError` where the claim was given back or somebody led since; they wait while the store cannot be
        reached, and while the claim has lapsed and may be made anew: whether a record is durable has to be known before anybody
        acts on it. Entering raises `JournalError`, `StoreRefusedError` for a bad name.
        """
        ...


class ClusterStore(Protocol):
    """Where a cluster keeps its leader and its journals."""

    @property
    def ttl_s(self) -> float:
        """How long a claim stands that is not kept alive; infinite where it ends with its process."""
        ...

    async def claim(self, candidate: Candidate) -> Claim:
        """Lead. Raises `AlreadyLedError` where somebody does, `StoreUnavailableError`, `StoreRefusedError`."""
        ...

    async def watch(self, tell: Callable[[LeaderRecord | None], None]) -> NoReturn:
        """Tell who leads now, then each change; what changed twice at once may be told once, the last is never left out.

        Raises `StoreUnavailableError` once the store does not answer, within ``ttl_s``; `StoreRefusedError`.
        """
        ...


def check_name(what: str, name: str) -> None:
    """Raise `StoreRefusedError` unless ``name`` can be part of a key and of a file's name."""
    if NAME_PATTERN.fullmatch(name) is None:
        raise StoreRefusedError(
            f"{name!r} is no name for a {what}: use up to 63 of a-z, 0-9, dot, underscore and hyphen, a letter or digit first"
        )
