"""One worker's part in a handoff: every event in every state, both sides of a transfer, and random histories of whole handoffs."""

import copy
import random
from collections import deque
from typing import ClassVar

import msgspec
import numpy as np
import pytest
from flexpipe.actors.block_ledger import BlockLedger
from flexpipe.actors.handoff_events import (
    Across,
    Begin,
    CutCame,
    EndCame,
    EndSent,
    Fail,
    GivenUp,
    Progress,
    Refuse,
    RunCame,
    RunRefused,
    RunSent,
    SendEnd,
    SendRun,
    StepEnded,
    TransferBroke,
    Vote,
    Welcomed,
)
from flexpipe.actors.handoff_machine import (
    _LEGAL,
    HandoffLimits,
    HandoffMachine,
    HandoffOrderError,
    HandoffState,
)
from flexpipe.actors.link_place import LinkPlace
from flexpipe.actors.messages import Open, PageRun, PagesRefused, PagesWelcome, Transfer
from flexpipe.actors.page_ledger import PageLedger
from flexpipe.runtime.interface import BLOCK_TOKENS
from page_store import PAGE_BYTES, PageStore, layer_pages, live_bits, plan_of

EPOCH = 5
BLOCKS = 24
DONOR, ACQUIRER, OTHER = 1, 2, 3
GIVEN, TAKEN = 0, 1
"""Places of the two transfers of `opened`, as the donor sees them: it gives layers 0 and 1 and takes layer 2."""
TRANSFERS = (
    Transfer(DONOR, ACQUIRER, LinkPlace("memory://a"), (0, 1), (PAGE_BYTES, PAGE_BYTES)),
    Transfer(OTHER, DONOR, LinkPlace("memory://b"), (2,), (PAGE_BYTES,)),
)


def opened(transfers=TRANSFERS, *, precopy=True, live=(), blocks=BLOCKS):
    return Open(EPOCH, blocks, None, None, tuple(transfers), precopy, live_bits(live, BLOCKS))


def ran(ledger, *rows):
    plan = plan_of(0, rows)
    ledger.begin_step(plan)
    ledger.end_step(plan)


def run_of(layer=2, blocks=(0,), filled=None, epoch=EPOCH, page_bytes=PAGE_BYTES):
    return PageRun(epoch, (layer_pages(layer, blocks, filled, page_bytes),), 0)


def refusal(layer=0, blocks=(0,), epoch=EPOCH):
    return PagesRefused(epoch, (layer_pages(layer, blocks),), "it was wet")


def altered(message, **changes):
    """A run or a refusal whose one layer says something else."""
    (part,) = message.pages
    return msgspec.structs.replace(message, pages=(msgspec.structs.replace(part, **changes),))


def pages_in(run):
    """The (layer, blocks) of a run."""
    return [(part.layer, part.block_numbers.tolist()) for part in run.pages]


def pages_of(run):
    """Every (layer, block) of a run."""
    return {(layer, block) for layer, blocks in pages_in(run) for block in blocks}


def welcomed(transfer=GIVEN):
    return Welcomed(transfer, PagesWelcome(EPOCH))


def kinds(instructions):
    return [type(instruction) for instruction in instructions]


def donor(*rows, transfers=TRANSFERS[:1], limits=HandoffLimits(), precopy=True, live=range(BLOCKS)):
    """A donor that ran a step with ``rows``, and its ledger; not yet begun."""
    ledger = PageLedger()
    ledger.ensure(BLOCKS)
    if rows:
        ran(ledger, *rows)
    return HandoffMachine(opened(transfers, precopy=precopy, live=live), DONOR, ledger, limits), ledger


def finish(machine, live):
    """The cut, and all that is to be sent; what was."""
    sent, answers = [], machine.handle(CutCame(live_bits(live, BLOCKS)))
    while answers:
        job = answers.pop(0)
        if isinstance(job, SendRun):
            sent += [(part.layer, part.block_numbers.tolist(), list(part.filled)) for part in job.pages]
            answers += machine.handle(RunSent(job.transfer))
        elif isinstance(job, SendEnd):
            sent.append("end")
            answers += machine.handle(EndSent(job.transfer))
        else:
            sent.append(job)
    return sent


# --- every event in every state -----------------------------------------------------------------------------------------


