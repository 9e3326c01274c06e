"""What every store of a cluster promises: SQLite's, etcd's (a real one) and the simulated one, which also loses answers."""

import itertools
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
from flexpipe.actors.cluster.cluster_store import (
    AlreadyLedError,
    Candidate,
    LeaderRecord,
    LeadershipLostError,
    StoreRefusedError,
    StoreUnavailableError,
)
from flexpipe.actors.cluster.etcd_client import EtcdSettings
from flexpipe.actors.cluster.etcd_store import EtcdStore
from flexpipe.actors.cluster.sqlite_store import SqliteStore
from flexpipe.actors.journal import JournalError, JournalRecord, fold
from flexpipe.actors.route import Route, StagePlacement
from flexpipe.sim.memory_store import MemoryStore, MemoryStoreServer, StoreFaults
from real_etcd import running_etcd

WAIT_S_MAX = 20.0
N1, N2 = Candidate("n1", "tcp://n1@127.0.0.1:1"), Candidate("n2", "tcp://n2@127.0.0.1:2")
CLUSTERS = itertools.count()


def planned(epoch):
    return JournalRecord("planned", epoch, Route(epoch, (StagePlacement(0, 0, 5, "n1/cpu:0", 1),)), "precopy")


def made(epoch):
    return [planned(epoch), JournalRecord("commit", epoch, kv_blocks=7), JournalRecord("released", epoch)]


@pytest.fixture(scope="module")
def etcd(tmp_path_factory):
    with running_etcd(tmp_path_factory.mktemp("etcd")) as (member,):
        yield member


@pytest.fixture(params=["sqlite", "etcd", "memory", "memory with lost answers"])
def stores(request, tmp_path):
    """Opens two stores of the same cluster, as two processes have them; SQLite's lets in one process, so there it is one twice."""
    server = []

    @asynccontextmanager
    async def opened():
        async with AsyncExitStack() as stack:
            match request.param:
                case "sqlite":
                    store = await stack.enter_async_context(SqliteStore.open(tmp_path))
                    yield store, store
                case "etcd":
                    member = request.getfixturevalue("etcd")
                    cluster = f"c{next(CLUSTERS)}" if not server else server[0]
                    server[:] = [cluster]
                    settings = EtcdSettings((member.endpoint,))
                    yield [await stack.enter_async_context(EtcdStore.open(settings, cluster)) for _ in range(2)]
                case _:
                    server[:] = server or [MemoryStoreServer()]
                    yield MemoryStore(server[0]), MemoryStore(server[0])

    if request.param == "memory with lost answers":
        return lossy(opened)
    return opened


def lossy(opened):
    @asynccontextmanager
    async def with_losses():
        async with opened() as stores:
            yield [Persistent(store, seed) for seed, store in enumerate(stores)]

    return with_losses


class Persistent:
    """A client whose answers get lost and that asks again, as whoever leads does; its journal asks again by itself."""

    def __init__(self, store, seed):
        self._store = MemoryStore(
            store.server, seed, StoreFaults(unanswered=0.3, delay_s_max=0.002, answer_s_max=0.002)
        )
        self.ttl_s = store.ttl_s

    async def claim(self, candidate):
        self._store.faults, faults = StoreFaults(), self._store.faults
        try:
            return PersistentClaim(await self._store.claim(candidate))
        finally:
            self._store.faults = faults

    async def watch(self, tell):
        while True:
            try:
                await self._store.watch(tell)
            except StoreUnavailableError:
                continue


class PersistentClaim:
    def __init__(self, claim):
        self._claim = claim
        self.record = claim.record
        self.journal = claim.journal

    async def _again(self, call):
        while True:
            try:
                return await call()
            except StoreUnavailableError:
                continue

    async def keep_alive(self):
        await self._again(self._claim.keep_alive)

    async def reclaim(self):
        await self._again(self._claim.reclaim)

    async def resign(self):
        await self._again(self._claim.resign)


@asynccontextmanager
async def watching(store):
    """What a watch tells, to be waited for."""
    told, heard = [], trio.Condition()

    async def until(record):
        with trio.fail_after(WAIT_S_MAX):
            async with heard:
                while not told or told[-1] != record:
                    await heard.wait()

    async def tell_in_turn(receive):
        async for record in receive:
            async with heard:
                told.append(record)
                heard.notify_all()

    send, receive = trio.open_memory_channel(100)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tell_in_turn, receive)
        nursery.start_soon(store.watch, send.send_nowait)
        yield until
        nursery.cancel_scope.cancel()


