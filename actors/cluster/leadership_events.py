"""What a `LeadershipMachine` is told and what it says is to be done: values only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .cluster_store import LeaderRecord

Timer = Literal["claim", "keep-alive"]


# --- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LeaderSeen:
    """The store was seen to say who leads; None: nobody does."""

    record: LeaderRecord | None


@dataclass(frozen=True, slots=True)
class StoreSilent:
    """The store does not say who leads any more; a `LeaderSeen` will be its next word."""

    sentence: str


@dataclass(frozen=True, slots=True)
class ClaimWon:
    """The claim that was made stands, in ``term``."""

    term: int


@dataclass(frozen=True, slots=True)
class ClaimRefused:
    """Somebody else leads."""

    sentence: str


@dataclass(frozen=True, slots=True)
class Kept:
    """The claim was kept alive, or made anew: it stands."""


@dataclass(frozen=True, slots=True)
class Lapsed:
    """The claim does not stand, but perhaps nobody led since."""

    sentence: str


@dataclass(frozen=True, slots=True)
class Overtaken:
    """The claim cannot be made anew."""

    sentence: str


@dataclass(frozen=True, slots=True)
class Unanswered:
    """The store did not answer what it was asked last."""

    sentence: str


@dataclass(frozen=True, slots=True)
class Resigned:
    """The claim was given back, or will lapse by itself."""


@dataclass(frozen=True, slots=True)
class TermHeard:
    """``peer`` knows of a leader in ``term``."""

    term: int
    peer: str


@dataclass(frozen=True, slots=True)
class DutiesEnded:
    """All that leads has ended here, asked to or not."""


@dataclass(frozen=True, slots=True)
class StopAsked:
    """This process is to lead no more."""

    sentence: str


@dataclass(frozen=True, slots=True)
class TimerFired:
    """A timer that was set."""

    timer: Timer
    number: int


Event = (
    LeaderSeen
    | StoreSilent
    | ClaimWon
    | ClaimRefused
    | Kept
    | Lapsed
    | Overtaken
    | Unanswered
    | Resigned
    | TermHeard
    | DutiesEnded
    | StopAsked
    | TimerFired
)


# --- instructions ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MakeClaim:
    """Ask the store to lead. Ends in `ClaimWon`, `ClaimRefused` or `Unanswered`."""


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """Keep the claim alive. Ends in `Kept`, `Lapsed` or `Unanswered`."""


@dataclass(frozen=True, slots=True)
class Reclaim:
    """Make the claim anew in its old term. Ends in `Kept`, `Overtaken` or `Unanswered`."""


@dataclass(frozen=True, slots=True)
class Resign:
    """Give the claim back. Ends in `Resigned`."""


@dataclass(frozen=True, slots=True)
class BeginDuties:
    """Begin to lead. Ends in `DutiesEnded`."""

    term: int


@dataclass(frozen=True, slots=True)
class EndDuties:
    """Let all that leads end now."""

    sentence: str


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Say `TimerFired` with the same ``timer`` and ``number`` after so long."""

    timer: Timer
    number: int
    after_s: float


@dataclass(frozen=True, slots=True)
class Entered:
    """For the log: a state was entered."""

    state: str
    term: int
    sentence: str


@dataclass(frozen=True, slots=True)
class Finish:
    """Nothing will happen any more."""


Instruction = MakeClaim | KeepAlive | Reclaim | Resign | BeginDuties | EndDuties | SetTimer | Entered | Finish