def in_state(state):
    machine, _ = donor(transfers=TRANSFERS)
    if state == "new":
        return machine
    machine.handle(Begin())
    machine.handle(welcomed())
    if state is HandoffState.FAILED:
        machine.handle(TransferBroke(GIVEN, "gone"))
    if state in (HandoffState.FINISHING, HandoffState.ACROSS):
        machine.handle(CutCame(b""))
    if state is HandoffState.ACROSS:
        machine.handle(EndSent(GIVEN))
        machine.handle(EndCame(TAKEN, EPOCH))
    if state is HandoffState.GIVEN_UP:
        machine.handle(GivenUp())
    assert machine.state is state
    return machine


EVENTS = {
    Begin: Begin(),
    StepEnded: StepEnded(),
    CutCame: CutCame(b""),
    RunSent: RunSent(GIVEN),
    EndSent: EndSent(GIVEN),
    GivenUp: GivenUp(),
    Welcomed: welcomed(),
    RunRefused: RunRefused(GIVEN, refusal()),
    RunCame: RunCame(TAKEN, run_of(), ""),
    EndCame: EndCame(TAKEN, EPOCH),
    TransferBroke: TransferBroke(GIVEN, "gone"),
}
# Legal by state, yet not now: nothing is being sent, or it happened before.
NOT_NOW = {(RunSent, state) for state in HandoffState} | {
    (Begin, HandoffState.BEFORE_CUT),
    (EndSent, HandoffState.ACROSS),
}


def snapshot(machine):
    """All that a machine and its ledger hold, as plain values."""

    def plain(value):
        if isinstance(value, np.ndarray):
            return value.tolist()
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if (
            hasattr(value, "__slots__")
            and type(value).__module__.startswith("flexpipe")
            and not hasattr(value, "value")
        ):
            return {name: plain(getattr(value, name)) for name in value.__slots__}
        if hasattr(value, "__dict__") and type(value).__module__.startswith("flexpipe.actors"):
            return plain({name: item for name, item in vars(value).items() if name != "_handlers"})
        return copy.deepcopy(value)

    return plain(machine)


def test_every_event_has_a_row_in_the_table_and_a_handler():
    machine, _ = donor()
    assert set(_LEGAL) == set(EVENTS) == set(machine._handlers)


@pytest.mark.parametrize("state", list(HandoffState), ids=lambda state: state.value)
@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.__name__)
def test_an_event_is_taken_or_raises_or_comes_too_late_as_the_table_says(kind, state):
    machine = in_state(state)
    before = snapshot(machine)
    if state in (HandoffState.FAILED, HandoffState.GIVEN_UP):
        assert machine.handle(EVENTS[kind]) == []
        assert snapshot(machine) == before
    elif state in _LEGAL[kind] and (kind, state) not in NOT_NOW:
        machine.handle(EVENTS[kind])
    else:
        with pytest.raises(HandoffOrderError):
            machine.handle(EVENTS[kind])
        assert snapshot(machine) == before


@pytest.mark.parametrize(
    "event",
    [
        RunSent(TAKEN),
        RunSent(9),
        EndSent(TAKEN),
        welcomed(TAKEN),
        RunRefused(9, refusal()),
        RunCame(GIVEN, run_of(), ""),
        EndCame(GIVEN, EPOCH),
        EndCame(9, EPOCH),
    ],
    ids=repr,
)
def test_an_event_of_a_transfer_that_is_not_this_workers_raises_and_changes_nothing(event):
    machine = in_state(HandoffState.FINISHING)
    before = snapshot(machine)
    with pytest.raises(HandoffOrderError):
        machine.handle(event)
    assert snapshot(machine) == before


def test_a_cut_before_the_vote_raises_and_changes_nothing():
    machine = in_state("new")
    before = snapshot(machine)
    with pytest.raises(HandoffOrderError, match="before this worker's vote"):
        machine.handle(CutCame(b""))
    assert snapshot(machine) == before


# --- the vote -------------------------------------------------------------------------------------------------------------


def test_an_acquirer_votes_as_soon_as_its_links_are_open():
    machine = HandoffMachine(opened(TRANSFERS[:1]), ACQUIRER, PageLedger())
    assert machine.handle(Begin()) == [Vote()]


def test_a_donor_votes_only_when_its_acquirer_has_welcomed_it_and_its_own_links_are_open():
    for first, second in ((Begin(), welcomed()), (welcomed(), Begin())):
        machine, _ = donor()
        assert machine.handle(first) == []
        assert machine.handle(second) == [Vote()]


