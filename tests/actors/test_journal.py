"""The journal: what histories may be, what they add up to, and that what was acknowledged survives whatever happens."""

import itertools
import json
import sqlite3
import subprocess
import sys
from contextlib import asynccontextmanager

import pytest
import trio
from flexpipe.actors import sqlite_journal
from flexpipe.actors.cluster.cluster_store import Candidate
from flexpipe.actors.cluster.etcd_client import EtcdSettings
from flexpipe.actors.cluster.etcd_store import EtcdStore
from flexpipe.actors.journal import NOTHING, Committed, JournalError, JournalRecord, JournalState, Planned, fold
from flexpipe.actors.route import Route, StagePlacement
from flexpipe.actors.sqlite_journal import SqliteJournal
from flexpipe.sim.memory_journal import MemoryJournal
from flexpipe.sim.memory_store import MemoryStore, MemoryStoreServer
from real_etcd import running_etcd

CLUSTERS = itertools.count()


def route(epoch, workers=(0, 1)):
    return Route(epoch, tuple(StagePlacement(w, 5 * i, 5 * i + 5, f"cpu:{w}", 1) for i, w in enumerate(workers)))


def planned(epoch, workers=(0, 1), strategy="precopy"):
    return JournalRecord("planned", epoch, route(epoch, workers), strategy)


def commit(epoch, kv_blocks=7):
    return JournalRecord("commit", epoch, kv_blocks=kv_blocks)


def released(epoch):
    return JournalRecord("released", epoch)


def aborted(epoch, reason="a worker was lost"):
    return JournalRecord("aborted", epoch, reason=reason)


def made(epoch, workers=(0, 1)):
    """All records of one epoch that came off."""
    return [planned(epoch, workers), commit(epoch), released(epoch)]


def decided(epoch, workers=(0, 1)):
    return Committed(route(epoch, workers), "precopy", 7)


@pytest.fixture(scope="module")
def etcd(tmp_path_factory):
    with running_etcd(tmp_path_factory.mktemp("etcd")) as (member,):
        yield member


@pytest.fixture(params=["sqlite", "etcd", "memory", "memory store"])
def journals(request, tmp_path):
    """Opens the same journal again and again; in a shared store each time by another leader."""
    memory = MemoryJournal()
    server = MemoryStoreServer()
    cluster = f"c{next(CLUSTERS)}"

    @asynccontextmanager
    async def opened():
        match request.param:
            case "memory":
                yield memory
            case "sqlite":
                async with SqliteJournal.open(tmp_path / "journal.sqlite") as journal:
                    yield journal
            case "memory store":
                async with led(MemoryStore(server)) as journal:
                    yield journal
            case "etcd":
                settings = EtcdSettings((request.getfixturevalue("etcd").endpoint,))
                async with EtcdStore.open(settings, cluster) as store, led(store) as journal:
                    yield journal

    return opened


@asynccontextmanager
async def led(store):
    claim = await store.claim(Candidate("n1", "tcp://127.0.0.1:1"))
    async with claim.journal("smollm2") as journal:
        yield journal
    await claim.resign()


async def write_all(journal, records):
    for record in records:
        await journal.write(record)


