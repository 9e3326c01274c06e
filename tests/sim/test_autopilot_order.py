"""In which order the autopilot makes a shape of fewer replicas: new stages first where there is room, so capacity never dips."""

import json
from dataclasses import replace

from autopiloted import PACE, autopiloted
from flexpipe.actors.config import ServeConfig
from flexpipe.actors.refactor import RefactorRequest
from flexpipe.autopilot_factory import settings_for
from flexpipe.policies.control.decision import Limits
from flexpipe.policies.control.granularity import Score

EAGER = Limits(gain_min=0, confirm_grow_s=0, confirm_shrink_s=0, dwell_s_min=0, changes_per_hour_max=10**6)


class Merging:
    """Wants one replica with all the stages of two, once there are two, and is content before and after."""

    name = "told"

    def scores(self, observation, present, candidates, *, forecast):
        def cost(shape):
            return 0.1 if present.replicas == 2 and (shape.stages, shape.replicas) == (present.devices, 1) else 1.0

        return tuple(Score(shape, cost(shape)) for shape in candidates)


async def _deeds(stages):
    """What happened to which replica, in order, on the way from two replicas of ``stages`` to one of twice as many."""
    usual = settings_for(ServeConfig(auto=True, pace=PACE))
    async with autopiloted(replace(usual, policy=Merging(), limits=EAGER, guard=None)) as piloted:
        if stages > 1:
            await piloted.world.done(RefactorRequest(stages=stages))
        before = piloted.stages
        await piloted.world.done(RefactorRequest(replicas=2))
        began = len(piloted.world.factory.log_text.getvalue().splitlines())
        await piloted.load(lambda _: 10.0, 10)
        assert [line["failure"] for line in piloted.logged("autopilot_acted")] == [""]
        assert (before, piloted.stages, piloted.world.numbers()) == (stages, 2 * stages, [0])
        lines = piloted.world.factory.log_text.getvalue().splitlines()[began:]
    return [
        (event["event"], event["replica"])
        for event in map(json.loads, lines)
        if event["event"] in {"replica_retired", "change_phase"}
    ]


async def test_where_there_is_room_the_replica_that_stays_changes_before_the_other_goes(autojump_clock):
    deeds = await _deeds(1)  # two of four devices are free
    assert deeds[0] == ("change_phase", 0)
    assert ("replica_retired", 1) in deeds


async def test_where_there_is_none_the_other_goes_first_and_frees_its_devices(autojump_clock):
    deeds = await _deeds(2)
    assert deeds[0] == ("replica_retired", 1)
    assert ("change_phase", 0) in deeds
