"""What every `Refactorer` promises. Add a world to `WORLDS` to hold another implementation to it.

A world is an asynchronous context manager that gives an object with: ``refactorer``; ``good`` and ``other`` (requests that can be
carried out one after the other); ``bad`` (one that never can); ``shape()`` (whatever says which stages serve, and of which epoch);
``hold()`` and ``release()`` (no change comes to its end in between); and ``until(condition)``, which waits until it holds.
"""

from contextlib import aclosing, asynccontextmanager
from types import SimpleNamespace
from typing import get_args

import pytest
import trio
import trio.testing
from flexpipe.actors.refactor import (
    Phase,
    RefactorFailed,
    RefactorProgress,
    RefactorRefusedError,
    RefactorReport,
    RefactorRequest,
)
from flexpipe.sim.modelled_engine import ModelledEngine
from modelled_leaders import cluster
from modelled_pipeline import MODEL, modelled_replicas
from toy_refactorer import ToyRefactorer

PHASES = get_args(Phase)


@asynccontextmanager
async def toy_world():
    refactorer = ToyRefactorer(layers=12, shape=(6, 6))

    async def until(condition):
        while not condition():
            await trio.sleep(0.001)

    async with trio.open_nursery() as nursery:
        await nursery.start(refactorer.run)
        yield SimpleNamespace(
            refactorer=refactorer,
            good=RefactorRequest(stages=4),
            other=RefactorRequest(partition="3,9"),
            bad=RefactorRequest(stages=13),
            shape=lambda: (refactorer.epoch, refactorer.shape),
            hold=refactorer.hold,
            release=refactorer.release,
            until=until,
        )
        nursery.cancel_scope.cancel()


class GatedEngine(ModelledEngine):
    """Loads only while its gate is open."""

    def __init__(self, gate):
        super().__init__(MODEL)
        self._gate = gate

    async def load(self, spec, atoms, progress):
        await self._gate[0].wait()
        return await super().load(spec, atoms, progress)


@asynccontextmanager
async def pipeline_world():
    gate = [trio.Event()]
    gate[0].set()
    async with modelled_replicas(cuts=(6,), engine=lambda: GatedEngine(gate)) as made:
        await made.wait_ready()
        yield SimpleNamespace(
            refactorer=made.reshaper,
            source=made.replicas,
            good=RefactorRequest(stages=4),
            other=RefactorRequest(partition="2,4"),
            bad=RefactorRequest(stages=13),
            shape=lambda: [
                (stage["epoch"], stage["worker"], stage["first_atom"]) for stage in made.replicas.status().stages
            ],
            hold=lambda: gate.__setitem__(0, trio.Event()),
            release=lambda: gate[0].set(),  # noqa: PLW0108 - the event changes
            until=made.until,
        )
        gate[0].set()


@asynccontextmanager
async def remote_world():
    """A gateway's refactorer, whose leader has a pipeline."""
    async with pipeline_world() as world, cluster() as made:
        gateway = await made.gateway()
        await made.lead(1, source=world.source, refactorer=world.refactorer)
        await made.attached(gateway, 1)
        world.refactorer = gateway.refactorer
        yield world


WORLDS = [toy_world, pipeline_world, remote_world]


@pytest.fixture(params=WORLDS, ids=lambda world: world.__name__)
async def world(request, autojump_clock):
    async with request.param() as made:
        with trio.fail_after(30):
            yield made


async def events_of(world, request):
    async with aclosing(world.refactorer.refactor(request)) as events:
        return [event async for event in events]


async def first_event(world, request):
    async with aclosing(world.refactorer.refactor(request)) as events:
        return await anext(events)


async def test_progress_comes_first_and_then_one_report(world):
    *progress, report = await events_of(world, world.good)
    assert progress
    assert all(isinstance(event, RefactorProgress) for event in progress)
    assert isinstance(report, RefactorReport)
    assert report.strategy == world.good.strategy


async def test_phases_come_in_their_order_and_each_is_in_the_report(world):
    *progress, report = await events_of(world, world.good)
    places = [PHASES.index(event.phase) for event in progress]
    assert places == sorted(places)
    assert set(report.phase_ms) == {event.phase for event in progress}


async def test_bytes_done_only_grow_within_a_phase(world):
    *progress, _ = await events_of(world, world.good)
    for phase in ("load", "copy"):
        done = [event.done for event in progress if event.phase == phase]
        assert done == sorted(done)


async def test_every_event_is_of_the_epoch_after_the_present_one_which_then_serves(world):
    before = world.shape()
    first, *others = await events_of(world, world.good)
    assert {event.epoch for event in others} == {first.epoch}
    assert world.shape() != before
    assert (await events_of(world, world.other))[-1].epoch > first.epoch


async def test_what_cannot_be_is_refused_at_once_and_changes_nothing(world):
    before = world.shape()
    with pytest.raises(RefactorRefusedError) as refusal:
        await first_event(world, world.bad)
    assert str(refusal.value)
    assert world.shape() == before
    assert isinstance((await events_of(world, world.good))[-1], RefactorReport)


async def test_a_second_change_is_refused_while_one_runs_and_the_first_goes_on(world):
    world.hold()
    finals = []

    async def carry_out():
        finals.append((await events_of(world, world.good))[-1])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(carry_out)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(RefactorRefusedError):
            await first_event(world, world.other)
        world.release()
    assert isinstance(finals[0], RefactorReport)


async def test_leaving_early_does_not_break_the_change_off(world):
    before = world.shape()
    await first_event(world, world.good)
    await world.until(lambda: world.shape() != before)


async def test_a_cancelled_watcher_does_not_break_the_change_off(world):
    before = world.shape()
    world.hold()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(events_of, world, world.good)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    world.release()
    await world.until(lambda: world.shape() != before)


# --- what the toy can be told to do, for the tests of those who watch


@pytest.mark.parametrize("reason", ["aborted", "recovered"])
async def test_the_toy_fails_when_told_to_and_only_an_abort_leaves_the_old_stages(reason):
    async with toy_world() as world:
        before = world.shape()
        world.refactorer.fail_next(reason)
        *progress, failed = await events_of(world, world.good)
        assert isinstance(failed, RefactorFailed)
        assert failed.reason == reason
        assert (world.shape() == before) == (reason == "aborted")
        assert ("commit" in {event.phase for event in progress}) == (reason == "recovered")