HISTORIES = {
    "nothing": ([], NOTHING),
    "a plan": (
        [planned(1)],
        JournalState(undecided=Planned(route(1), "precopy"), highest_epoch=1, next_worker=2),
    ),
    "a decision": (
        [planned(1), commit(1)],
        JournalState(committed=decided(1), released=False, highest_epoch=1, next_worker=2),
    ),
    "a decision carried out": (made(1), JournalState(committed=decided(1), highest_epoch=1, next_worker=2)),
    "a second plan": (
        [*made(1), planned(2, (0, 5, 3))],
        JournalState(
            committed=decided(1), undecided=Planned(route(2, (0, 5, 3)), "precopy"), highest_epoch=2, next_worker=6
        ),
    ),
    "a second decision": (
        [*made(1), planned(2, (0, 2)), commit(2)],
        JournalState(committed=decided(2, (0, 2)), before=decided(1), released=False, highest_epoch=2, next_worker=3),
    ),
    "a plan given up": (
        [*made(1), planned(2, (0, 5)), aborted(2)],
        JournalState(committed=decided(1), highest_epoch=2, next_worker=6),
    ),
    "a plan that another one replaced": (
        [*made(1), planned(2), planned(3), aborted(2)],
        JournalState(committed=decided(1), undecided=Planned(route(3), "precopy"), highest_epoch=3, next_worker=2),
    ),
    "a plan given up that was never written": (
        [*made(1), aborted(2)],
        JournalState(committed=decided(1), highest_epoch=2, next_worker=2),
    ),
    "a recovery before the old was let go of": (
        [planned(1), commit(1), planned(2, (0, 2)), commit(2), released(2)],
        JournalState(committed=decided(2, (0, 2)), highest_epoch=2, next_worker=3),
    ),
}


@pytest.mark.parametrize("name", HISTORIES)
async def test_a_coordinator_that_starts_anew_reads_where_things_stand(journals, name):
    records, state = HISTORIES[name]
    async with journals() as journal:
        await write_all(journal, records)
        assert await journal.read() == state
    async with journals() as journal:
        assert await journal.read() == state


@pytest.mark.parametrize("name", HISTORIES)
async def test_a_record_that_is_written_again_changes_nothing(journals, name):
    records, state = HISTORIES[name]
    async with journals() as journal:
        for record in records:
            await write_all(journal, [record, record])
        await write_all(journal, records)
        assert await journal.read() == state


@pytest.mark.parametrize(
    ("before", "record", "sentence"),
    [
        ([], commit(1), "epoch 1 cannot be committed: it was never planned"),
        ([planned(1), aborted(1)], commit(1), "epoch 1 cannot be committed: .* or its plan was given up"),
        ([planned(1), planned(2)], commit(1), "epoch 1 cannot be committed"),
        (made(1), commit(1, kv_blocks=8), "epoch 1 cannot be committed"),
        (made(2), planned(1), "epoch 1 cannot be planned after epoch 2: epochs only ascend"),
        ([planned(1)], planned(1, (3, 4)), "epoch 1 cannot be planned after epoch 1"),
        ([aborted(1)], planned(1), "epoch 1 cannot be planned after epoch 1"),
        ([], JournalRecord("planned", 1), "the plan of epoch 1 has no route of that epoch"),
        ([], JournalRecord("planned", 1, route(2)), "the plan of epoch 1 has no route of that epoch"),
        ([planned(1)], released(1), "epoch 1 cannot be released"),
        ([*made(1), planned(2)], released(2), "epoch 2 cannot be released: it is not the one"),
        ([planned(1), commit(1)], aborted(1), "epoch 1 cannot be aborted: epoch 1 is committed"),
    ],
)
async def test_a_record_that_cannot_follow_is_refused_and_changes_nothing(journals, before, record, sentence):
    async with journals() as journal:
        await write_all(journal, before)
        with pytest.raises(JournalError, match=sentence):
            await journal.write(record)
        assert await journal.read() == fold(before)
    async with journals() as journal:
        assert await journal.read() == fold(before)


async def test_a_write_that_is_cancelled_has_happened_whole_or_not_at_all(journals):
    async with journals() as journal:
        with trio.CancelScope() as scope:
            scope.cancel()
            await journal.write(planned(1))
        assert await journal.read() in (NOTHING, fold([planned(1)]))
        await write_all(journal, made(2))
        assert (await journal.read()).committed == decided(2)


# --- the simulated disk ---------------------------------------------------------------------------------------------


