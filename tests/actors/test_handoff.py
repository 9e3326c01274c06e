"""Handoffs between workers, with real links: pages cross, refusals are mended, rests and losses and aborts end as they should."""

import io
import json
from contextlib import AsyncExitStack, asynccontextmanager

import numpy as np
import pytest
import trio
from flexpipe.actors.event_log import EventLog
from flexpipe.actors.handoff import Handoff
from flexpipe.actors.handoff_machine import HandoffLimits, HandoffState
from flexpipe.actors.layer_pages import LayerPages
from flexpipe.actors.link_place import LinkPlace, Surroundings
from flexpipe.actors.messages import (
    TO_ACQUIRER,
    TO_DONOR,
    Open,
    PageRun,
    PagesEnd,
    PagesRefused,
    PagesWelcome,
    Transfer,
)
from flexpipe.actors.page_ledger import PageLedger
from flexpipe.runtime.interface import EngineError
from flexpipe.runtime.page_checksum import page_checksum
from flexpipe.transport.memory import MemoryNetwork
from flexpipe.transport.zmq_link import ZmqTransport
from page_store import PAGE_BYTES, PageStore, layer_pages, live_bits, plan_of
from trio.testing import wait_all_tasks_blocked

EPOCH = 4
BLOCKS = 32
DONOR, ACQUIRER, SECOND = 1, 2, 3
LAYERS = (0, 1, 2)


class SlowStore(PageStore):
    """A page store whose copies take time, or fail; ``spoilt`` gathers give a wrong checksum."""

    def __init__(self, layers, garbage):
        super().__init__(layers, BLOCKS, garbage)
        self.copy_s = 0.0
        self.spoilt = 0
        self.error = None
        self.gathered_at = []

    async def gather_pages(self, pages, out):
        await self.copy()
        self.gathered_at.append(trio.current_time())
        checksum = await super().gather_pages(pages, out)
        self.spoilt -= 1
        return checksum ^ (self.spoilt >= 0)

    async def scatter_pages(self, pages, data, checksum):
        await self.copy()
        return await super().scatter_pages(pages, data, checksum)

    async def copy(self):
        if self.error is not None:
            raise self.error
        with trio.CancelScope(shield=True):  # as a thread would
            await trio.sleep(self.copy_s)


class Worker:
    """One worker of one epoch: its pages, its ledger, its handoff and what that told."""

    def __init__(self, number, opened, limits, layers=LAYERS):
        self.store = SlowStore(layers, garbage=number)
        self.ledger = PageLedger()
        self.log = io.StringIO()
        self.voted, self.across, self.failed = trio.Event(), trio.Event(), trio.Event()
        self.progress, self.sentence, self.copied = [], "", None
        self.handoff = Handoff(
            opened, number, self.store, self.ledger, self, EventLog(self.log, process=f"worker {number}"), limits
        )
        self.scope = trio.CancelScope()
        self.ended = trio.Event()

    async def run(self, transport):
        """As `stage` runs it."""
        with self.scope:
            await self.handoff.open(Surroundings(transport))
            await self.handoff.run()
        self.ended.set()

    def close(self):
        self.scope.cancel()
        self.handoff.close()

    def step(self, *rows):
        plan = plan_of(0, rows)
        self.ledger.begin_step(plan)
        self.store.write(plan)
        self.ledger.end_step(plan)

    def logged(self, event):
        return [line for line in map(json.loads, self.log.getvalue().splitlines()) if line["event"] == event]

    async def handoff_voted(self, epoch):
        assert epoch == EPOCH
        self.voted.set()

    async def handoff_progressed(self, epoch, sent_bytes, remaining_bytes):
        assert epoch == EPOCH
        self.progress.append((sent_bytes, remaining_bytes))

    async def handoff_across(self, epoch, copied):
        assert epoch == EPOCH
        self.copied = copied
        self.across.set()

    async def handoff_failed(self, epoch, sentence):
        assert epoch == EPOCH
        self.sentence = sentence
        self.failed.set()