def test_a_donor_votes_once_what_is_left_is_little_and_tells_how_far_it_is_until_then():
    limits = HandoffLimits(run_bytes_max=PAGE_BYTES, remaining_bytes_max=2 * PAGE_BYTES)
    machine, _ = donor((1, 0, 32, [0, 1]), limits=limits)
    machine.handle(Begin())
    (run,) = machine.handle(welcomed())
    assert (pages_in(run), run.hurried) == ([(0, [0])], False)
    answers = machine.handle(RunSent(GIVEN))
    assert kinds(answers) == [SendRun, Progress]
    assert answers[1] == Progress(PAGE_BYTES, 3 * PAGE_BYTES)
    answers = machine.handle(RunSent(GIVEN))
    assert kinds(answers) == [SendRun, Progress, Vote]
    assert answers[1] == Progress(2 * PAGE_BYTES, 2 * PAGE_BYTES)
    assert kinds(machine.handle(RunSent(GIVEN))) == [SendRun]


def test_without_precopy_nothing_is_sent_before_the_cut_and_all_of_it_after():
    machine, ledger = donor((1, 0, 20, [0, 1]), precopy=False)
    machine.handle(Begin())
    assert machine.handle(welcomed()) == [Vote()]
    ran(ledger, (1, 20, 1, [0, 1]))
    assert machine.handle(StepEnded()) == []
    assert finish(machine, [0, 1])[:-1] == [(0, [0, 1], [16, 5]), (1, [0, 1], [16, 5]), "end"]
    totals = machine.totals
    assert (totals.sent_bytes, totals.final_bytes, totals.resent_bytes) == (4 * PAGE_BYTES, 4 * PAGE_BYTES, 0)
    assert (totals.rounds, totals.residual_tokens) == (1, 21)


# --- giving -------------------------------------------------------------------------------------------------------------


def precopied(*rows, **options):
    """A donor that has sent all that it can before the cut, and its ledger."""
    machine, ledger = donor(*rows, **options)
    answers = [*machine.handle(Begin()), *machine.handle(welcomed())]
    while any(isinstance(answer, SendRun) for answer in answers):
        answers = machine.handle(RunSent(GIVEN))
    return machine, ledger


def test_full_blocks_go_before_the_cut_and_half_full_ones_after_it():
    machine, _ = precopied((1, 0, 40, [4, 2, 7]))
    assert machine.totals.sent_bytes == 4 * PAGE_BYTES
    assert finish(machine, [2, 4, 7]) == [(0, [7], [8]), (1, [7], [8]), "end", Across(machine.totals)]
    assert machine.totals.final_bytes == 2 * PAGE_BYTES
    assert machine.totals.resent_bytes == 0
    assert machine.totals.residual_tokens == 8


def test_blocks_that_fill_after_the_vote_are_copied_before_the_cut():
    machine, ledger = precopied((1, 0, 15, [0]))
    ran(ledger, (1, 15, 1, [0]))
    (run,) = machine.handle(StepEnded())
    assert pages_in(run) == [(0, [0]), (1, [0])]


def test_blocks_that_nobody_held_at_the_opening_and_wrote_since_are_copied_and_others_are_not():
    machine, ledger = precopied((1, 0, 16, [0]), (2, 0, 16, [1]), live=[1])
    assert machine.totals.sent_bytes == 2 * PAGE_BYTES
    ran(ledger, (3, 0, 16, [5]))
    (run,) = machine.handle(StepEnded())
    assert pages_in(run) == [(0, [5]), (1, [5])]


def test_a_block_that_got_a_new_life_is_sent_anew_and_not_counted_as_resent():
    machine, ledger = precopied((1, 0, 16, [0]))
    ran(ledger, (2, 0, 3, [0]))
    assert machine.handle(StepEnded()) == []
    assert finish(machine, [0])[0] == (0, [0], [3])
    assert machine.totals.resent_bytes == 0


def test_a_block_that_changed_in_the_life_in_which_it_was_sent_is_counted_as_resent():
    machine, ledger = precopied((1, 0, 16, [0]))
    ran(ledger, (1, 15, 1, [0]))  # KV is append-only, so this does not happen; yet it would be right
    machine.handle(StepEnded())
    assert machine.totals.resent_bytes == 2 * PAGE_BYTES


