"""What operators ask of a gateway and only the leader can answer: refactorings and the autopilot's decisions.

Nothing here outlives a leader: whoever watches a refactoring when its leader is lost hears that, once, as its end.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import msgspec

from ..cluster_nodes import NodeRefusedError
from ..generation import GenerationFailedError
from ..refactor import RefactorEvent, RefactorRequest
from .leader_line import LeaderLine
from .leader_session import RETRY_AFTER_S, LeaderSession


class RemoteRefactorer:
    """A `Refactorer` that has the leader refactor."""

    def __init__(self, line: LeaderLine) -> None:
        self._line = line

    async def refactor(self, request: RefactorRequest) -> AsyncGenerator[RefactorEvent, None]:
        """See `Refactorer.refactor`. Raises `GenerationFailedError` ("not_ready") where there is no leader.

        The last event is `RefactorFailed` ("lost") where the leader is lost meanwhile.
        """
        async with aclosing(_session(self._line).refactor(request)) as events:
            async for event in events:
                yield event


class RemoteDecisions:
    """The leader's `Decisions`."""

    def __init__(self, line: LeaderLine) -> None:
        self._line = line

    async def recall(self, count: int) -> Sequence[msgspec.Raw] | None:
        """See `Decisions.recall`: JSON as the leader wrote it."""
        decisions = await _session(self._line).decisions(count)
        return None if decisions is None else [msgspec.Raw(decision) for decision in decisions]


class RemoteNodes:
    """The leader's `ClusterNodes`."""

    def __init__(self, line: LeaderLine) -> None:
        self._line = line

    async def nodes(self) -> Sequence[msgspec.Raw]:
        """See `ClusterNodes.nodes`: JSON as the leader wrote it."""
        return [msgspec.Raw(node) for node in await _session(self._line).nodes()]

    async def drain(self, node: str) -> None:
        """See `ClusterNodes.drain`."""
        sentence = await _session(self._line).drain(node)
        if sentence:
            raise NodeRefusedError(sentence)


def _session(line: LeaderLine) -> LeaderSession:
    if line.session is None:
        raise GenerationFailedError("not_ready", line.reason, RETRY_AFTER_S)
    return line.session
