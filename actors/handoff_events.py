"""What `handoff_machine` hears and what it answers. ``transfer`` is a place in `Open.transfers`.

Every `SendRun` and `SendEnd` ends in exactly one `RunSent` or `EndSent`, in `TransferBroke`, or in the end of the whole handoff.
"""

from __future__ import annotations

from dataclasses import dataclass

from .layer_pages import LayerPages
from .messages import CopyTotals, PageRun, PagesRefused, PagesWelcome

# --- events: what this worker did ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begin:
    """This worker's ends of all links are open."""


@dataclass(frozen=True, slots=True)
class StepEnded:
    """A step ran; it may have filled blocks."""


@dataclass(frozen=True, slots=True)
class CutCame:
    """The last old step of this worker has run; ``live`` as in `messages.Cut`."""

    live: bytes


@dataclass(frozen=True, slots=True)
class RunSent:
    """`SendRun` ended well."""

    transfer: int


@dataclass(frozen=True, slots=True)
class EndSent:
    """`SendEnd` ended well."""

    transfer: int


@dataclass(frozen=True, slots=True)
class GivenUp:
    """The epoch is aborted, or over: whatever still comes means nothing."""


# --- events: what a peer did ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Welcomed:
    """An acquirer is there."""

    transfer: int
    welcome: PagesWelcome


@dataclass(frozen=True, slots=True)
class RunRefused:
    """An acquirer refused a run."""

    transfer: int
    refusal: PagesRefused


@dataclass(frozen=True, slots=True)
class RunCame:
    """A run arrived. With no ``fault`` (`HandoffMachine.wrong_with` found none, its checksum is right) its pages are in place."""

    transfer: int
    run: PageRun
    fault: str


@dataclass(frozen=True, slots=True)
class EndCame:
    """A donor sent its end."""

    transfer: int
    epoch: int


@dataclass(frozen=True, slots=True)
class TransferBroke:
    """A transfer cannot go on: its link is lost or brought garbage, or this worker's engine cannot copy."""

    transfer: int
    sentence: str


OwnEvent = Begin | StepEnded | CutCame | RunSent | EndSent | GivenUp
PeerEvent = Welcomed | RunRefused | RunCame | EndCame | TransferBroke
Event = OwnEvent | PeerEvent

# --- instructions --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SendRun:
    """Send pages. ``hurried``: without rests."""

    transfer: int
    pages: tuple[LayerPages, ...]
    hurried: bool


@dataclass(frozen=True, slots=True)
class SendEnd:
    """Send the end of a transfer."""

    transfer: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """Tell a donor that a run was not what was agreed."""

    transfer: int
    refusal: PagesRefused


@dataclass(frozen=True, slots=True)
class Vote:
    """This worker is ready for the cut."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far copying before the cut has come."""

    sent_bytes: int
    remaining_bytes: int


@dataclass(frozen=True, slots=True)
class Across:
    """All that this worker owes was sent and all that it is due is here."""

    copied: CopyTotals


@dataclass(frozen=True, slots=True)
class Fail:
    """The handoff cannot come to its end."""

    sentence: str


Instruction = SendRun | SendEnd | Refuse | Vote | Progress | Across | Fail
