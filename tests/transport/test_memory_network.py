"""The in-memory network's faults, in virtual time: each ends as a real link would, and one seed gives one history."""

from contextlib import asynccontextmanager

import pytest
import trio
from flexpipe.transport.interface import FrameError, LinkLimits, PeerLostError
from flexpipe.transport.memory import MemoryNetwork
from flexpipe.transport.memory_wire import Weather

LIMITS = LinkLimits(heartbeat_interval_s=0.25, silence_s_max=1.5)
ROUGH = Weather(delay_s_min=0.01, delay_s_max=0.2, loss_probability=0.3, retransmit_s=0.3)


@asynccontextmanager
async def two_ends(network):
    async with network.open("a") as left, network.open("b") as right:
        bound = await left.bind("memory://x", name="bound", limits=LIMITS)
        connected = await right.connect("memory://x", name="connected", limits=LIMITS)
        await bound.send([b"up"])
        await connected.receive()
        yield bound, connected


async def arrivals(seed):
    """When each of 50 messages arrived, seconds."""
    times = []

    async def send_all(link):
        for number in range(50):
            await link.send([bytes([number])])

    async with two_ends(MemoryNetwork(seed, ROUGH)) as (bound, connected), trio.open_nursery() as nursery:
        start = trio.current_time()
        nursery.start_soon(send_all, bound)
        for number in range(50):
            assert (await connected.receive())[0][0] == number
            times.append(round(trio.current_time() - start, 6))
    return times


async def test_one_seed_gives_one_history_and_another_seed_another(autojump_clock):
    first, again, other = await arrivals(1), await arrivals(1), await arrivals(2)
    assert first == again
    assert first != other


async def test_loss_shows_as_delay_and_never_as_a_gap(autojump_clock):
    times = await arrivals(3)
    assert times == sorted(times)
    assert times[-1] >= ROUGH.retransmit_s


async def test_a_cut_longer_than_the_limit_of_silence_loses_both_ends(autojump_clock):
    network = MemoryNetwork(seed=1)
    async with two_ends(network) as (bound, connected):
        network.cut("a", "b")
        network.cut("b", "a")
        start = trio.current_time()
        for link in (bound, connected):
            with pytest.raises(PeerLostError, match="nothing was heard"):
                await link.receive()
        assert LIMITS.silence_s_max - LIMITS.heartbeat_interval_s <= trio.current_time() - start <= LIMITS.silence_s_max


async def test_a_cut_that_heals_in_time_only_delays(autojump_clock):
    network = MemoryNetwork(seed=1)
    async with two_ends(network) as (bound, connected):
        network.cut("a", "b")
        await bound.send([b"held back"])
        with trio.move_on_after(1) as scope:
            await connected.receive()
        assert scope.cancelled_caught
        network.heal("a", "b")
        assert bytes((await connected.receive())[0]) == b"held back"


async def test_a_crash_is_noticed_at_once_after_what_was_under_way(autojump_clock):
    network = MemoryNetwork(seed=1, weather=Weather(delay_s_min=0.01, delay_s_max=0.05))
    async with two_ends(network) as (bound, connected):
        await bound.send([b"last words"])
        network.crash("a")
        start = trio.current_time()
        assert bytes((await connected.receive())[0]) == b"last words"
        with pytest.raises(PeerLostError, match="connection ended"):
            await connected.receive()
        assert trio.current_time() - start <= 0.1


async def test_a_crash_behind_a_cut_is_noticed_by_silence_only(autojump_clock):
    network = MemoryNetwork(seed=1)
    async with two_ends(network) as (_, connected):
        network.cut("a", "b")
        network.crash("a")
        with pytest.raises(PeerLostError, match="nothing was heard"):
            await connected.receive()


async def test_a_damaged_frame_is_a_frame_error_after_the_sound_ones(autojump_clock):
    network = MemoryNetwork(seed=1)
    async with two_ends(network) as (bound, connected):
        await bound.send([b"sound"])
        network.corrupt_next("a", "b")
        await bound.send([b"damaged"])
        assert bytes((await connected.receive())[0]) == b"sound"
        with pytest.raises(FrameError, match="not one of ours"):
            await connected.receive()
        with pytest.raises(PeerLostError):
            await bound.receive()


async def test_an_idle_link_stays_up_for_ten_minutes(autojump_clock):
    network = MemoryNetwork(seed=1, weather=Weather(delay_s_min=0.01, delay_s_max=0.2))
    async with two_ends(network) as (bound, connected):
        with trio.move_on_after(600):
            await connected.receive()
        await bound.send([b"still here"])
        assert bytes((await connected.receive())[0]) == b"still here"


@pytest.mark.parametrize(
    "weather",
    [{"delay_s_min": -1}, {"delay_s_min": 2, "delay_s_max": 1}, {"loss_probability": 1}, {"retransmit_s": -1}],
)
def test_impossible_weather_is_refused(weather):
    with pytest.raises(ValueError, match="impossible weather"):
        Weather(**weather)


async def test_a_sender_whose_peer_died_waits_for_the_news_and_does_not_spin_on_what_it_left_unread(autojump_clock):
    network = MemoryNetwork(seed=1)
    async with two_ends(network) as (bound, connected):
        await connected.send([b"unread"])
        await trio.sleep(0.01)
        network.weather = Weather(delay_s_min=0.2, delay_s_max=0.2)  # the news take their time
        network.crash("b")

        async def send():
            with pytest.raises(PeerLostError):
                await bound.send([b"late"])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            for _ in range(100):
                await trio.lowlevel.checkpoint()
            assert trio.lowlevel.current_statistics().tasks_runnable == 0
