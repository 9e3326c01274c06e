"""Moves everything off nodes that are to leave: refactors their stages away while they serve, then lets the nodes go.

Decides when a node is empty, not where its stages go: that is the planner's, which does not offer the devices of such a node.
"""

from __future__ import annotations

from contextlib import aclosing

import trio

from ..device_name import node_of
from ..event_log import EventLog
from ..pipeline import Pipeline
from ..refactor import Refactorer, RefactorFailed, RefactorRefusedError, RefactorRequest
from ..replicas import Replicas
from .nodes import Nodes
from .nodes_machine import NodeState

RETRY_S = 1.0
"""After so long a node that could not be emptied is tried again: requests end, other nodes come."""


class Drainer:
    """See the module. ``run`` must be running."""

    def __init__(self, nodes: Nodes, replicas: Replicas, refactorer: Refactorer, log: EventLog) -> None:
        self._nodes = nodes
        self._replicas = replicas
        self._refactorer = refactorer
        self._log = log
        self._told: dict[str, str] = {}

    async def run(self) -> None:
        """Empty whatever node is to leave, until cancelled."""
        while True:
            for node in self._draining():
                await self._empty(node)
            with trio.move_on_after(RETRY_S if self._draining() else float("inf")):
                await self._nodes.change()

    def _draining(self) -> list[str]:
        return [name for name, node in self._nodes.known.items() if node.state is NodeState.DRAINING]

    async def _empty(self, node: str) -> None:
        """Move the stages of every replica off ``node``; once no process is left there it may go."""
        for replica in self._replicas.present:
            if any(node_of(stage.device) == node for stage in replica.pipeline.route.stages):
                sentence = await self._move(replica.pipeline)
                if sentence and self._told.get(node) != sentence:
                    self._told[node] = sentence
                    self._log.emit("node_stays", node=node, sentence=sentence)
        if node in self._draining() and not any(node_of(device) == node for device in self._replicas.devices()):
            self._told.pop(node, None)
            self._nodes.emptied(node)

    async def _move(self, pipeline: Pipeline) -> str:
        """Put the stages where they may be: cut as they are, or fewer; why not, "" if it was done."""
        stages = pipeline.route.stages
        cuts = ",".join(f"{stage.first_atom}:{stage.end_atom}" for stage in stages)
        requests = (
            RefactorRequest(partition=cuts, replica=pipeline.replica),
            *(RefactorRequest(stages=count, replica=pipeline.replica) for count in range(len(stages) - 1, 0, -1)),
        )
        sentences = []
        for request in requests:
            sentence = await self._carry_out(request)
            if not sentence:
                return ""
            sentences.append(sentence)
        return sentences[0]

    async def _carry_out(self, request: RefactorRequest) -> str:
        try:
            async with aclosing(self._refactorer.refactor(request)) as events:
                async for event in events:
                    if isinstance(event, RefactorFailed):
                        return event.sentence
        except RefactorRefusedError as refusal:
            return str(refusal)
        return ""
