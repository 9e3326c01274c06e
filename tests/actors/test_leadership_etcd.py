"""Daemons that lead in turn over a real etcd that is stopped, killed, and loses its own leader."""

from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
from candidates import Deputy, commit, planned, until
from flexpipe.actors.cluster.cluster_store import Candidate
from flexpipe.actors.cluster.etcd_client import EtcdSettings
from flexpipe.actors.cluster.etcd_store import EtcdStore
from flexpipe.actors.cluster.leadership import NotLeadingError
from flexpipe.actors.cluster.leadership_machine import Deed, LeadershipState
from flexpipe.actors.journal import JournalError, JournalRecord, fold
from real_etcd import running_etcd

LEADING, BLIND, FOLLOWING = LeadershipState.LEADING, LeadershipState.BLIND, LeadershipState.FOLLOWING
pytestmark = pytest.mark.slow


@pytest.fixture
def etcd(tmp_path):
    with running_etcd(tmp_path) as (member,):
        yield member


@pytest.fixture
def three(tmp_path):
    with running_etcd(tmp_path, members=3) as members:
        yield members


@asynccontextmanager
async def deputies(*endpoints):
    """A daemon for each tuple of endpoints; the first leads, the others follow. Each can be killed by its scope."""
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        daemons = []
        for place, known in enumerate(endpoints):
            store = await stack.enter_async_context(EtcdStore.open(EtcdSettings(known), "test"))
            deputy = Deputy(f"n{place}", store)
            deputy.scope = trio.CancelScope()
            nursery.start_soon(run, deputy)
            await deputy.until(FOLLOWING if daemons else LEADING)
            await until(lambda deputy=deputy: deputy.leadership.watch.leader is not None)
            daemons.append(deputy)
        yield daemons
        nursery.cancel_scope.cancel()


async def run(deputy):
    with deputy.scope:
        await deputy.leadership.run()


async def test_a_daemon_that_dies_is_followed_and_what_it_left_under_way_cannot_be_committed(etcd):
    known = (etcd.endpoint,)
    async with deputies(known, known) as (first, second):
        await first.journal.write(planned(1))
        deposed = first.journal
        first.scope.cancel()
        await second.until(LEADING)
        assert second.terms[0] > first.terms[0]
        with pytest.raises(JournalError, match="cannot be written: this coordinator does not lead any more"):
            await deposed.write(commit(1))
        assert await second.journal.read() == fold([planned(1)])
        await second.journal.write(JournalRecord("aborted", 1))
        with pytest.raises(JournalError):
            await deposed.write(commit(1))
        assert (await second.journal.read()).committed is None


async def test_an_etcd_that_hangs_longer_than_a_claim_lives_ends_no_duty_and_changes_no_leader(etcd):
    known = (etcd.endpoint,)
    async with deputies(known, known) as (first, second):
        (term,) = first.terms
        etcd.stop()
        await first.until(BLIND)
        with pytest.raises(NotLeadingError, match="begin a change"):
            first.leadership.check(Deed.CHANGE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.journal.write, planned(1))
            await first.tick(40)  # four seconds of serving; a claim lives for two
            assert first.state is BLIND
            etcd.go_on()
            await first.until(LEADING)
        # The write that waited has happened, once.
        assert await first.journal.read() == fold([planned(1)])
        await first.journal.write(commit(1))
        await first.tick(30)
        assert first.is_on_duty
        assert (first.terms, second.terms) == ([term], [])


async def test_an_etcd_that_is_killed_and_started_again_ends_no_duty_and_changes_no_leader(etcd):
    known = (etcd.endpoint,)
    async with deputies(known, known) as (first, second):
        (term,) = first.terms
        await first.journal.write(planned(1))
        etcd.kill()
        await first.until(BLIND)
        await first.tick(30)
        etcd.start()
        await first.until(LEADING)
        await first.journal.write(commit(1))
        await first.tick(30)
        assert (first.terms, second.terms) == ([term], [])
        second_name = await second.leadership.watch.next_leader(None)
        assert second_name.term == term


async def test_the_loss_of_etcds_own_leader_changes_nothing(three):
    known = tuple(member.endpoint for member in three)
    async with deputies(known, known) as (first, second):
        (term,) = first.terms
        await first.journal.write(planned(1))
        (leader,) = [member for member in three if member.leads()]
        leader.kill()
        await first.journal.write(commit(1))
        await first.tick(40)
        await first.until(LEADING)
        assert (first.terms, second.terms) == ([term], [])
        assert await first.journal.read() == fold([planned(1), commit(1)])
        leader.start()
        first.scope.cancel()
        await second.until(LEADING)
        assert await second.journal.read() == fold([planned(1), commit(1)])


async def test_a_leader_whose_part_of_etcd_hangs_is_followed_and_commits_nothing_when_it_goes_on(three):
    cut_off, *others = three
    async with deputies((cut_off.endpoint,), tuple(member.endpoint for member in others)) as (first, second):
        await first.journal.write(planned(1))
        cut_off.stop()
        await first.until(BLIND)
        refused = []

        async def commit_in_vain():
            with pytest.raises(JournalError, match="cannot be written"):
                await first.journal.write(commit(1))
            refused.append(True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(commit_in_vain)
            await second.until(LEADING)
            assert first.is_on_duty  # it cannot know
            assert await second.journal.read() == fold([planned(1)])
            cut_off.go_on()
            await until(lambda: refused)
        await first.until(FOLLOWING)
        assert not first.is_on_duty
        await second.journal.write(JournalRecord("aborted", 1))
        assert (await second.journal.read()).committed is None
        await until(lambda: first.leadership.watch.leader.name == "n1")


async def test_a_leader_that_was_suspended_itself_goes_on_in_its_term_where_nobody_led_since(etcd):
    async with EtcdStore.open(EtcdSettings((etcd.endpoint,)), "test") as store:
        claim = await store.claim(Candidate("n1", "tcp://127.0.0.1:1"))
        seen = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.watch, seen.append)
            await until(lambda: seen and seen[-1] is None)  # nobody keeps it alive
            async with claim.journal("smollm2") as journal, trio.open_nursery() as waiting:
                waiting.start_soon(journal.write, planned(1))
                await claim.reclaim()
            await until(lambda: seen[-1] == claim.record)
            await claim.keep_alive()
            nursery.cancel_scope.cancel()
