"""One seed, one order of tasks; and time that only passes when nobody can run."""

import pytest
import trio
from flexpipe.sim.virtual_time import run_virtual


async def wander(steps):
    """Tasks that get into each other's way; who went when."""
    went = []

    async def walker(name):
        for step in range(steps):
            await trio.lowlevel.checkpoint()
            went.append((name, step, trio.current_time()))
            if step % 3 == name % 3:
                await trio.sleep(0.5)

    async with trio.open_nursery() as nursery:
        for name in range(5):
            nursery.start_soon(walker, name)
    return went


def test_a_seed_decides_the_order_of_tasks():
    histories = {seed: run_virtual(lambda: wander(10), seed, 60) for seed in range(5)}
    assert all(run_virtual(lambda: wander(10), seed, 60) == histories[seed] for seed in range(5))
    assert len({tuple(history) for history in histories.values()}) == 5


def test_time_stands_still_while_a_task_can_run_and_jumps_to_the_next_deadline():
    async def main():
        for _ in range(1000):
            await trio.lowlevel.checkpoint()
        before = trio.current_time()
        await trio.sleep(3600)
        return before, trio.current_time()

    assert run_virtual(main, 1, 4000) == (0.0, 3600.0)


def test_a_run_in_which_everybody_waits_for_somebody_ends_in_an_error():
    with pytest.raises(trio.TooSlowError):
        run_virtual(trio.sleep_forever, 1, 1e6)