class Handover:
    """One donor, one acquirer or two, and the network between them."""

    def __init__(self, nursery, transports, addresses, network, *, precopy, limits, donors):
        self.transfers = tuple(
            Transfer(DONOR, acquirer, LinkPlace(address), LAYERS, (PAGE_BYTES,) * len(LAYERS))
            for acquirer, address in addresses.items()
        )
        opened = Open(EPOCH, BLOCKS, None, None, self.transfers, precopy, live_bits(range(BLOCKS), BLOCKS), donors)
        self.network = network
        self.workers = {number: Worker(number, opened, limits) for number in (DONOR, *addresses)}
        self.donor, self.acquirer = self.workers[DONOR], self.workers[ACQUIRER]
        self._nursery, self._transports = nursery, transports

    def start(self, *numbers):
        for number in numbers or self.workers:
            self._nursery.start_soon(self.workers[number].run, self._transports[number])

    async def voted(self):
        for worker in self.workers.values():
            await worker.voted.wait()

    async def cut(self, live):
        for worker in self.workers.values():
            await worker.handoff.cut(live_bits(live, BLOCKS))

    async def across(self):
        for worker in self.workers.values():
            await worker.across.wait()

    def check(self, blocks, tokens):
        """Every acquirer has what the donor has of a request with these blocks."""
        for number, worker in self.workers.items():
            for layer in LAYERS if number != DONOR else ():
                assert worker.store.tokens(layer, blocks, tokens) == self.donor.store.tokens(layer, blocks, tokens)


@asynccontextmanager
async def handover(kind, folder, *, precopy=True, limits=HandoffLimits(), acquirers=(ACQUIRER,), donors=1):
    """Yield a `Handover` whose workers were not started; afterwards everything ends."""
    network = MemoryNetwork(1) if kind == "memory" else None
    where = "memory://pages" if kind == "memory" else f"ipc://{folder}/pages"
    addresses = {number: f"{where}-{number}" for number in acquirers}
    async with AsyncExitStack() as stack:
        transports = {}
        for number in (DONOR, *acquirers):
            opening = network.open(f"worker {number}") if network is not None else ZmqTransport.open()
            transports[number] = await stack.enter_async_context(opening)
        async with trio.open_nursery() as nursery:
            made = Handover(nursery, transports, addresses, network, precopy=precopy, limits=limits, donors=donors)
            yield made
            for worker in made.workers.values():
                worker.close()


@pytest.fixture(params=["memory", "ipc"])
def kind(request):
    return request.param


SMALL_RUNS = HandoffLimits(run_bytes_max=2 * PAGE_BYTES, remaining_bytes_max=0)

# --- pages cross --------------------------------------------------------------------------------------------------------


async def test_full_blocks_cross_before_the_cut_and_the_rest_after_it(kind, tmp_path):
    async with handover(kind, tmp_path, limits=SMALL_RUNS) as made:
        made.donor.step((1, 0, 70, [9, 3, 4, 0, 7]))
        made.start()
        await made.voted()
        assert len(made.donor.store.gathered_at) == 4 * 3 / 2
        for position in range(70, 90):
            made.donor.step((1, position, 1, [9, 3, 4, 0, 7, 11]))
            await made.donor.handoff.stepped()
        await made.cut([9, 3, 4, 0, 7, 11])
        await made.across()
        made.check([9, 3, 4, 0, 7, 11], 90)
        assert made.acquirer.ledger.filled[[9, 3, 4, 0, 7, 11]].tolist() == [16] * 5 + [10]
        copied = made.donor.copied
        assert copied.sent_bytes == 6 * 3 * PAGE_BYTES
        assert 3 * PAGE_BYTES <= copied.final_bytes <= 2 * 3 * PAGE_BYTES
        assert copied.resent_bytes == 0
        assert 10 <= copied.residual_tokens <= 26
        assert not made.donor.failed.is_set()
        assert not made.acquirer.failed.is_set()


async def test_without_precopy_everything_crosses_after_the_cut(kind, tmp_path):
    async with handover(kind, tmp_path, precopy=False) as made:
        made.donor.step((1, 0, 70, [9, 3, 4, 0, 7]))
        made.start()
        await made.voted()
        assert made.donor.store.gathered_at == []
        await made.cut([9, 3, 4, 0, 7])
        await made.across()
        made.check([9, 3, 4, 0, 7], 70)
        assert made.donor.copied.final_bytes == made.donor.copied.sent_bytes == 5 * 3 * PAGE_BYTES
        assert made.donor.copied.residual_tokens == 70


async def test_one_donor_gives_to_two_acquirers(kind, tmp_path):
    async with handover(kind, tmp_path, limits=SMALL_RUNS, acquirers=(ACQUIRER, SECOND)) as made:
        made.donor.step((1, 0, 40, [0, 1, 2]))
        made.start()
        await made.voted()
        await made.cut([0, 1, 2])
        await made.across()
        made.check([0, 1, 2], 40)


