"""Whatever happens in whatever order, a coordinator keeps its rules (asserted in `modelled_house`) and ends where it should."""

import flexpipe.actors.coordinator_events as c
from flexpipe.actors.coordinator_events import PipelineState
from flexpipe.actors.messages import HandoffFailed
from flexpipe.actors.pipeline_spec import CoordinatorLimits
from flexpipe.actors.refactor import RefactorRefusedError
from hypothesis import given, settings
from hypothesis import strategies as st
from modelled_house import LAYERS_OF, House

NATURAL = ["go on"] * 30
FAULTS = ["kill", "disk", "refuse", "again", "restart", "time"]
PATIENT = CoordinatorLimits(restarts_max=10_000)


class Storyteller:
    """Turns drawn numbers into what happens next."""

    def __init__(self, house):
        self.house = house
        self.answered = []

    def tell(self, action, number):
        house = self.house
        match action:
            case "go on":
                self._go_on(number)
            case "refactor":
                self._refactor(number)
            case "kill" if house.inbox:
                house.kill(sorted(house.inbox)[number % len(house.inbox)])
            case "disk" if house.writing:
                house.write("the disk is full")
            case "refuse" if house.machine.change is not None and house.inbox:
                worker = sorted(house.inbox)[number % len(house.inbox)]
                house.say(HandoffFailed(house.machine.change.epoch, worker, "no room"))
            case "again" if self.answered:
                house.say(self.answered[number % len(self.answered)])
            case "time" if house.timers:
                house.fire(house.timers[number % len(house.timers)].timer)
            case "restart":
                while house.writing and number % 2:
                    house.write_unheard()  # what was handed to the disk may get there
                    number //= 2
                house.restart()
                house.start()

    def _go_on(self, number):
        if not (moves := self.house.moves()):
            if self.house.machine.state is PipelineState.WAITING:
                self.house.fire("recover")
        else:
            answer = moves[number % len(moves)]()
            if hasattr(answer, "worker"):
                self.answered.append(answer)

    def _refactor(self, number):
        house = self.house
        stages = number % 4 + 1
        kept = [worker for worker in house.machine.route.workers if worker in house.inbox][: number % 3]
        workers = [*kept, *range(house.machine.roster.next_worker, house.machine.roster.next_worker + 4)][:stages]
        cuts = sorted({(number * 7 + place * 3) % (len(LAYERS_OF) - 1) + 1 for place in range(stages - 1)})
        strategy = ("precopy", "stop-copy", "recompute", "restart")[number % 5 % 4]
        busy = house.machine.change is not None or house.machine.state is not PipelineState.SERVING
        # A coordinator that took over cannot plan before the workers told it again what they hold.
        busy = busy or not set(house.machine.route.workers) <= set(house.machine.roster.facts)
        try:
            house.refactor(cuts, workers[: len(cuts) + 1], strategy)
        except RefactorRefusedError:
            assert busy
        else:
            assert not busy


def calm_down(house):
    """No more faults: let pauses pass and lost commands be sent again until nothing is left to do."""
    for _ in range(20):
        house.settle()
        if house.machine.state is PipelineState.WAITING:
            house.fire("recover")
        elif house.machine.change is not None:
            house.fire("resend")
        else:
            return
    raise AssertionError("it did not come to rest")


STORY = st.lists(
    st.tuples(st.sampled_from([*NATURAL, *FAULTS, "refactor", "refactor", "refactor"]), st.integers(0, 60)),
    max_size=150,
)


@settings(max_examples=300, deadline=None)
@given(STORY, st.booleans(), st.booleans())
def test_every_history_keeps_the_rules_and_ends_with_a_pipeline_that_serves_or_has_left(story, serves, stops):
    house = House(limits=PATIENT)
    house.start()
    if serves:
        house.settle()
    teller = Storyteller(house)
    for action, number in story:
        if house.machine.state is not PipelineState.FAILED:
            teller.tell(action, number)
    if stops:
        house.handle(c.Stop())
        house.settle()
        assert house.machine.state in (PipelineState.STOPPED, PipelineState.FAILED)
        assert (house.inbox, house.scheduler_epoch) == ({}, -1)
        return
    calm_down(house)
    machine = house.machine
    if machine.state is PipelineState.FAILED:
        assert house.inbox == {}  # a first start that every retry would only repeat
        return
    assert machine.state is PipelineState.SERVING
    assert machine.epoch == house.scheduler_epoch == house.journal.committed.epoch
    assert set(house.inbox) == set(machine.route.workers)
    assert house.journal.released
    assert house.begun is None
