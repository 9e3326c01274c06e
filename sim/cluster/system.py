"""What a serving system is to the cluster simulator: what it holds at the start, and what it does at each tick.

Owns the words between a system and the simulator. A system sees a `View` and answers with actions; what becomes of each is an
`Outcome` in a later view. It must never reach into the simulator's state. The product's policies are called from within
systems, through their own interfaces.

    class Static:
        name, tick_s = "static 4", 10.0

        def begin(self, view):
            return [Start(0, stages) for stages in ...]   # serve at once: before time 0 there was time enough

        def tick(self, view):
            return []
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ...policies.cluster.cluster_map import ClusterMap, SeenEpoch
from .served_model import ServedModel


@dataclass(frozen=True, slots=True)
class StageAt:
    """Layers ``[first, end)`` of a model on the device in this row of the map."""

    device: int
    first: int
    end: int


How = Literal["live", "stop-and-copy", "restart"]
"""How a replica changes its stages. "live": it serves until the cut, KV is copied meanwhile, and then it stands still for a moment;
what is new must fit beside what serves, so leave room for it (``kv_tokens``).
"stop-and-copy": it stands still while KV is copied. "restart": it stands still from the decision on, and KV is computed anew."""


@dataclass(frozen=True, slots=True)
class Start:
    """A new replica. ``kv_tokens`` is its KV room, None as much as fits its tightest stage.

    Devices that are not held yet are waited for first (`StartupModel.allocation`), then weights are loaded. Refused where a
    stage does not fit, where two stages of the model share a device, or where a device in ``seen`` has changed since.
    """

    model: int
    stages: tuple[StageAt, ...]
    kv_tokens: int | None = None
    seen: tuple[SeenEpoch, ...] = ()
    tag: str = ""


@dataclass(frozen=True, slots=True)
class Stop:
    """A replica goes. With ``drain`` it takes no more requests and goes when its last has ended, or after `RETIRE_S_MAX`.

    What it still has then waits at other replicas and is computed anew there.
    """

    replica: int
    drain: bool = True
    tag: str = ""


@dataclass(frozen=True, slots=True)
class Reshape:
    """A replica takes other stages. What layers stay where they are load nothing and move no KV. Refused as `Start` is."""

    replica: int
    stages: tuple[StageAt, ...]
    how: How = "live"
    kv_tokens: int | None = None
    seen: tuple[SeenEpoch, ...] = ()
    tag: str = ""


@dataclass(frozen=True, slots=True)
class Hold:
    """These devices are reserved from now on, used or not: they count as held, and a start on them waits for no allocation."""

    devices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Release:
    """These devices are reserved no more; those that serve stay held while they do."""

    devices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Keep:
    """The node holds the weights of layers ``[first, end)`` in its host memory, if they are there: a start there loads from it."""

    node: int
    model: int
    first: int
    end: int


Action = Start | Stop | Reshape | Hold | Release | Keep
OutcomeKind = Literal["serving", "refused", "failed", "ended"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an action, or of a replica by itself ("failed" with no action: a node under it did).

    "serving": a start or a reshape is done, ``took_s`` after it was asked for, of which devices took ``waited_s`` to be allocated.
    "ended": a stop is. ``sentence`` says why not.
    """

    kind: OutcomeKind
    at_s: float
    replica: int
    action: Action | None
    took_s: float = 0.0
    sentence: str = ""
    waited_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """One replica now. ``is_changing`` while a reshape is under way; ``speed`` below 1 says that co-tenants or a straggler slow it.

    ``waiting`` and ``running`` are requests, ``kv_used`` and ``kv_tokens`` tokens of context, ``served_tokens`` decoded so far,
    ``prompt_tokens`` prefilled so far. ``step_s`` is the present time from one token of a request to its next, 0 when idle.
    """

    number: int
    model: int
    stages: tuple[StageAt, ...]
    state: Literal["starting", "serving", "draining"]
    is_changing: bool
    asked_s: float
    waiting: int
    running: int
    kv_used: int
    kv_tokens: int
    served_tokens: float
    prompt_tokens: float
    step_s: float
    speed: float


@dataclass(frozen=True, slots=True)
class Arrived:
    """Requests of one model that arrived since the last view, in order.

    ``output_tokens`` is what each will make: no honest system looks at it before the request has ended.
    """

    at_s: NDArray[np.float64]
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Finished:
    """Requests of one model that ended since the last view: when, how long in service (first step to end), tokens made."""

    at_s: NDArray[np.float64]
    service_s: NDArray[np.float64]
    output_tokens: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class View:
    """What a system sees. ``cluster`` is the map as it is, what the system itself takes included; read it, or copy it.

    ``unplaced`` is how many requests of each model wait for any replica at all. ``held`` are the devices held now.
    """

    now_s: float
    cluster: ClusterMap
    models: tuple[ServedModel, ...]
    replicas: tuple[ReplicaView, ...] = ()
    arrived: tuple[Arrived, ...] = ()
    finished: tuple[Finished, ...] = ()
    unplaced: tuple[int, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    held: frozenset[int] = field(default_factory=frozenset)

    def of(self, model: int) -> tuple[ReplicaView, ...]:
        """The replicas of one model, the oldest first."""
        return tuple(replica for replica in self.replicas if replica.model == model)


Dispatch = Literal["least-work", "shortest-queue", "central"]
"""Which replica gets a request: that with the least tokens of context (the product's, `policies.dispatch`), that with the fewest
requests, or that which first has room for it: until then all wait in one queue."""


class System(Protocol):
    """A whole serving system. One object serves one run; whatever is random in it comes from a seed of its own."""

    @property
    def name(self) -> str:
        """As in tables."""

    @property
    def tick_s(self) -> float:
        """From one `tick` to the next, above 0; infinite for a system that never acts."""

    @property
    def dispatch(self) -> Dispatch:
        """Its router."""

    def begin(self, view: View) -> Sequence[Action]:
        """What it holds at time 0. Starts here serve at once, and wait and load nothing."""

    def tick(self, view: View) -> Sequence[Action]:
        """What it does now."""
