"""What a node's daemon and the leader say to each other over one link, which the node makes. This file is the protocol.

The node says `NodeHello` and is answered by `NodeWelcome` or `NodeRefused`; only then anything else is said. The link is the
node's life for the leader: once it is lost every worker of the node counts as ended, and the node ends them. Each build
speaks a range of versions; the leader takes the highest that both speak, so that daemons are upgraded one by one.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from ...transport.codec import Codec
from ...transport.interface import LinkLimits
from ..messages import Message

VERSION_LOWEST = 1
VERSION_HIGHEST = 1
"""The versions of this conversation, and of all that a leader and its nodes say to each other, that this build speaks."""
NODE_PURPOSE = "node"
"""What a node's link to the leader's listener is for."""
NODE_LIMITS = LinkLimits(heartbeat_interval_s=0.25, silence_s_max=1.5)
"""The node's end: it calls a leader lost that was silent for so long."""
REPORT_INTERVAL_S = 0.5
"""How often a node says how it is."""
NODE_SILENCE_S_MAX = 1.5
"""After so long without a report the leader calls a node lost: noticed within 2 s, whatever happened to it."""
LISTENER_LIMITS = LinkLimits(heartbeat_interval_s=0.25, silence_s_max=10.0)
"""The leader's end of every link to its listener. Workers come there, too, which may compute for long without a word."""

RefusalKind = Literal["name", "version", "model", "term", "not-leading"]
"""Why a node is refused: its name is taken or another's, its build or model differs, the term is over, the daemon does not lead."""


class NodeDevice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A device by its name on its node. ``memory_bytes`` is what weights and KV may take on it, 0 where nobody stated it."""

    name: str
    memory_bytes: int = 0


class NodeFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A node as it describes itself. ``cores`` are shared by its CPU workers; ``threads`` each has, 0 for an even share.

    Workers of other nodes reach its workers at ``host``, ports ``first_port`` to ``last_port``.
    """

    node: str
    host: str
    first_port: int
    last_port: int
    cores: int
    threads: int
    memory_bytes: int
    devices: tuple[NodeDevice, ...]


# --- node -> leader ---------------------------------------------------------------------------------------------------


class NodeHello(Message, frozen=True, tag=True):
    """Node → leader, first. ``model`` is the digest of the model on this node, ``term`` the highest that it has heard of."""

    facts: NodeFacts
    model: str
    term: int
    lowest_version: int = VERSION_LOWEST
    highest_version: int = VERSION_HIGHEST


class NodeReport(Message, frozen=True, tag=True):
    """Node → leader, every `REPORT_INTERVAL_S`: for `flexpipe nodes` and metrics, and to be heard of at all."""

    memory_free_bytes: int
    warm_bytes: int
    workers: int


class WorkerForked(Message, frozen=True, tag=True):
    """Node → leader: the process of `LaunchWorker` number ``launch`` was started."""

    launch: int
    pid: int


class WorkerNotForked(Message, frozen=True, tag=True):
    """Node → leader: it could not be."""

    launch: int
    sentence: str


class WorkerEnded(Message, frozen=True, tag=True):
    """Node → leader: its process ended; ``code`` is negative for a signal."""

    launch: int
    code: int


class NodeLeaving(Message, frozen=True, tag=True):
    """Node → leader: somebody there asked it to stop. Answered by `NodeRelease` once everything was moved off it."""

    reason: str


# --- leader -> node ---------------------------------------------------------------------------------------------------


class NodeWelcome(Message, frozen=True, tag=True):
    """Leader → node: it belongs to the cluster now. ``leader`` is the leader's node; ``version`` is spoken from here on."""

    leader: str
    term: int
    version: int


class NodeRefused(Message, frozen=True, tag=True):
    """Leader → node: it does not. The link ends."""

    reason: RefusalKind
    sentence: str


class LaunchWorker(Message, frozen=True, tag=True):
    """Leader → node: start a worker for ``device``. Answered by `WorkerForked` or `WorkerNotForked`.

    It connects to ``control``: a name on this node, or the leader's listener, which it tells ``purpose``.
    """

    launch: int
    replica: int
    worker: int
    device: str
    control: str
    purpose: str


class SignalWorker(Message, frozen=True, tag=True):
    """Leader → node: SIGTERM, or SIGKILL, to the process of ``launch``; nothing where it has ended."""

    launch: int
    kill: bool


class NodeRelease(Message, frozen=True, tag=True):
    """Leader → node: nothing of the cluster is left on it; its daemon stops."""

    reason: str


FromNode = NodeHello | NodeReport | WorkerForked | WorkerNotForked | WorkerEnded | NodeLeaving
ToNode = NodeWelcome | NodeRefused | LaunchWorker | SignalWorker | NodeRelease

FROM_NODE: Codec[FromNode] = Codec(FromNode)
TO_NODE: Codec[ToNode] = Codec(ToNode)
"""One codec a direction: each end accepts only what the other may say."""
