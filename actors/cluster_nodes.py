"""What a gateway may ask of a cluster's nodes, whoever answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class NodeRefusedError(Exception):
    """What was asked of a node cannot be; the sentence says why."""


class ClusterNodes(Protocol):
    """Whoever knows the nodes, perhaps elsewhere. Both raise `GenerationFailedError` where it cannot be asked now."""

    async def nodes(self) -> Sequence[object]:
        """All that belong to the cluster, each to be written as JSON."""
        ...

    async def drain(self, node: str) -> None:
        """Begin to move everything off ``node``, whose daemon stops then. Raises `NodeRefusedError`."""
        ...