async def test_a_handoff_of_nothing_ends_at_the_cut(kind, tmp_path):
    async with handover(kind, tmp_path) as made:
        made.start()
        await made.voted()
        await made.cut([])
        await made.across()
        assert made.donor.copied.sent_bytes == 0


async def test_after_the_cut_several_runs_are_copied_at_once(autojump_clock, tmp_path):
    limits = HandoffLimits(hurried_run_bytes_max=PAGE_BYTES, runs_under_way_max=3)
    async with handover("memory", tmp_path, precopy=False, limits=limits) as made:
        made.donor.store.copy_s = made.acquirer.store.copy_s = 1.0
        made.donor.step((1, 0, 48, [0, 1, 2]))
        made.start()
        await made.voted()
        await made.cut([0, 1, 2])
        await made.across()
        made.check([0, 1, 2], 48)
        assert trio.current_time() < 5  # 9 runs, which one after the other would take 10 s


async def test_a_newer_copy_of_a_page_is_not_overtaken_by_an_older_one(autojump_clock, tmp_path):
    async with lying_peer(tmp_path, role=ACQUIRER) as (worker, peer):
        worker.store.copy_s = 5.0
        await peer.send(run_of(blocks=(0, 1), fill=b"\1"))
        await trio.sleep(1)
        worker.store.copy_s = 0.0
        await peer.send(run_of(blocks=(1, 2), fill=b"\2"))
        await peer.send(run_of(blocks=(3,), fill=b"\3"))
        await trio.sleep(10)
        first_bytes = [int(page[0]) & 0xFF for page in worker.store.pages[0][:4]]
        assert first_bytes == [1, 2, 2, 3]


# --- refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after_cut", [False, True])
async def test_pages_with_a_wrong_checksum_are_refused_by_name_and_sent_again(kind, tmp_path, after_cut):
    async with handover(kind, tmp_path, limits=SMALL_RUNS, precopy=not after_cut) as made:
        made.donor.step((1, 0, 40, [0, 1, 2]))
        made.donor.store.spoilt = 3
        made.start()
        await made.voted()
        await made.cut([0, 1, 2])
        await made.across()
        made.check([0, 1, 2], 40)
        refused = made.acquirer.logged("pages_refused")
        assert len(refused) == 3
        assert "wrong checksum" in refused[0]["sentence"]
        assert refused[0]["epoch"] == EPOCH
        if not after_cut:
            assert made.donor.copied.resent_bytes > 0


async def test_pages_that_are_refused_again_and_again_fail_the_acquirer_with_a_sentence(kind, tmp_path):
    async with handover(kind, tmp_path, limits=HandoffLimits(refusals_max=4)) as made:
        made.donor.step((1, 0, 16, [0]))
        made.donor.store.spoilt = 10**6
        made.start()
        await made.acquirer.failed.wait()
        assert "refused 5 times" in made.acquirer.sentence
        await made.donor.failed.wait()
        assert "refused pages 5 times" in made.donor.sentence
        assert made.acquirer.ledger.filled.tolist() == [0] * BLOCKS


@asynccontextmanager
async def lying_peer(tmp_path, *, role):
    """A worker whose peer is the test itself: (worker, the peer's link)."""
    network = MemoryNetwork(1)
    transfer = Transfer(DONOR, ACQUIRER, LinkPlace("memory://pages"), LAYERS, (PAGE_BYTES,) * len(LAYERS))
    opened = Open(EPOCH, BLOCKS, None, None, (transfer,), True, live_bits(range(BLOCKS), BLOCKS))
    worker = Worker(role, opened, HandoffLimits())
    async with network.open("worker") as own, network.open("peer") as other, trio.open_nursery() as nursery:
        nursery.start_soon(worker.run, own)
        join = other.connect if role == ACQUIRER else other.bind
        yield worker, await join("memory://pages", name="liar")
        worker.close()


def run_of(layer=0, epoch=EPOCH, blocks=(0,), page_bytes=PAGE_BYTES, checksum=None, fill=b"\7"):
    data = fill * (len(blocks) * page_bytes)
    right = page_checksum(memoryview(data))
    run = PageRun(epoch, (layer_pages(layer, blocks, page_bytes=page_bytes),), checksum or right)
    return [TO_ACQUIRER.encode(run), data]


