"""The autopilot with the real actors in virtual time: it grows, it shrinks, it does not thrash, and no token is wrong."""

from dataclasses import replace

import pytest
from autopiloted import PACE, autopiloted
from flexpipe.actors.config import ServeConfig
from flexpipe.autopilot_factory import settings_for
from flexpipe.policies.control.decision import Limits

SETTINGS = settings_for(ServeConfig(auto=True, pace=PACE, changes_per_hour=3))
BUDGET = SETTINGS.limits.changes_per_hour_max
NO_LIMITS = replace(
    SETTINGS,
    guard=None,
    limits=Limits(gain_min=0, confirm_grow_s=0, confirm_shrink_s=0, dwell_s_min=0, changes_per_hour_max=10**6),
)
SLOW, FAST = 1.0, 30.0


async def test_it_splits_the_pipeline_under_a_burst_and_merges_it_afterwards(autojump_clock):
    async with autopiloted(SETTINGS) as piloted:
        await piloted.load(lambda at_s: FAST if 10 <= at_s < 16 else SLOW, 110)
        grown, *_, shrunk = piloted.changes
        assert grown["decision"]["wanted"]["stages"] * grown["decision"]["wanted"]["replicas"] > 1
        assert shrunk["decision"]["wanted"] | {"stages": 1, "replicas": 1} == shrunk["decision"]["wanted"]
        assert piloted.stages == 1
        assert [line["failure"] for line in piloted.logged("autopilot_acted")] == [""] * len(piloted.changes)
        assert "the load asks for" in grown["words"]


def square_wave(period_s):
    return lambda at_s: FAST if at_s % period_s < period_s / 2 else SLOW


async def test_a_square_wave_makes_no_more_changes_than_the_budget(autojump_clock):
    async with autopiloted(SETTINGS) as piloted:
        await piloted.load(square_wave(10), 80)
        assert 1 <= len(piloted.changes) <= BUDGET


async def test_without_limits_and_guard_a_square_wave_makes_it_thrash(autojump_clock):
    async with autopiloted(NO_LIMITS) as piloted:
        await piloted.load(square_wave(10), 80)
        assert len(piloted.changes) > 12


async def test_a_dry_run_decides_and_changes_nothing(autojump_clock):
    async with autopiloted(replace(SETTINGS, dry_run=True)) as piloted:
        await piloted.load(lambda _: FAST, 20)
        assert piloted.changes
        assert piloted.stages == 1
        assert all(line["dry_run"] for line in piloted.logged("autopilot_acted"))
        assert piloted.world.events("change_phase")[-1]["epoch"] == 1


async def test_what_repeats_is_counted_and_asking_gives_the_last(autojump_clock):
    async with autopiloted(SETTINGS) as piloted:
        await piloted.load(lambda _: 0.0, 10)
        lines = piloted.logged("autopilot_decided")
        assert len(lines) < 20
        assert sum(line["repeated"] for line in lines) > 100
        assert [written.words for written in piloted.journal.last(2)] == [line["words"] for line in lines[-2:]]
        assert piloted.journal.last(0) == []


async def test_while_somebody_else_changes_the_pipeline_nothing_is_decided(autojump_clock):
    from flexpipe.actors.refactor import RefactorRequest

    async with autopiloted(SETTINGS) as piloted:
        await piloted.load(lambda _: 0.0, 3)
        await piloted.world.done(RefactorRequest(stages=3))
        assert {line["decision"]["reason"] for line in piloted.logged("autopilot_decided")} <= {
            "too-little-seen",
            "best-already",
        }


@pytest.mark.parametrize("policy", ["fluid", "paper"])
def test_the_settings_name_their_policy(policy):
    assert settings_for(ServeConfig(auto=True, policy=policy)).policy.name == policy