async def test_one_leads_and_the_next_one_is_refused_by_name(stores):
    async with stores() as (one, other):
        claim = await one.claim(N1)
        assert claim.record == LeaderRecord("n1", N1.address, claim.record.term)
        assert claim.record.term > 0
        with pytest.raises(AlreadyLedError, match="n1 leads already"):
            await other.claim(N2)
        await claim.keep_alive()
        await claim.reclaim()


async def test_who_resigned_can_be_followed_and_terms_ascend(stores):
    async with stores() as (one, other):
        first = await one.claim(N1)
        await first.resign()
        await first.resign()
        second = await other.claim(N2)
        assert second.record.term > first.record.term
        await first.resign()  # changes nothing for the second
        await second.keep_alive()
        for call in (first.keep_alive, first.reclaim):
            with pytest.raises(LeadershipLostError):
                await call()
        await second.resign()


async def test_who_resigned_cannot_come_back_in_its_old_term(stores):
    async with stores() as (one, _):
        claim = await one.claim(N1)
        await claim.resign()
        with pytest.raises(LeadershipLostError):
            await claim.reclaim()


async def test_terms_ascend_across_restarts(stores):
    terms = []
    for _ in range(3):
        async with stores() as (one, _):
            claim = await one.claim(N1)
            terms.append(claim.record.term)
            await claim.resign()
    assert terms == sorted(set(terms))


async def test_a_watch_tells_who_leads_and_who_follows(stores):
    async with stores() as (one, other), watching(other) as until:
        await until(None)
        first = await one.claim(N1)
        await until(first.record)
        await first.resign()
        await until(None)
        second = await other.claim(N2)
        await until(second.record)
        async with watching(one) as late:
            await late(second.record)
        await second.resign()


async def test_a_journal_is_read_by_who_leads_next(stores):
    async with stores() as (one, other):
        first = await one.claim(N1)
        async with first.journal("smollm2") as journal:
            for record in [*made(1), planned(2)]:
                await journal.write(record)
                await journal.write(record)
            assert await journal.read() == fold([*made(1), planned(2)])
        await first.resign()
        second = await other.claim(N2)
        async with second.journal("smollm2") as journal, second.journal("another") as another:
            assert await journal.read() == fold([*made(1), planned(2)])
            assert await another.read() == fold([])
            await journal.write(JournalRecord("aborted", 2, reason="its coordinator died"))
        await second.resign()
    async with stores() as (one, _):
        claim = await one.claim(N1)
        async with claim.journal("smollm2") as journal:
            assert await journal.read() == fold([*made(1), planned(2), JournalRecord("aborted", 2)])
        await claim.resign()


async def test_who_lost_its_claim_cannot_commit(stores):
    async with stores() as (one, other):
        first = await one.claim(N1)
        async with first.journal("smollm2") as deposed:
            await deposed.write(planned(1))
            await first.resign()
            with pytest.raises(JournalError, match="the journal of smollm2 cannot be written: "):
                await deposed.write(JournalRecord("commit", 1))
            second = await other.claim(N2)
            async with second.journal("smollm2") as journal:
                with pytest.raises(JournalError, match="cannot be written"):
                    await deposed.write(JournalRecord("commit", 1))
                assert await journal.read() == fold([planned(1)])
                await journal.write(JournalRecord("aborted", 1))
        await second.resign()


async def test_a_record_that_cannot_follow_is_refused_and_changes_nothing(stores):
    async with stores() as (one, _):
        claim = await one.claim(N1)
        async with claim.journal("smollm2") as journal:
            await journal.write(planned(2))
            for record in (planned(1), JournalRecord("commit", 1), JournalRecord("planned", 3)):
                with pytest.raises(JournalError):
                    await journal.write(record)
            assert await journal.read() == fold([planned(2)])
        await claim.resign()


async def test_two_tasks_that_write_one_journal_do_not_overwrite_each_other(stores):
    async with stores() as (one, _):
        claim = await one.claim(N1)
        async with claim.journal("smollm2") as here, claim.journal("smollm2") as there:
            assert await here.read() == await there.read() == fold([])
            await there.write(planned(2))
            with pytest.raises(JournalError, match="epoch 1 cannot be planned after epoch 2"):
                await here.write(planned(1))
            await here.write(planned(3))
            with pytest.raises(JournalError, match="epoch 2 cannot be committed"):
                await there.write(JournalRecord("commit", 2))
            assert await there.read() == fold([planned(2), planned(3)])
        await claim.resign()


@pytest.mark.parametrize("name", ["", "../leader", "a/b", "Ä", "x" * 64])
async def test_a_pipeline_whose_name_can_be_no_key_is_refused(stores, name):
    async with stores() as (one, _):
        claim = await one.claim(N1)
        with pytest.raises(StoreRefusedError, match="is no name for a pipeline"):
            async with claim.journal(name):
                pass
        await claim.resign()
