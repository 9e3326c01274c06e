"""Daemons that lead in turn, in virtual time over a store that fails: who leads, who stays, and who can decide."""

import random

import pytest
import trio
from candidates import Deputy, Scribe, commit, planned, until
from flexpipe.actors.cluster.cluster_store import StoreRefusedError
from flexpipe.actors.cluster.leader_source import LeaderAt
from flexpipe.actors.cluster.leader_watch import LeaderWatch
from flexpipe.actors.cluster.leadership import NotLeadingError
from flexpipe.actors.cluster.leadership_machine import Deed, LeadershipState
from flexpipe.actors.journal import JournalError, JournalRecord, fold
from flexpipe.sim.memory_store import MemoryStore, MemoryStoreServer, StoreFaults
from flexpipe.sim.virtual_time import run_virtual

LEADING, BLIND, FOLLOWING = LeadershipState.LEADING, LeadershipState.BLIND, LeadershipState.FOLLOWING
SLOW = StoreFaults(delay_s_max=0.05)


class House:
    """A store and two candidates; the first leads."""

    def __init__(self, seed):
        self.server = MemoryStoreServer()
        self.stores = [MemoryStore(self.server, seed + place, SLOW) for place in range(2)]
        self.first, self.second = (Deputy(f"n{place}", store) for place, store in enumerate(self.stores))
        self.scopes = {}

    async def live(self, story):
        async with trio.open_nursery() as nursery:
            for deputy in (self.first, self.second):
                nursery.start_soon(self._run, deputy)
                await until(lambda: self.server.standing() is not None)
            await self.first.until(LEADING)
            await self.second.until(FOLLOWING)
            await story(self)
            nursery.cancel_scope.cancel()

    async def _run(self, deputy):
        with trio.CancelScope() as self.scopes[deputy]:
            await deputy.leadership.run()

    def kill(self, deputy):
        self.scopes[deputy].cancel()


def lived(story, seed=0):
    async def main():
        house = House(seed)
        await house.live(story)

    run_virtual(main, seed, 600.0)


SEEDS = pytest.mark.parametrize("seed", range(20))


@SEEDS
def test_who_dies_is_followed_within_the_life_of_a_claim(seed):
    async def story(house):
        house.kill(house.first)
        died_s = trio.current_time()
        await house.second.until(LEADING)
        assert trio.current_time() - died_s < house.server.ttl_s + 0.5
        assert house.second.terms[0] > house.first.terms[0]

    lived(story, seed)


@SEEDS
def test_losing_the_store_for_a_minute_ends_no_duty_and_changes_no_leader(seed):
    async def story(house):
        (term,) = house.first.terms
        house.server.down = True
        await house.first.until(BLIND)
        lost_s, ticks = trio.current_time(), house.first.ticks
        house.first.leadership.check(Deed.SERVE)
        with pytest.raises(
            NotLeadingError, match=r"cannot begin a change: it is leading without its store .*did not answer"
        ):
            house.first.leadership.check(Deed.CHANGE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.first.journal.write, planned(1))  # waits
            await house.first.tick(600, seconds=70.0)
            assert house.server.shelves["smollm2"].records == []
            house.server.down = False
            await house.first.until(LEADING)
            house.first.leadership.check(Deed.CHANGE)
        assert house.server.shelves["smollm2"].records == [planned(1)]
        assert trio.current_time() - lost_s > 59.0
        assert house.first.ticks - ticks >= 600
        await house.first.tick(100)
        assert house.first.is_on_duty
        assert (house.first.terms, house.second.terms) == ([term], [])

    lived(story, seed)


@SEEDS
def test_a_leader_that_alone_is_cut_off_is_followed_and_steps_down_when_it_hears(seed):
    async def story(house):
        await house.first.journal.write(planned(1))
        house.stores[0].cut = True
        await house.first.until(BLIND)
        await house.second.until(LEADING)
        assert house.first.is_on_duty  # nobody can tell it
        async with trio.open_nursery() as nursery:
            refused = []

            async def commit_in_vain():
                with pytest.raises(JournalError, match="cannot be written: n0 does not lead in term 1 any more"):
                    await house.first.journal.write(commit(1))
                refused.append(True)

            nursery.start_soon(commit_in_vain)
            await house.second.tick(20)
            assert not refused  # it does not know
            house.stores[0].cut = False
            await until(lambda: refused)
        await house.first.until(FOLLOWING)
        assert not house.first.is_on_duty
        assert (await house.second.journal.read()).undecided is not None
        await house.second.journal.write(JournalRecord("aborted", 1))

    lived(story, seed)


