"""What one epoch gives a worker to talk to: its neighbours' activations, the page handoff, the way for its outputs.

Opened while the epoch before still serves, closed when a later one is released or the epoch is given up. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from ..transport.interface import PeerLostError
from .activation_link import ActivationReceiver, ActivationSender
from .event_log import EventLog
from .handoff import Handoff
from .link_place import Surroundings
from .messages import Open, StepResult
from .sampling_ledger import SamplingLedger
from .stage_events import ActivationArrived, Emit

NeighbourLost = Callable[[int, str], Awaitable[None]]
"""Told the epoch whose link broke, and why. If that epoch serves, the coordinator has to know: no step can pass any more."""
FAREWELL_S_MAX = 1.0
"""How long saying goodbye to a neighbour may take."""
OUTPUTS_WAITING_MAX = 4
"""Finished steps whose output may wait for the next stage before this one stops computing."""


@dataclass(slots=True)
class EpochLinks:
    """See the module. ``slots`` maps a step to the ring slot that its hidden state lies in; ``threads`` compute its steps."""

    epoch: int
    threads: int = 0
    upstream: ActivationReceiver | None = None
    downstream: ActivationSender | None = None
    handoff: Handoff | None = None
    sampling: SamplingLedger | None = None
    slots: dict[int, int] = field(default_factory=dict)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    drained: trio.Event = field(default_factory=trio.Event)
    _outputs: trio.MemorySendChannel[Emit] = field(init=False)
    _outputs_receiver: trio.MemoryReceiveChannel[Emit] = field(init=False)

    def __post_init__(self) -> None:
        """Make the way for outputs."""
        self._outputs, self._outputs_receiver = trio.open_memory_channel[Emit](OUTPUTS_WAITING_MAX)

    async def open_activations(self, opened: Open, around: Surroundings, stage: int, step_tokens_max: int) -> None:
        """Bind and connect as ``opened`` says. Raises `TransportError` where a place cannot be used."""
        if opened.upstream is not None:
            name = f"activations from stage {stage - 1} in epoch {self.epoch}"
            self.upstream = await ActivationReceiver.bind(around, opened.upstream, name=name)
        if opened.downstream is not None:
            name = f"activations to stage {stage + 1} in epoch {self.epoch}"
            self.downstream = await ActivationSender.connect(
                around, opened.downstream, name=name, step_tokens_max=step_tokens_max
            )
        elif stage >= 0:
            self.sampling = SamplingLedger()

    async def receive(
        self, handle: Callable[[ActivationArrived], Awaitable[None]], lost: NeighbourLost, log: EventLog
    ) -> None:
        """Pass arriving hidden states on until the stage before is gone."""
        assert self.upstream is not None
        try:
            while True:
                arrived = await self.upstream.receive()
                if arrived.header.slot >= 0:
                    self.slots[arrived.header.step] = arrived.header.slot
                await handle(ActivationArrived(arrived.header, arrived.hidden))
        except PeerLostError as error:
            log.emit("neighbour_lost", epoch=self.epoch, link="upstream", sentence=str(error))
            await lost(self.epoch, f"the stage before it was lost: {error}")

    async def emit(self, output: Emit) -> None:
        """Send a step's output on; waits while too many wait."""
        await self._outputs.send(output)

    def finish_outputs(self) -> None:
        """No more outputs; `drained` is set when the last has been sent."""
        self._outputs.close()

    async def send_outputs(
        self, tell: Callable[[StepResult], Awaitable[None]], lost: NeighbourLost, log: EventLog
    ) -> None:
        """Send outputs, in order, to the next stage or (tokens) to the scheduler."""
        try:
            async for output in self._outputs_receiver:
                plan = output.plan
                if self.downstream is None:
                    await tell(StepResult(plan.epoch, plan.step, tuple(output.output.tokens)))
                elif output.output.hidden is not None:
                    await self.downstream.send(plan.epoch, plan.step, output.output.hidden)
        except PeerLostError as error:
            log.emit("neighbour_lost", epoch=self.epoch, link="downstream", sentence=str(error))
            self._outputs_receiver.close()
            await lost(self.epoch, f"the stage behind it was lost: {error}")
        self.drained.set()

    def release_slot(self, step: int) -> None:
        """The step whose hidden state lay in a ring slot has run."""
        if self.upstream is not None and step in self.slots:
            self.upstream.release(self.slots.pop(step))

    def close(self) -> None:
        """End every task of this epoch and give its memory up; the links close as its last task ends."""
        self.scope.cancel()
        if self.handoff is not None:
            self.handoff.close()
        for neighbour in (self.upstream, self.downstream):
            if neighbour is not None:
                neighbour.close()

    async def aclose(self) -> None:
        """Close the links to the neighbours."""
        with trio.move_on_after(FAREWELL_S_MAX, shield=True):
            for neighbour in (self.upstream, self.downstream):
                if neighbour is not None:
                    await neighbour.aclose()