async def test_who_is_cancelled_while_the_disk_writes_learns_that_it_was_written(tmp_path):
    written = []
    async with SqliteJournal.open(tmp_path / "journal.sqlite") as journal:
        with trio.CancelScope() as scope:

            def cancel_the_writer(statement):
                if statement.startswith("INSERT INTO record"):
                    trio.from_thread.run_sync(scope.cancel)

            journal._database.set_trace_callback(cancel_the_writer)
            await journal.write(planned(1))
            written.append(planned(1))  # nothing was raised: who wrote can act on it
            await trio.lowlevel.checkpoint()
            written.append("more")
        assert scope.cancelled_caught
        assert written == [planned(1)]
        journal._database.set_trace_callback(None)
        state = await journal.read()
        assert state.undecided == Planned(route(1), "precopy")
        await journal.write(planned(1))  # again: nothing
        assert await journal.read() == state
    async with SqliteJournal.open(tmp_path / "journal.sqlite") as journal:
        assert await journal.read() == state


async def test_the_simulated_disk_can_be_full_for_one_record():
    journal = MemoryJournal()
    journal.fail_next("commit")
    await journal.write(planned(1))
    with pytest.raises(JournalError, match="disk is full"):
        await journal.write(commit(1))
    assert await journal.read() == fold([planned(1)])
    await journal.write(commit(1))
    assert await journal.read() == fold([planned(1), commit(1)])


# --- the real one ---------------------------------------------------------------------------------------------------


async def fill(journal, acknowledged):
    for epoch in range(1, 1000):
        for record in made(epoch, range(20)):
            await journal.write(record)
            acknowledged.append(record)


async def test_a_full_disk_loses_nothing_and_goes_on_when_there_is_room(tmp_path):
    acknowledged = []
    async with SqliteJournal.open(tmp_path / "journal.sqlite", pages_max=12) as journal:
        with pytest.raises(JournalError, match="cannot be written: the disk is full; make room and try again"):
            await fill(journal, acknowledged)
        assert len(acknowledged) > 10
        assert await journal.read() == fold(acknowledged)
    async with SqliteJournal.open(tmp_path / "journal.sqlite") as journal:
        assert await journal.read() == fold(acknowledged)
        await write_all(journal, made(1000))
        assert (await journal.read()).committed == decided(1000)


async def test_the_file_is_bounded_and_forgets_no_state(tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite_journal, "EPOCHS_KEPT_MAX", 4)
    records = [*made(1), planned(2, (0, 99)), aborted(2), *made(3)]
    records += [record for epoch in range(4, 30) for record in (planned(epoch), aborted(epoch))]
    async with SqliteJournal.open(tmp_path / "journal.sqlite") as journal:
        for count, record in enumerate(records, start=1):
            await journal.write(record)
            assert await journal.read() == fold(records[:count])
    database = sqlite3.connect(tmp_path / "journal.sqlite")
    kept = {epoch for (epoch,) in database.execute("SELECT epoch FROM record")}
    database.close()
    assert kept == {26, 27, 28, 29}
    async with SqliteJournal.open(tmp_path / "journal.sqlite") as journal:
        assert await journal.read() == fold(records)
        assert (await journal.read()).next_worker == 100
        await journal.write(released(3))
        assert await journal.read() == fold(records)


