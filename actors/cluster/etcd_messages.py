"""What etcd's JSON gateway (v3) hears and says: the parts of its protocol that a cluster store needs.

Bytes travel as base64; etcd writes 64-bit integers as strings and leaves out what is zero or empty, so that most fields of answers
have a default. Names are etcd's own (etcd v3.4, `rpc.proto` and `kv.proto`).
"""

from __future__ import annotations

from typing import Literal

import msgspec


class Request(msgspec.Struct, frozen=True, omit_defaults=True):
    """What all requests have in common: defaults stay unsaid."""


class Put(Request, frozen=True):
    """Set ``key`` to ``value``; with a ``lease`` the key goes when that does."""

    key: bytes
    value: bytes
    lease: int = 0


class Range(Request, frozen=True):
    """Read ``key``, or all keys from it up to ``range_end``, at the latest revision that the cluster agreed on."""

    key: bytes
    range_end: bytes = b""
    limit: int = 0


class DeleteRange(Request, frozen=True):
    """Remove all keys from ``key`` up to ``range_end``."""

    key: bytes
    range_end: bytes


class Compare(Request, frozen=True):
    """Holds where the revision at which ``key`` was created, or last written, is the one named; 0 for a key that is not there."""

    key: bytes
    target: Literal["CREATE", "MOD"]
    create_revision: int | msgspec.UnsetType = msgspec.UNSET
    mod_revision: int | msgspec.UnsetType = msgspec.UNSET


class Operation(Request, frozen=True):
    """One step of a transaction: exactly one of these."""

    request_put: Put | None = None
    request_range: Range | None = None
    request_delete_range: DeleteRange | None = None


class Transaction(Request, frozen=True):
    """``success`` where all of ``compare`` hold, else ``failure``; all at one revision."""

    compare: tuple[Compare, ...]
    success: tuple[Operation, ...]
    failure: tuple[Operation, ...] = ()


class LeaseGrant(Request, frozen=True):
    """A lease with a number of the caller's choice, that ends ``seconds`` after it was last kept alive."""

    lease: int = msgspec.field(name="ID")
    seconds: int = msgspec.field(name="TTL")


class LeaseOf(Request, frozen=True):
    """A lease to keep alive, or to revoke."""

    lease: int = msgspec.field(name="ID")


class WatchCreate(Request, frozen=True):
    """Every change of ``key`` from a revision on."""

    key: bytes
    start_revision: int


class WatchRequest(Request, frozen=True):
    """Begin a watch."""

    create_request: WatchCreate


class Authenticate(Request, frozen=True):
    """Ask for a token."""

    name: str
    password: str


class Answer(msgspec.Struct, frozen=True):
    """What all answers have in common: fields of other versions are ignored."""


class Header(Answer, frozen=True):
    """At which revision the cluster was, from 1 on."""

    revision: int


class KeyValue(Answer, frozen=True):
    """A key as it was at some revision."""

    key: bytes = b""
    value: bytes = b""
    create_revision: int = 0
    mod_revision: int = 0
    lease: int = 0


class RangeAnswer(Answer, frozen=True):
    """The keys that are there."""

    header: Header
    kvs: tuple[KeyValue, ...] = ()

    @property
    def first(self) -> KeyValue | None:
        """The first key, None where there is none."""
        return self.kvs[0] if self.kvs else None


class OperationAnswer(Answer, frozen=True):
    """What came of one step."""

    response_range: RangeAnswer | None = None


class TransactionAnswer(Answer, frozen=True):
    """Which of the two branches was taken, at which revision, and what its steps gave."""

    header: Header
    succeeded: bool = False
    responses: tuple[OperationAnswer, ...] = ()

    def found(self, place: int) -> KeyValue | None:
        """The first key that step ``place``, a range, found."""
        found = self.responses[place].response_range if place < len(self.responses) else None
        return found.first if found is not None else None


class Lease(Answer, frozen=True):
    """A lease; ``seconds`` is 0 where it is not there."""

    seconds: int = msgspec.field(name="TTL", default=0)


class KeptAlive(Answer, frozen=True):
    """One line of the stream that keeping alive is answered with."""

    result: Lease = Lease()


class Token(Answer, frozen=True):
    """What to show with every request."""

    token: str = ""


class Nothing(Answer, frozen=True):
    """An answer of which nothing is needed."""


class Event(Answer, frozen=True):
    """A change of a key. What was put says no type."""

    type: str = "PUT"
    kv: KeyValue = KeyValue()


class WatchResult(Answer, frozen=True):
    """Some changes, or that the watch has begun (none), or has ended."""

    canceled: bool = False
    cancel_reason: str = ""
    events: tuple[Event, ...] = ()


class WatchAnswer(Answer, frozen=True):
    """One line of a watch."""

    result: WatchResult = WatchResult()


class Refusal(Answer, frozen=True):
    """Why a request failed; ``code`` is gRPC's."""

    message: str = ""
    code: int = 0