def test_a_page_that_a_step_wrote_to_while_it_was_copied_is_copied_again():
    machine, ledger = donor((1, 0, 16, [0]))
    machine.handle(Begin())
    assert kinds(machine.handle(welcomed())) == [SendRun, Vote]
    plan = plan_of(1, [(2, 0, 5, [0])])
    ledger.begin_step(plan)  # the engine gathers and computes at the same time
    assert kinds(machine.handle(RunSent(GIVEN))) == []
    ledger.end_step(plan)
    assert finish(machine, [0])[:2] == [(0, [0], [5]), (1, [0], [5])]


def test_blocks_beyond_the_room_of_the_next_epoch_wait_for_the_cut():
    ledger = PageLedger()
    ledger.ensure(BLOCKS)
    ran(ledger, (1, 0, 16, [3]), (2, 0, 16, [9]))
    machine = HandoffMachine(opened(TRANSFERS[:1], live=range(BLOCKS), blocks=8), DONOR, ledger)
    machine.handle(Begin())
    (run, _) = machine.handle(welcomed())
    assert pages_in(run) == [(0, [3]), (1, [3])]


def test_a_round_is_one_pass_over_the_layers():
    machine, ledger = precopied((1, 0, 16, [0]))
    assert machine.totals.rounds == 1
    ran(ledger, (2, 0, 16, [1]))
    machine.handle(StepEnded())
    machine.handle(RunSent(GIVEN))
    assert machine.totals.rounds == 2


def test_a_run_carries_pages_of_as_many_layers_as_there_is_room_for_and_the_next_goes_on_from_there():
    wide = Transfer(DONOR, ACQUIRER, LinkPlace("memory://a"), (0, 1, 2), (PAGE_BYTES, 2 * PAGE_BYTES, PAGE_BYTES))
    limits = HandoffLimits(run_bytes_max=6 * PAGE_BYTES)
    machine, _ = donor((1, 0, 48, [0, 1, 2]), transfers=[wide], limits=limits)
    machine.handle(Begin())
    (first, _) = machine.handle(welcomed())
    (second, *_) = machine.handle(RunSent(GIVEN))
    assert pages_in(first) == [(0, [0, 1, 2]), (1, [0])]
    assert pages_in(second) == [(1, [1, 2]), (2, [0, 1])]
    (third, *_) = machine.handle(RunSent(GIVEN))
    assert pages_in(third) == [(2, [2])]
    assert machine.totals.rounds == 1


def test_a_page_above_the_size_of_a_run_goes_alone():
    machine, _ = donor((1, 0, 16, [0]), limits=HandoffLimits(run_bytes_max=PAGE_BYTES - 1))
    machine.handle(Begin())
    (run, _) = machine.handle(welcomed())
    assert pages_in(run) == [(0, [0])]


def test_residual_tokens_are_those_of_the_request_with_the_most():
    machine, _ = precopied((1, 0, 16 + 9, [0, 1]), (2, 0, 12, [2]), (3, 0, 32, [3, 4]))
    finish(machine, range(BLOCKS))
    assert machine.totals.residual_tokens == 12


def test_refused_pages_are_sent_again_and_counted_as_resent():
    machine, _ = precopied((1, 0, 16, [0]))
    (run,) = machine.handle(RunRefused(GIVEN, refusal(layer=1)))
    assert pages_in(run) == [(1, [0])]
    assert machine.totals.resent_bytes == PAGE_BYTES


def test_refused_pages_are_sent_again_even_after_the_end_and_when_across():
    machine, _ = precopied((1, 0, 16, [0]))
    finish(machine, [0])
    assert machine.state is HandoffState.ACROSS
    (run,) = machine.handle(RunRefused(GIVEN, refusal()))
    assert (pages_in(run), run.hurried) == ([(0, [0])], True)
    assert machine.handle(RunSent(GIVEN)) == []


def test_what_the_new_epoch_writes_is_not_sent_with_refused_pages():
    machine, ledger = precopied((1, 0, 16, [0]), (2, 0, 3, [1]))
    finish(machine, [0, 1])
    ran(ledger, (2, 3, 1, [1]))
    assert machine.handle(StepEnded()) == []
    (run,) = machine.handle(RunRefused(GIVEN, refusal()))
    assert pages_in(run) == [(0, [0])]
    assert machine.handle(RunSent(GIVEN)) == []