@pytest.mark.parametrize(
    ("lie", "says"),
    [
        (run_of(epoch=EPOCH - 1), "it is of epoch 3"),
        (run_of(layer=9), "layer 9 is none"),
        (run_of(page_bytes=PAGE_BYTES // 2), "its pages have 32 bytes"),
        (run_of(blocks=(BLOCKS,)), f"below {BLOCKS}"),
        (run_of(blocks=(-1, 2)), "[-1, 2]"),
        (run_of(checksum=1), "wrong checksum"),
    ],
)
async def test_a_page_that_was_not_agreed_is_refused_by_name_and_changes_no_page(autojump_clock, tmp_path, lie, says):
    async with lying_peer(tmp_path, role=ACQUIRER) as (worker, peer):
        before = {layer: pages.copy() for layer, pages in worker.store.pages.items()}
        await peer.send(lie)
        assert TO_DONOR.decode((await peer.receive())[0]) == PagesWelcome(EPOCH)
        refusal = TO_DONOR.decode((await peer.receive())[0])
        assert isinstance(refusal, PagesRefused)
        assert says in refusal.sentence
        assert [line["sentence"] for line in worker.logged("pages_refused")] == [refusal.sentence]
        for layer, pages in worker.store.pages.items():
            np.testing.assert_array_equal(pages, before[layer])
        assert worker.ledger.filled.tolist() == [0] * BLOCKS
        assert not worker.failed.is_set()


@pytest.mark.parametrize("garbage", [[b"\xff\xff"], [b""], run_of()[:1], [TO_ACQUIRER.encode(PagesEnd(9))]], ids=repr)
async def test_an_acquirer_whose_donor_sends_garbage_fails_and_lives(autojump_clock, tmp_path, garbage):
    async with lying_peer(tmp_path, role=ACQUIRER) as (worker, peer):
        await peer.send(garbage)
        await worker.failed.wait()
        assert "worker 1" in worker.sentence


@pytest.mark.parametrize(
    "garbage",
    [
        [b"\xff\xff"],
        [TO_DONOR.encode(PagesWelcome(9))],
        [TO_DONOR.encode(PagesRefused(EPOCH, (layer_pages(9, [0]),), "no"))],
        [TO_DONOR.encode(PagesRefused(EPOCH, (LayerPages(0, PAGE_BYTES, b"123", b"\x10"),), "no"))],
        [TO_ACQUIRER.encode(PagesEnd(EPOCH))],
    ],
    ids=repr,
)
async def test_a_donor_whose_acquirer_sends_garbage_fails_and_lives(autojump_clock, tmp_path, garbage):
    async with lying_peer(tmp_path, role=DONOR) as (worker, peer):
        await peer.send(garbage)
        await worker.failed.wait()
        assert "worker 2" in worker.sentence


# --- giving way to steps ------------------------------------------------------------------------------------------------


async def test_before_the_cut_a_donor_copies_for_its_share_of_the_time_only(autojump_clock, tmp_path):
    limits = HandoffLimits(run_bytes_max=PAGE_BYTES, remaining_bytes_max=0, copy_share_max=0.25)
    async with handover("memory", tmp_path, limits=limits, acquirers=(ACQUIRER, SECOND)) as made:
        made.donor.store.copy_s = 1.0
        made.donor.step((1, 0, 32, [0, 1]))
        made.start()
        await trio.sleep(1000)
        times = made.donor.store.gathered_at
        assert len(times) == 2 * len(LAYERS) * 2
        assert np.diff(times).tolist() == [4.0] * (len(times) - 1)
        assert made.donor.progress[0][1] > made.donor.progress[-1][1]


async def test_donors_of_one_change_share_the_time_that_copying_may_take(autojump_clock, tmp_path):
    limits = HandoffLimits(run_bytes_max=PAGE_BYTES, remaining_bytes_max=0, copy_share_max=0.25)
    async with handover("memory", tmp_path, limits=limits, donors=2) as made:
        made.donor.store.copy_s = 1.0
        made.donor.step((1, 0, 32, [0, 1]))
        made.start()
        await trio.sleep(1000)
        assert set(np.diff(made.donor.store.gathered_at).tolist()) == {8.0}


async def test_progress_is_told_now_and_then_only(autojump_clock, tmp_path):
    limits = HandoffLimits(run_bytes_max=PAGE_BYTES, remaining_bytes_max=0, copy_share_max=0.1)
    async with handover("memory", tmp_path, limits=limits) as made:
        made.donor.store.copy_s = 0.001
        made.donor.step((1, 0, 480, list(range(30))))
        made.start()
        await made.voted()
        assert len(made.donor.store.gathered_at) == 90
        assert 5 <= len(made.donor.progress) <= 12


@pytest.mark.parametrize("moment_s", [0.5, 1.5])
async def test_the_cut_ends_every_rest(autojump_clock, tmp_path, moment_s):
    """At 0.5 s the first run is being gathered, at 1.5 s the donor rests."""
    limits = HandoffLimits(run_bytes_max=PAGE_BYTES, copy_share_max=0.001)
    async with handover("memory", tmp_path, limits=limits, acquirers=(ACQUIRER, SECOND)) as made:
        made.donor.store.copy_s = 1.0
        made.donor.step((1, 0, 16, [0]))
        made.start()
        await made.voted()
        await trio.sleep(moment_s)
        await made.cut([0])
        await made.across()
        assert trio.current_time() < 10
        made.check([0], 16)


# --- losses -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", [DONOR, ACQUIRER])
async def test_a_link_that_is_lost_before_the_cut_fails_the_handoff(autojump_clock, tmp_path, gone):
    async with handover("memory", tmp_path) as made:
        made.start()
        await made.voted()
        made.network.crash(f"worker {gone}")
        left = made.workers[ACQUIRER if gone == DONOR else DONOR]
        await left.failed.wait()
        assert "the transfer of pages from worker 1 to worker 2 broke" in left.sentence


async def test_a_link_that_is_lost_between_the_cut_and_the_end_fails_the_handoff(autojump_clock, tmp_path):
    async with handover("memory", tmp_path) as made:
        made.donor.step((1, 0, 20, [0, 1]))
        made.start()
        await made.voted()
        made.donor.store.copy_s = 1000.0
        await made.cut([0, 1])
        made.network.crash("worker 1")
        await made.acquirer.failed.wait()
        assert not made.acquirer.across.is_set()


async def test_an_acquirer_whose_donor_died_after_its_end_is_across_at_its_own_cut(autojump_clock, tmp_path):
    async with handover("memory", tmp_path) as made:
        made.donor.step((1, 0, 20, [0, 1]))
        made.start()
        await made.voted()
        await made.donor.handoff.cut(live_bits([0, 1], BLOCKS))
        await made.donor.across.wait()
        await trio.sleep(10)
        made.network.crash("worker 1")
        await trio.sleep(10)
        assert not made.acquirer.ended.is_set()
        await made.acquirer.handoff.cut(live_bits([0, 1], BLOCKS))
        await made.acquirer.across.wait()
        made.check([0, 1], 20)


async def test_a_link_that_is_lost_after_the_end_fails_nothing(kind, tmp_path):
    async with handover(kind, tmp_path) as made:
        made.start()
        await made.voted()
        await made.cut([])
        await made.across()
        made.donor.close()
        await made.donor.ended.wait()
        made.acquirer.close()
        await made.acquirer.ended.wait()
        assert not made.donor.failed.is_set()
        assert not made.acquirer.failed.is_set()


@pytest.mark.parametrize("who", [DONOR, ACQUIRER])
async def test_an_engine_that_cannot_copy_fails_the_handoff_and_not_the_worker(kind, tmp_path, who):
    async with handover(kind, tmp_path) as made:
        made.donor.step((1, 0, 16, [0]))
        made.workers[who].store.error = EngineError("This worker does not hold layer 0")
        made.start()
        await made.workers[who].failed.wait()
        assert made.workers[who].sentence.endswith("broke: This worker does not hold layer 0")


@pytest.mark.parametrize("address", ["carrier://pigeon", "ipc://" + "/x" * 200, "ipc:///nonexistent/folder/pages"])
@pytest.mark.parametrize("who", [DONOR, ACQUIRER])
async def test_an_address_that_cannot_be_used_fails_the_handoff(tmp_path, address, who):
    if who == DONOR and "nonexistent" in address:
        address = "carrier://pigeon"  # a donor waits for whoever may come there
    transfer = Transfer(DONOR, ACQUIRER, LinkPlace(address), LAYERS, (PAGE_BYTES,) * len(LAYERS))
    worker = Worker(who, Open(EPOCH, BLOCKS, None, None, (transfer,), True, b""), HandoffLimits())
    async with ZmqTransport.open() as transport, trio.open_nursery() as nursery:
        nursery.start_soon(worker.run, transport)
        await worker.failed.wait()
        worker.close()
    assert "broke: " in worker.sentence


async def test_transfers_of_other_workers_are_none_of_its_business(autojump_clock, tmp_path):
    foreign = Transfer(8, 9, LinkPlace("memory://elsewhere"), LAYERS, (PAGE_BYTES,) * len(LAYERS))
    worker = Worker(DONOR, Open(EPOCH, BLOCKS, None, None, (foreign,), True, b""), HandoffLimits())
    network = MemoryNetwork(1)
    async with network.open("worker") as transport, trio.open_nursery() as nursery:
        nursery.start_soon(worker.run, transport)
        await worker.voted.wait()
        assert network._wires == {}
        worker.close()


# --- giving up ----------------------------------------------------------------------------------------------------------


async def before_the_welcome(made):
    made.start(DONOR)
    await trio.sleep(0.1)


async def while_gathering(made):
    made.donor.store.copy_s = 5.0
    made.start()
    await trio.sleep(1)


async def while_resting(made):
    made.donor.store.copy_s = 0.5
    made.start()
    await trio.sleep(1)


async def while_scattering(made):
    made.acquirer.store.copy_s = 5.0
    made.start()
    await trio.sleep(1)


async def after_the_vote(made):
    made.start()
    await made.voted()


async def while_finishing(made):
    made.start()
    await made.voted()
    made.donor.store.copy_s = made.acquirer.store.copy_s = 5.0
    await made.cut([0, 1])
    await trio.sleep(1)


async def when_across(made):
    made.start()
    await made.voted()
    await made.cut([0, 1])
    await made.across()


async def when_failed(made):
    made.donor.store.error = EngineError("no")
    made.start()
    await made.donor.failed.wait()


@pytest.mark.parametrize(
    "moment",
    [
        before_the_welcome,
        while_gathering,
        while_resting,
        while_scattering,
        after_the_vote,
        while_finishing,
        when_across,
        when_failed,
    ],
    ids=lambda moment: moment.__name__,
)
async def test_a_handoff_that_is_given_up_ends_without_a_word_and_leaves_no_link(autojump_clock, tmp_path, moment):
    async with handover("memory", tmp_path) as made:
        made.donor.step((1, 0, 20, [0, 1]))
        await moment(made)
        told = {number: (worker.across.is_set(), worker.sentence) for number, worker in made.workers.items()}
        for number in (DONOR, ACQUIRER):
            worker = made.workers[number]
            filled = worker.ledger.filled.tolist()
            worker.close()
            worker.close()
            assert worker.handoff.machine.state in (HandoffState.GIVEN_UP, HandoffState.FAILED)
            if moment is not before_the_welcome or number == DONOR:
                await worker.ended.wait()
            assert worker.ledger.filled.tolist() == filled
        # Whoever goes second may have seen the first one's goodbye.
        assert (made.donor.across.is_set(), made.donor.sentence) == told[DONOR]
        await trio.sleep(1)
        assert [wires for wires in made.network._wires.values() if wires] == []


class GatedStore(SlowStore):
    """Copies stand still, as a thread would, until the gate opens."""

    def __init__(self, layers, garbage):
        super().__init__(layers, garbage)
        self.began, self.gate = trio.Event(), trio.Event()

    async def copy(self):
        self.began.set()
        with trio.CancelScope(shield=True):
            await self.gate.wait()


@pytest.mark.parametrize("who", [DONOR, ACQUIRER])
async def test_giving_up_while_a_thread_copies_to_or_from_shared_memory_harms_nobody(tmp_path, who):
    async with handover("ipc", tmp_path) as made:
        made.donor.step((1, 0, 16, [0]))
        worker = made.workers[who]
        gated = worker.handoff._engine = GatedStore(LAYERS, 0)
        made.start()
        await gated.began.wait()
        for each in made.workers.values():
            each.close()
        await wait_all_tasks_blocked()
        assert not worker.ended.is_set()
        gated.gate.set()
        for each in made.workers.values():
            await each.ended.wait()
            assert not each.failed.is_set()
        assert list(tmp_path.iterdir()) == []
