"""Protocol bugs planted on purpose, each one rule replaced, to show that the checks would find it."""

from __future__ import annotations

from dataclasses import dataclass

from ...actors.coordinator_machine import CoordinatorMachine
from ...actors.page_ledger import PageLedger
from ...actors.stage_machine import StageMachine
from .actors import WorldEngine, WorldJournal, WorldScheduler, WorldStage


@dataclass(frozen=True, slots=True)
class Mutation:
    """A name, the rule that is broken, and the classes to build the world of."""

    name: str
    rule: str
    coordinator_machine: type[CoordinatorMachine] = CoordinatorMachine
    scheduler: type[WorldScheduler] = WorldScheduler
    stage: type[WorldStage] = WorldStage
    stage_machine: type[StageMachine] = StageMachine
    pages: type[PageLedger] = PageLedger
    engine: type[WorldEngine] = WorldEngine
    journal: type[WorldJournal] = WorldJournal


NOTHING_PLANTED = Mutation("", "")