async def test_a_second_process_is_refused_while_the_first_lives(tmp_path):
    path = tmp_path / "journal.sqlite"
    script = (
        "import sys, trio\n"
        "from flexpipe.actors.journal import JournalError\n"
        "from flexpipe.actors.sqlite_journal import SqliteJournal\n"
        "async def main():\n"
        "    try:\n"
        "        async with SqliteJournal.open(sys.argv[1]): print('opened')\n"
        "    except JournalError as error: print(error)\n"
        "trio.run(main)\n"
    )

    async def another():
        child = await trio.run_process([sys.executable, "-c", script, str(path)], capture_stdout=True)
        return child.stdout.decode().strip()

    async with SqliteJournal.open(path) as journal:
        said = await another()
        assert (
            said
            == f"the journal {path} cannot be opened: another process uses it; stop that server, or use another folder"
        )
        await journal.write(planned(1))
    assert await another() == "opened"


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda path: path.write_bytes(b"this is a letter, not a database. " * 40), "it is another kind of file"),
        (lambda path: path.mkdir(), "its folder does not exist or may not be written to"),
        (lambda path: change(path, "PRAGMA user_version = 99"), "has schema version 99, this build reads 1"),
        (lambda path: change(path, "UPDATE record SET body = x'00'"), "a record is not of this version"),
        (lambda path: change(path, "DELETE FROM record WHERE place = 1"), "epoch 1 cannot be committed"),
    ],
)
async def test_a_file_that_is_no_journal_is_refused_in_one_sentence(tmp_path, spoil, sentence):
    path = tmp_path / "journal.sqlite"
    async with SqliteJournal.open(path) as journal:
        await write_all(journal, made(1))
    path.rename(tmp_path / "good")
    path.write_bytes((tmp_path / "good").read_bytes())
    if sentence.startswith("its folder"):
        path.unlink()
    spoil(path)
    with pytest.raises(JournalError, match=sentence):
        async with SqliteJournal.open(path):
            pass


def change(path, statement):
    database = sqlite3.connect(path)
    with database:
        database.execute(statement)
    database.close()


WRITER = """
import json, resource, signal, sys, trio
from flexpipe.actors.journal import JournalError, JournalRecord
from flexpipe.actors.route import Route, StagePlacement
from flexpipe.actors.sqlite_journal import SqliteJournal

async def main():
    async with SqliteJournal.open(sys.argv[1]) as journal:
        epoch = (await journal.read()).highest_epoch
        while True:
            epoch += 1
            route = Route(epoch, (StagePlacement(epoch, 0, 5, "cpu:0", 1),))
            for kind in ("planned", "commit", "released"):
                try:
                    await journal.write(JournalRecord(kind, epoch, route if kind == "planned" else None))
                except JournalError as error:
                    print(json.dumps(["failed", str(error)]), flush=True)
                    return
                print(json.dumps([kind, epoch]), flush=True)

if len(sys.argv) > 2:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
trio.run(main)
"""
"""Writes records and says so after each, for ever, or until its files may not grow any more."""


def told_by_writer(path, *options, kill_after=None):
    """What a writer in a process of its own acknowledged before it was killed, or ended by itself."""
    command = [sys.executable, "-c", WRITER, str(path), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        lines = []
        for line in child.stdout:
            lines.append(line)
            if len(lines) == kill_after:
                child.kill()
    return [json.loads(line) for line in lines if line.endswith("\n")]


def holds(state, kind, epoch):
    """Whether a journal in this state has seen that record of an epoch that was made like all others."""
    if state.highest_epoch > epoch:
        return True
    reached = {"planned": state.undecided or state.committed, "commit": state.committed, "released": state.committed}
    made_it = reached[kind] is not None and reached[kind].epoch == epoch
    return made_it and (kind != "released" or state.released)


@pytest.mark.slow
async def test_killing_the_process_loses_no_acknowledged_record(tmp_path):
    path = tmp_path / "journal.sqlite"
    for kill_after in (1, 50, 101):
        kind, epoch = (await trio.to_thread.run_sync(lambda count=kill_after: told_by_writer(path, kill_after=count)))[
            -1
        ]
        async with SqliteJournal.open(path) as journal:
            assert holds(await journal.read(), kind, epoch)


@pytest.mark.slow
async def test_a_disk_that_refuses_to_grow_loses_no_acknowledged_record(tmp_path):
    path = tmp_path / "journal.sqlite"
    told = await trio.to_thread.run_sync(lambda: told_by_writer(path, "200000"))
    *_, (kind, epoch), (failed, sentence) = told
    assert failed == "failed"
    assert "cannot be written: the disk" in sentence
    async with SqliteJournal.open(path) as journal:
        state = await journal.read()
        assert holds(state, kind, epoch)
        assert state.highest_epoch <= epoch + 1
        await write_all(journal, made(epoch + 2))