def test_one_refusal_too_many_fails_with_the_last_reason():
    machine, _ = precopied((1, 0, 16, [0]), limits=HandoffLimits(refusals_max=2))
    for _ in range(2):
        machine.handle(RunRefused(GIVEN, refusal()))
    (fail,) = machine.handle(RunRefused(GIVEN, refusal()))
    assert fail == Fail("worker 2 refused pages 3 times, at last because it was wet")
    assert machine.state is HandoffState.FAILED


@pytest.mark.parametrize(
    "wrong",
    [
        refusal(layer=9),
        refusal(blocks=[BLOCKS]),
        refusal(blocks=[-1]),
        refusal(blocks=[]),
        refusal(epoch=EPOCH - 1),
        altered(refusal(), blocks=b"12345"),
        msgspec.structs.replace(refusal(), pages=()),
    ],
    ids=repr,
)
def test_a_refusal_of_pages_that_were_never_given_fails(wrong):
    machine, _ = precopied((1, 0, 16, [0]))
    assert kinds(machine.handle(RunRefused(GIVEN, wrong))) == [Fail]


@pytest.mark.parametrize("epoch", [EPOCH, EPOCH + 1])
def test_a_second_welcome_or_one_of_another_epoch_fails(epoch):
    machine, _ = donor()
    machine.handle(Begin())
    if epoch == EPOCH:
        machine.handle(welcomed())
    assert kinds(machine.handle(Welcomed(GIVEN, PagesWelcome(epoch)))) == [Fail]


# --- taking -------------------------------------------------------------------------------------------------------------


def acquirer(limits=HandoffLimits()):
    ledger = PageLedger()
    machine = HandoffMachine(opened(TRANSFERS[:1]), ACQUIRER, ledger, limits)
    machine.handle(Begin())
    return machine, ledger


@pytest.mark.parametrize(
    ("run", "size", "says"),
    [
        (run_of(0, epoch=4), PAGE_BYTES, "epoch 4"),
        (run_of(2), PAGE_BYTES, "layer 2"),
        (run_of(-1), PAGE_BYTES, "layer -1"),
        (run_of(0, page_bytes=32), 32, "32 bytes"),
        (run_of(0, []), 0, "0 bytes of blocks"),
        (altered(run_of(0), blocks=b"12345"), PAGE_BYTES, "5 bytes of blocks"),
        (run_of(0, [0, 1], [16]), 2 * PAGE_BYTES, "1 fill levels"),
        (run_of(0, [BLOCKS]), PAGE_BYTES, "ascending"),
        (run_of(0, [-1, 3]), 2 * PAGE_BYTES, "ascending"),
        (run_of(0, [3, 3]), 2 * PAGE_BYTES, "ascending"),
        (run_of(0, [3, 2]), 2 * PAGE_BYTES, "ascending"),
        (run_of(0, [-(2**31), 2**31 - 1]), 2 * PAGE_BYTES, "ascending"),
        (run_of(0, [3], [17]), PAGE_BYTES, "17"),
        (altered(run_of(0), filled=b"\0"), PAGE_BYTES, "not 0"),
        (run_of(0, [3]), PAGE_BYTES - 1, f"{PAGE_BYTES - 1} bytes"),
        (PageRun(EPOCH, (), 0), 0, "one or more"),
        (PageRun(EPOCH, (layer_pages(0, [3]), layer_pages(0, [3])), 0), 2 * PAGE_BYTES, "each once"),
        (PageRun(EPOCH, (layer_pages(0, [3]), layer_pages(9, [3])), 0), 2 * PAGE_BYTES, "layer 9"),
    ],
)
def test_a_run_that_is_not_what_was_agreed_is_refused_by_name(run, size, says):
    machine, ledger = acquirer()
    fault = machine.wrong_with(GIVEN, run, size)
    assert says in fault
    before = ledger.filled.tolist()
    assert machine.handle(RunCame(GIVEN, run, fault)) == [Refuse(GIVEN, PagesRefused(EPOCH, run.pages, fault))]
    assert ledger.filled.tolist() == before


def test_pages_that_came_are_known_to_the_ledger():
    machine, ledger = acquirer()
    run = run_of(0, [2, 5], [16, 3])
    assert machine.wrong_with(GIVEN, run, 2 * PAGE_BYTES) == ""
    assert machine.handle(RunCame(GIVEN, run, "")) == []
    assert (ledger.filled[2], ledger.filled[5]) == (16, 3)