def test_a_peer_that_knows_of_a_higher_term_ends_a_leadership_before_the_store_does():
    async def story(house):
        house.stores[0].cut = True
        await house.second.until(LEADING)
        house.first.leadership.heard(house.second.terms[0], "n3")
        await until(lambda: not house.first.is_on_duty)
        assert "n3 says that term" in house.first.logged("leadership_changed")[-2]["sentence"]

    lived(story)


def test_who_stops_gives_its_claim_back_and_the_next_one_need_not_wait():
    async def story(house):
        house.first.leadership.stop("the node is drained")
        began_s = trio.current_time()
        await house.second.until(LEADING)
        assert trio.current_time() - began_s < 1.0
        assert house.first.state is LeadershipState.RETIRED

    lived(story)


def test_who_follows_the_leader_hears_of_each_and_of_none_while_the_store_is_silent():
    async def story(house):
        watch = house.second.leadership.watch
        first = await watch.next_leader(None)
        assert first == LeaderAt("tcp://n0@127.0.0.1:1", 1)
        house.server.down = True
        await house.first.tick(100)
        assert watch.leader is not None
        house.server.down = False
        with trio.move_on_after(20.0) as scope:
            await watch.next_leader(first)
        assert scope.cancelled_caught
        house.kill(house.first)
        with trio.fail_after(20.0):
            second = await watch.next_leader(first)
        assert second.address == "tcp://n1@127.0.0.1:1"
        assert second.term > first.term
        assert [bool(line["sentence"]) for line in house.second.logged("store_silent")] == [True]
        assert len(house.second.logged("store_answers")) == 1

    lived(story)


def test_a_store_that_refuses_from_the_start_is_named_in_one_error():
    class Refusing:
        ttl_s = 2.0

        async def watch(self, tell):
            await trio.lowlevel.checkpoint()
            raise StoreRefusedError("wrong password")

    async def main():
        deputy = Deputy("n1", Refusing())
        with pytest.raises(StoreRefusedError, match="wrong password"):
            await deputy.leadership.run()
        with pytest.raises(StoreRefusedError, match="wrong password"):
            await LeaderWatch(Refusing(), deputy.leadership._log).run()

    run_virtual(main, 0, 10.0)


@pytest.mark.parametrize("seed", range(40))
def test_whatever_fails_only_who_leads_decides_and_in_the_end_somebody_leads(seed):
    chance = random.Random(seed)

    async def main():
        server = MemoryStoreServer()
        faults = StoreFaults(unanswered=0.1, delay_s_max=0.2)
        stores = [MemoryStore(server, 10 * seed + place, faults) for place in range(3)]
        scribes = [Scribe(f"n{place}", store) for place, store in enumerate(stores)]
        scopes = {}

        async def alive(scribe):
            while True:
                with trio.CancelScope() as scopes[scribe]:
                    await scribe.leadership.run()
                await trio.sleep(chance.uniform(0.0, 3.0))
                scribe.start_anew()

        async with trio.open_nursery() as nursery:
            for scribe in scribes:
                nursery.start_soon(alive, scribe)
            for _ in range(30):
                await trio.sleep(chance.uniform(0.0, 4.0))
                match chance.choice(["cut", "cut", "down", "expire", "kill"]):
                    case "cut":
                        store = chance.choice(stores)
                        store.cut = not store.cut
                    case "down":
                        server.down = not server.down
                    case "expire":
                        server.expire()
                    case "kill":
                        scopes[chance.choice(scribes)].cancel()
            server.down = False
            for store in stores:
                store.cut, store.faults = False, SLOW

            def settled():
                standing = server.standing()
                on_duty = [scribe for scribe in scribes if scribe.is_on_duty]
                states = sorted(scribe.state.value for scribe in scribes)
                is_theirs = standing is not None and [scribe.claims[-1] for scribe in on_duty] == [standing]
                return is_theirs and states == ["following", "following", "leading"]

            await until(settled, 60.0)
            (leader,) = [scribe for scribe in scribes if scribe.is_on_duty]
            await leader.tick(20, 60.0)
            nursery.cancel_scope.cancel()
        records = server.shelves["smollm2"].records
        assert fold(records).committed is not None  # and every record follows the one before
        terms = [int(record.strategy.split()[-1]) for record in records if record.kind == "planned"]
        assert terms == sorted(terms)
        assert len({term for scribe in scribes for term in scribe.terms}) == sum(len(s.terms) for s in scribes)
        assert commit(records[-1].epoch) in records or records[-1].kind == "planned"

    run_virtual(main, seed, 600.0)
