"""A client of the simulated pipeline: asks, checks each token as it comes, and ends with all of them or one explicit error."""

from __future__ import annotations

from typing import Protocol

import trio

from ...actors.generation import GenerationFailedError, GenerationRequest, TokenEvent
from ..modelled_engine import FaultlessHistory
from .checks import TOKENS, Checks
from .house import Daemon
from .scenario import Scenario, Visit

PHASE_S_MAX = 0.2
"""A client that is to come in a phase waits so long for it, and then comes all the same."""
RETRY_S = 0.05
"""A client that is told to come again comes again so soon."""


class Street(Protocol):
    """What a visitor sees of the world."""

    scenario: Scenario
    checks: Checks
    daemon: Daemon | None

    async def wait_for_phase(self, phase: str) -> None:
        """Wait until the world is in a phase."""
        ...

    def visit_ended(self, outcome: str) -> None:
        """This visitor is done."""
        ...


class Visitor:
    """See the module. ``outcome`` is "" until its end: "served", "left", "refused", "failed" or "cut off"."""

    def __init__(self, visit: Visit, street: Street) -> None:
        self.outcome = ""
        self._visit = visit
        self._street = street
        self._scope: trio.CancelScope | None = None
        self._history = FaultlessHistory(street.scenario.model, visit.prompt, visit.params)
        self._got = 0

    @property
    def is_served(self) -> bool:
        """Whether a pipeline has its request."""
        return self._scope is not None

    def leave(self) -> None:
        """Go before the end."""
        if self._scope is not None:
            self.outcome = "left"
            self._scope.cancel()

    def cut_off(self) -> None:
        """The daemon died: the connection ends."""
        if self._scope is not None:
            self.outcome = "cut off"
            self._scope.cancel()

    async def come(self) -> None:
        """Be served."""
        with trio.move_on_after(PHASE_S_MAX):
            await self._street.wait_for_phase(self._visit.arrives_in)
        await trio.sleep(self._visit.arrives_s)
        while not self.outcome:
            daemon = self._street.daemon
            if daemon is not None and daemon.is_open:
                await self._ask(daemon)
            if not self.outcome:
                await trio.sleep(RETRY_S)
        self._street.visit_ended(self.outcome)

    async def _ask(self, daemon: Daemon) -> None:
        visit = self._visit
        request = GenerationRequest(visit.prompt, visit.params, visit.max_tokens, visit.stop_token_ids)
        try:
            with daemon.visit(self), trio.CancelScope() as self._scope:
                async with daemon.scheduler.open(request) as events:
                    if visit.patience == 0:
                        self.outcome = "left"
                        return
                    async for event in events:
                        if self._take(event):
                            break
        except GenerationFailedError as error:
            if error.kind == "not_ready" and self._got == 0:
                return  # comes again
            self.outcome = "refused" if error.kind in ("too_long", "overloaded") else "failed"
            if self.outcome == "failed":
                self._street.checks.request_failed(error.kind, error.sentence)
        finally:
            self._scope = None
        if not self.outcome:
            self._street.checks.violated(TOKENS, f"a stream ended after {self._got} tokens without finish or error")

    def _take(self, event: TokenEvent) -> bool:
        """Check a token; whether it is the last that this visitor wants."""
        visit, checks = self._visit, self._street.checks
        if event.index != self._got:
            checks.violated(TOKENS, f"token {event.index} came where token {self._got} was due")
            return True
        expected = self._history.next()
        if event.token != expected:
            checks.violated(TOKENS, f"token {event.index} is {event.token}, the faultless history has {expected}")
            return True
        self._got += 1
        finish = None
        if expected.token_id in visit.stop_token_ids:
            finish = "stop"
        elif self._got == visit.max_tokens:
            finish = "length"
        if event.finish != finish:
            checks.violated(TOKENS, f"token {event.index} has finish {event.finish}, not {finish}")
        if finish is not None:
            self.outcome = "served"
        elif self._got == visit.patience:
            self.outcome = "left"
        return bool(self.outcome)