@pytest.mark.parametrize("cut_first", [True, False])
def test_an_acquirer_is_across_when_its_own_cut_and_every_end_came(cut_first):
    machine, _ = acquirer()
    events = [CutCame(b""), EndCame(GIVEN, EPOCH)]
    first, second = events if cut_first else reversed(events)
    assert machine.handle(first) == []
    assert machine.handle(second) == [Across(machine.totals)]


def test_an_acquirer_waits_for_a_refused_live_page_and_for_nothing_else():
    machine, _ = acquirer()
    machine.handle(RunCame(GIVEN, run_of(1, [3, 4]), "a wrong checksum"))
    machine.handle(EndCame(GIVEN, EPOCH))
    assert machine.handle(CutCame(live_bits([3], BLOCKS))) == []
    assert machine.handle(RunCame(GIVEN, run_of(0, [3]), "")) == []
    assert machine.handle(RunCame(GIVEN, run_of(1, [3]), "")) == [Across(machine.totals)]


def test_a_refused_page_whose_request_ended_is_not_waited_for():
    machine, _ = acquirer()
    machine.handle(RunCame(GIVEN, run_of(1, [3]), "a wrong checksum"))
    machine.handle(CutCame(live_bits([8], BLOCKS)))
    assert machine.handle(EndCame(GIVEN, EPOCH)) == [Across(machine.totals)]


def test_after_the_end_only_pages_that_were_refused_are_taken():
    machine, _ = acquirer()
    machine.handle(RunCame(GIVEN, run_of(1, [3]), "a wrong checksum"))
    machine.handle(EndCame(GIVEN, EPOCH))
    assert machine.wrong_with(GIVEN, run_of(1, [3]), PAGE_BYTES) == ""
    assert "had ended" in machine.wrong_with(GIVEN, run_of(1, [3, 4]), 2 * PAGE_BYTES)
    assert "had ended" in machine.wrong_with(GIVEN, run_of(0, [3]), PAGE_BYTES)


def test_an_acquirer_fails_after_refusing_too_often_and_tells_the_donor_first():
    machine, _ = acquirer(HandoffLimits(refusals_max=1))
    machine.handle(RunCame(GIVEN, run_of(1, [3]), "a wrong checksum"))
    answers = machine.handle(RunCame(GIVEN, run_of(1, [3]), "a wrong checksum"))
    assert kinds(answers) == [Refuse, Fail]
    assert answers[1].sentence == "pages of worker 1 were refused 2 times, at last because a wrong checksum"


@pytest.mark.parametrize("epoch", [EPOCH, EPOCH - 1])
def test_a_second_end_or_one_of_another_epoch_fails(epoch):
    machine, _ = acquirer()
    if epoch == EPOCH:
        machine.handle(EndCame(GIVEN, EPOCH))
    assert kinds(machine.handle(EndCame(GIVEN, epoch))) == [Fail]


@pytest.mark.parametrize("state", [HandoffState.BEFORE_CUT, HandoffState.FINISHING])
@pytest.mark.parametrize("transfer", [GIVEN, TAKEN])
def test_a_transfer_that_breaks_before_this_worker_is_across_fails_the_handoff(state, transfer):
    machine = in_state(state)
    assert machine.handle(TransferBroke(transfer, "gone")) == [Fail("gone")]
    assert machine.state is HandoffState.FAILED


def test_a_transfer_that_breaks_when_all_of_it_is_here_fails_nothing():
    machine = in_state(HandoffState.FINISHING)
    machine.handle(EndCame(TAKEN, EPOCH))
    assert machine.handle(TransferBroke(TAKEN, "gone")) == []
    assert machine.handle(EndSent(GIVEN)) == [Across(machine.totals)]
    assert machine.handle(TransferBroke(GIVEN, "gone")) == []
    assert machine.state is HandoffState.ACROSS


# --- random histories ---------------------------------------------------------------------------------------------------


class Worker:
    """One worker of a random history: a machine, a ledger, pages, and what its machine told."""

    def __init__(self, number, layers, opened, limits):
        self.number = number
        self.ledger = PageLedger()
        self.ledger.ensure(BLOCKS)
        self.store = PageStore(layers, BLOCKS, garbage=number)
        self.machine = HandoffMachine(opened, number, self.ledger, limits)
        self.told = []
        self.running = None
        self.cut = False


class History:
    """Three workers hand layers to each other while requests come, grow and end; chance decides what happens next."""

    LAYERS: ClassVar = {1: (0, 1), 2: (2, 3), 3: ()}
    TRANSFERS = (
        Transfer(1, 3, LinkPlace("memory://x"), (1,), (PAGE_BYTES,)),
        Transfer(1, 2, LinkPlace("memory://y"), (0,), (PAGE_BYTES,)),
        Transfer(2, 3, LinkPlace("memory://z"), (2, 3), (PAGE_BYTES, PAGE_BYTES)),
    )
    STEPS = 40

    def __init__(self, seed):
        self.chance = random.Random(seed)
        self.blocks = BlockLedger(BLOCKS)
        self.lengths = {}
        self.plans = []
        self.step = 0
        self.spoilt = 0
        self.delivered_bytes = 0
        self.plan_a_step()
        self.plan_a_step()
        limits = HandoffLimits(
            run_bytes_max=3 * PAGE_BYTES,
            hurried_run_bytes_max=2 * PAGE_BYTES,
            runs_under_way_max=3,
            remaining_bytes_max=4 * PAGE_BYTES,
            refusals_max=50,
        )
        opened = Open(EPOCH, BLOCKS, None, None, self.TRANSFERS, self.chance.random() < 0.8, self.live())
        self.workers = {
            number: Worker(number, {*layers, *self.taken(number)}, opened, limits)
            for number, layers in self.LAYERS.items()
        }
        # What a worker still has to run; a new one runs nothing before the cut.
        self.queues = {number: deque(self.plans if layers else ()) for number, layers in self.LAYERS.items()}
        self.forward = {place: deque() for place in range(len(self.TRANSFERS))}
        self.back = {place: deque() for place in range(len(self.TRANSFERS))}
        self.jobs = {place: [] for place in range(len(self.TRANSFERS))}
        for place, transfer in enumerate(self.TRANSFERS):
            self.back[place].append(PagesWelcome(EPOCH))
            assert transfer.acquirer in self.workers
        for worker in self.workers.values():
            self.tell(worker, Begin())

    def taken(self, number):
        return [layer for transfer in self.TRANSFERS if transfer.acquirer == number for layer in transfer.layers]

    def live(self):
        return live_bits([block for request in self.lengths for block in self.blocks.blocks_of(request)], BLOCKS)

    def plan_a_step(self):
        """The scheduler: some requests go on, perhaps one ends, perhaps one comes."""
        for request in [request for request in self.lengths if self.chance.random() < 0.06]:
            self.blocks.release(request)
            del self.lengths[request]
        self.step += 1
        going = sorted(self.lengths)
        wanted = [(request, 1) for request in self.chance.sample(going, min(len(going), 3))]
        if self.chance.random() < 0.4 or not wanted:
            wanted.append((self.step, self.chance.randint(1, 50)))
        rows = []
        for request, tokens in wanted:
            first = self.lengths.get(request, 0)
            if self.blocks.grow(request, -(-(first + tokens) // BLOCK_TOKENS)):
                self.lengths[request] = first + tokens
                rows.append((request, first, tokens, list(self.blocks.blocks_of(request))))
        if rows:
            self.plans.append(plan_of(self.step, rows))

    def act(self):
        """One thing that may happen now; False where nothing can."""
        options = []
        for number, worker in self.workers.items():
            if worker.running is not None:
                options.append(lambda worker=worker: self.end_step(worker))
            elif self.queues[number]:
                options.append(lambda worker=worker: self.next_in_queue(worker))
        options += [lambda place=place: self.send(place) for place, jobs in self.jobs.items() if jobs]
        options += [lambda place=place: self.deliver(place) for place, wire in self.forward.items() if wire]
        options += [lambda place=place: self.answer(place) for place, wire in self.back.items() if wire]
        if self.step < self.STEPS:
            options.append(self.schedule)
        elif self.step == self.STEPS and all(Vote() in worker.told for worker in self.workers.values()):
            options.append(self.cut)
        if not options:
            return False
        self.chance.choice(options)()
        return True

    def schedule(self):
        before = len(self.plans)
        self.plan_a_step()
        for plan in self.plans[before:]:
            for number, layers in self.LAYERS.items():
                if layers:
                    self.queues[number].append(plan)

    def cut(self):
        self.step += 1
        for queue in self.queues.values():
            queue.append(CutCame(self.live()))

    def next_in_queue(self, worker):
        head = self.queues[worker.number].popleft()
        if isinstance(head, CutCame):
            self.tell(worker, head)
        else:
            worker.running = head
            worker.ledger.begin_step(head)
            if self.chance.random() < 0.5:
                worker.store.write(head)

    def end_step(self, worker):
        plan, worker.running = worker.running, None
        worker.store.write(plan)
        worker.ledger.end_step(plan)
        self.tell(worker, StepEnded())

    def send(self, place):
        job = self.jobs[place].pop(self.chance.randrange(len(self.jobs[place])))
        donor = self.workers[self.TRANSFERS[place].donor]
        if isinstance(job, SendEnd):
            self.forward[place].append((None, b"", False))
            self.tell(donor, EndSent(place))
            return
        run = PageRun(EPOCH, job.pages, 0)
        spoilt = self.chance.random() < 0.1
        self.forward[place].append((run, donor.store.gather(job.pages), spoilt))
        self.spoilt += spoilt
        self.tell(donor, RunSent(place))

    def deliver(self, place):
        run, data, spoilt = self.forward[place].popleft()
        worker = self.workers[self.TRANSFERS[place].acquirer]
        if run is None:
            self.tell(worker, EndCame(place, EPOCH))
            return
        self.delivered_bytes += len(data)
        assert worker.machine.wrong_with(place, run, len(data)) == ""
        if not spoilt:
            worker.store.scatter(run.pages, data)
        self.tell(worker, RunCame(place, run, "a wrong checksum" if spoilt else ""))

    def answer(self, place):
        message = self.back[place].popleft()
        donor = self.workers[self.TRANSFERS[place].donor]
        heard = Welcomed if isinstance(message, PagesWelcome) else RunRefused
        self.tell(donor, heard(place, message))

    def tell(self, worker, event):
        for instruction in worker.machine.handle(event):
            match instruction:
                case SendRun(transfer) | SendEnd(transfer):
                    self.check_job(self.jobs[transfer], instruction)
                    self.jobs[transfer].append(instruction)
                case Refuse(transfer, refused):
                    self.back[transfer].append(refused)
                case _:
                    worker.told.append(instruction)
                    if isinstance(instruction, Across):
                        self.check(worker)

    def check_job(self, under_way, job):
        """What is under way at once goes out in any order, so none of it may be a copy of another's page, or the end."""
        assert not any(isinstance(other, SendEnd) for other in under_way)
        assert not (isinstance(job, SendEnd) and under_way)
        for other in under_way:
            assert job.hurried
            assert other.hurried
            assert not pages_of(job) & pages_of(other)
        assert len(under_way) < 3

    def check(self, worker):
        """A worker that says it is across has every live page that it was due, and knows how full it is."""
        for transfer in self.TRANSFERS:
            if transfer.acquirer != worker.number:
                continue
            donor = self.workers[transfer.donor]
            for request, length in self.lengths.items():
                blocks = self.blocks.blocks_of(request)
                assert worker.ledger.filled[blocks].tolist() == donor.ledger.filled[blocks].tolist()
                for layer in transfer.layers:
                    truth = [(layer + 1) * 10_000_000 + request * 10_000 + position for position in range(length)]
                    assert donor.store.tokens(layer, blocks, length) == truth
                    assert worker.store.tokens(layer, blocks, length) == truth


@pytest.mark.parametrize("seed", range(60))
def test_in_any_history_a_worker_that_is_across_has_its_donors_pages(seed):
    history = History(seed)
    for _ in range(20_000):
        if not history.act():
            break
    workers = history.workers
    assert history.step == history.STEPS + 1
    assert [worker.machine.state for worker in workers.values()] == [HandoffState.ACROSS] * 3
    assert history.lengths, "somebody must be served"
    assert history.delivered_bytes == sum(worker.machine.totals.sent_bytes for worker in workers.values())
    for worker in workers.values():
        totals = worker.machine.totals
        assert kinds(worker.told).count(Vote) == kinds(worker.told).count(Across) == 1
        assert 0 <= totals.final_bytes <= totals.sent_bytes
        assert totals.resent_bytes <= totals.sent_bytes
    if not history.spoilt:
        assert sum(worker.machine.totals.resent_bytes for worker in workers.values()) == 0


def test_histories_spoil_pages_copy_before_the_cut_and_leave_something_for_it():
    histories = [History(seed) for seed in range(10)]
    for history in histories:
        while history.act():
            pass
    totals = [worker.machine.totals for history in histories for worker in history.workers.values()]
    assert sum(history.spoilt for history in histories) > 10
    assert any(total.sent_bytes > total.final_bytes > 0 for total in totals)
