"""The scheduler's decisions, driven by a modelled pipeline whose KV pages notice any wrong block."""

from collections import deque
from itertools import cycle

import numpy as np
import pytest
import trio
from flexpipe.actors.generation import GenerationRequest
from flexpipe.actors.layer_pages import size_of
from flexpipe.actors.messages import Cut, StepPlan, StepResult
from flexpipe.actors.sampling_ledger import SamplingLedger
from flexpipe.actors.scheduler_machine import (
    Cancel,
    Deliver,
    Fail,
    LimitBlocks,
    PipelineDown,
    PipelineInterrupted,
    PipelineSwitch,
    PipelineUp,
    SchedulerError,
    SchedulerLimits,
    SchedulerMachine,
    SendCut,
    SendStep,
    StepDone,
    Submit,
)
from flexpipe.actors.stage import batch_of
from flexpipe.policies.batching import BatchLimits
from flexpipe.runtime.interface import EngineSpec, SampledToken, SamplingParams
from flexpipe.sim.modelled_engine import PAGE_BYTES, ModelledEngine, ModelledModel, expected_tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from page_store import layer_pages

MODEL = ModelledModel(layers=2, vocabulary=50)
GREEDY = SamplingParams(temperature=0.0)
CONTEXT_TOKENS = 512


class Harness:
    """A scheduler machine, and the plans and cuts it sent, carried out one by one on a modelled engine an epoch.

    At a cut only the pages that it calls live cross to the next epoch's engine; all others are garbage there.
    """

    def __init__(self, *, blocks=64, depth=2, limits=None):
        self.machine = SchedulerMachine(limits or SchedulerLimits())
        self.engine = ModelledEngine(MODEL)
        self.sampling = SamplingLedger()
        self.sent: deque[StepPlan | Cut] = deque()
        self.epoch = 0
        self.blocks = {}
        self.tokens: dict[int, list[int]] = {}
        self.finished: dict[int, str] = {}
        self.failed: dict[int, str] = {}
        self.up(blocks=blocks, depth=depth)

    @property
    def steps(self):
        """The plans that were not run yet."""
        return [plan for plan in self.sent if isinstance(plan, StepPlan)]

    def up(self, *, blocks=64, depth=2):
        self.epoch += 1
        self.blocks[self.epoch] = blocks
        self.handle(PipelineUp(self.epoch, depth, blocks, CONTEXT_TOKENS))

    def switch(self, *, blocks=64, depth=2, reprefill=False):
        self.epoch += 1
        self.blocks[self.epoch] = blocks
        return self.handle(PipelineSwitch(self.epoch, depth, blocks, reprefill))

    def handle(self, event):
        instructions = self.machine.handle(event)
        for instruction in instructions:
            match instruction:
                case SendStep(plan):
                    self.sent.append(plan)
                case SendCut(cut):
                    self.sent.append(cut)
                case Deliver(request, token):
                    assert token.index == len(self.tokens[request])
                    assert request not in self.finished
                    self.tokens[request].append(token.token.token_id)
                    if token.finish:
                        self.finished[request] = token.finish
                case Fail(request, kind, _):
                    self.failed[request] = kind
        self.machine.check()
        return instructions

    def submit(self, request, prompt, max_tokens=4, params=GREEDY, stop=()):
        self.tokens[request] = []
        self.handle(Submit(request, GenerationRequest(tuple(prompt), params, max_tokens, stop)))

    def run_step(self):
        """Carry out cuts up to the next plan, and that plan; the plan, None where there is none."""
        while self.sent:
            sent = self.sent.popleft()
            if isinstance(sent, StepPlan):
                return self._run(sent)
            self._cross(sent)
        return None

    def run_all(self):
        while self.run_step() is not None:
            pass

    def _run(self, plan):
        rows = self.sampling.rows(plan)
        output = trio.run(self.engine.run, range(MODEL.atoms), batch_of(plan), None, rows)
        self.sampling.drawn(plan, output.tokens)
        self.handle(StepDone(StepResult(plan.epoch, plan.step, tuple(output.tokens))))
        return plan

    def _cross(self, cut):
        before, self.engine, self.sampling = self.engine, ModelledEngine(MODEL), SamplingLedger()
        trio.run(self._fill, before, np.empty(0, np.int32) if cut.abandon else live_blocks(cut), self.blocks[cut.epoch])

    async def _fill(self, before, live, blocks):
        await self.engine.load(EngineSpec(), range(MODEL.atoms), _ignore)
        await self.engine.reserve(range(MODEL.atoms), blocks)
        pages = [layer_pages(layer, live, page_bytes=PAGE_BYTES) for layer in before.layers if len(live)]
        data = memoryview(bytearray(size_of(pages)))
        checksum = await before.gather_pages(pages, data)
        assert await self.engine.scatter_pages(pages, data, checksum)


def live_blocks(cut):
    """The blocks that requests hold at a cut."""
    return np.flatnonzero(np.unpackbits(np.frombuffer(cut.live, np.uint8), bitorder="little")).astype(np.int32)


async def _ignore(_done, _total):
    return None


def test_a_request_gets_exactly_its_tokens_and_gives_its_blocks_back():
    harness = Harness()
    harness.submit(0, range(40), max_tokens=20)
    harness.run_all()
    assert harness.tokens[0] == expected_tokens(MODEL, range(40), GREEDY, 20)
    assert harness.finished == {0: "length"}
    assert harness.machine.counts().kv_blocks_used == 0


def test_a_long_prompt_is_prefilled_in_chunks_of_the_token_budget():
    harness = Harness(limits=SchedulerLimits(batch=BatchLimits(step_tokens_max=16)))
    harness.submit(0, range(40), max_tokens=1)
    sizes = []
    while (plan := harness.run_step()) is not None:
        sizes.append(len(plan.token_ids) // 4)
    assert sizes == [16, 16, 8]
    assert harness.tokens[0] == expected_tokens(MODEL, range(40), GREEDY, 1)


def test_decoding_rows_go_before_prefill():
    harness = Harness(depth=1, limits=SchedulerLimits(batch=BatchLimits(step_tokens_max=8)))
    harness.submit(0, [1], max_tokens=10)
    harness.submit(1, range(30), max_tokens=1)
    harness.run_step()
    plan = harness.steps[0]
    assert plan.requests == (0, 1)
    assert np.frombuffer(plan.row_starts, np.int32).tolist() == [0, 1, 8]


def test_depth_steps_are_under_way_and_a_request_is_in_one_of_them():
    harness = Harness(depth=3)
    for request in range(6):
        harness.submit(request, [request, 2, 3], max_tokens=8)
    for _ in range(6):
        harness.run_step()
    assert len(harness.steps) == 3
    under_way = [request for plan in harness.steps for request in plan.requests]
    assert len(under_way) == len(set(under_way)) == 6


def test_a_stop_token_ends_a_request_and_is_delivered():
    first = expected_tokens(MODEL, [5, 6], GREEDY, 3)
    harness = Harness()
    harness.submit(0, [5, 6], max_tokens=10, stop=(first[1],))
    harness.run_all()
    assert harness.tokens[0] == first[:2]
    assert harness.finished == {0: "stop"}


def test_when_blocks_run_out_the_youngest_is_preempted_and_loses_nothing():
    harness = Harness(blocks=8, depth=1)
    harness.submit(0, range(30), max_tokens=70)
    harness.submit(1, range(40, 70), max_tokens=60)
    harness.run_all()
    assert harness.machine.counts().preemptions > 0
    assert harness.tokens[0] == expected_tokens(MODEL, range(30), GREEDY, 70)
    assert harness.tokens[1] == expected_tokens(MODEL, range(40, 70), GREEDY, 60)


def test_a_request_that_can_never_fit_is_refused_at_once():
    harness = Harness(blocks=4)
    harness.submit(0, range(60), max_tokens=10)
    assert harness.failed == {0: "too_long"}
    assert not harness.steps


def test_a_full_queue_refuses_and_changes_nothing():
    harness = Harness(depth=1, limits=SchedulerLimits(queue_requests_max=1, running_requests_max=1))
    for request in range(3):
        harness.submit(request, [1, 2], max_tokens=2)
    assert harness.failed == {2: "overloaded"}
    harness.run_all()
    assert harness.finished == {0: "length", 1: "length"}


def test_cancelling_a_waiting_request_forgets_it():
    harness = Harness(depth=1, limits=SchedulerLimits(running_requests_max=1))
    harness.submit(0, [1], max_tokens=2)
    harness.submit(1, [2], max_tokens=2)
    harness.handle(Cancel(1))
    harness.run_all()
    assert harness.tokens[1] == []


def test_cancelling_a_request_in_a_step_waits_for_the_step_and_frees_its_blocks():
    harness = Harness()
    harness.submit(0, range(20), max_tokens=5)
    harness.handle(Cancel(0))
    assert harness.machine.counts().kv_blocks_used > 0
    harness.run_all()
    assert harness.tokens[0] == []
    assert harness.machine.counts().kv_blocks_used == 0


def test_a_request_that_another_scheduler_gave_away_goes_on_from_its_tokens_past_a_full_queue():
    harness = Harness(limits=SchedulerLimits(queue_requests_max=1, running_requests_max=1))
    harness.submit(0, [5, 6], max_tokens=3)
    harness.submit(1, [7], max_tokens=3)
    params = SamplingParams(seed=3, presence_penalty=1.0)
    whole = expected_tokens(MODEL, [1, 2, 3], params, 9)
    harness.tokens[2] = whole[:4]
    harness.handle(Submit(2, GenerationRequest((1, 2, 3), params, 9), tuple(whole[:4])))
    harness.submit(3, [8], max_tokens=3)
    assert harness.failed == {3: "overloaded"}
    harness.run_all()
    assert harness.tokens[2] == whole
    assert harness.finished[2] == "length"


def test_cancelling_an_unknown_request_does_nothing():
    harness = Harness()
    assert harness.handle(Cancel(99)) == []


def test_a_lost_pipeline_fails_every_request_and_a_late_result_is_ignored():
    harness = Harness()
    harness.submit(0, [1, 2], max_tokens=5)
    plan = harness.steps[0]
    harness.handle(PipelineDown("stage_lost", "stage 1 was lost"))
    assert harness.failed == {0: "stage_lost"}
    assert harness.handle(StepDone(StepResult(plan.epoch, plan.step, (SampledToken(1),)))) == []
    harness.submit(1, [1], max_tokens=1)
    assert harness.failed[1] == "not_ready"


def test_an_epoch_after_a_lost_pipeline_serves_again():
    harness = Harness()
    harness.handle(PipelineDown("stage_lost", "gone"))
    harness.sent.clear()
    harness.up()
    harness.submit(1, [1, 2], max_tokens=3)
    harness.run_all()
    assert harness.tokens[1] == expected_tokens(MODEL, [1, 2], GREEDY, 3)


@pytest.mark.parametrize(
    "event",
    [
        StepDone(StepResult(1, 77, ())),
        PipelineUp(2, 1, 8, 100),
        Submit(0, GenerationRequest((1,), GREEDY, 1)),
    ],
    ids=["an answer to no plan", "a second pipeline", "a request submitted twice"],
)
def test_an_illegal_event_raises_and_changes_nothing(event):
    harness = Harness()
    harness.submit(0, [1, 2], max_tokens=5)
    before = harness.machine.counts()
    with pytest.raises(SchedulerError):
        harness.machine.handle(event)
    assert harness.machine.counts() == before
    harness.run_all()
    assert harness.tokens[0] == expected_tokens(MODEL, [1, 2], GREEDY, 5)


# --- from one epoch to the next ---


def test_at_a_cut_requests_go_on_with_the_blocks_they_hold():
    harness = Harness(depth=1)
    harness.submit(0, range(40), max_tokens=20)
    harness.submit(1, range(5), max_tokens=20, params=SamplingParams(seed=4, presence_penalty=1.0))
    for _ in range(6):
        harness.run_step()
    cut = next(sent for sent in (*harness.sent, *cuts_of(harness.switch(depth=3))) if isinstance(sent, Cut))
    assert len(live_blocks(cut)) == harness.machine.counts().kv_blocks_used > 0
    assert not cut.abandon
    harness.run_all()
    assert harness.tokens[0] == expected_tokens(MODEL, range(40), GREEDY, 20)
    assert harness.tokens[1] == expected_tokens(MODEL, range(5), SamplingParams(seed=4, presence_penalty=1.0), 20)
    assert harness.machine.counts().reprefills == 0


def cuts_of(instructions):
    return [instruction.cut for instruction in instructions if isinstance(instruction, SendCut)]


def test_steps_before_a_cut_are_of_the_old_epoch_and_steps_after_it_of_the_new():
    harness = Harness(depth=2)
    for request in range(4):
        harness.submit(request, [request, 2], max_tokens=10)
    harness.run_step()
    harness.switch()
    epochs, numbers = [], []
    while harness.sent:
        sent = harness.sent[0]
        if isinstance(sent, Cut):
            assert sent.step == numbers[-1] + 1
            epochs.append("cut")
            harness.sent.popleft()
            harness._cross(sent)
        else:
            numbers.append(sent.step)
            epochs.append(sent.epoch)
            harness.run_step()
    before, after = epochs[: epochs.index("cut")], epochs[epochs.index("cut") + 1 :]
    assert (set(before), set(after)) == ({1}, {2})
    assert numbers == sorted(set(numbers))


def test_a_change_that_computes_kv_again_waits_for_the_steps_under_way_and_plans_none_meanwhile():
    harness = Harness(depth=2)
    for request in range(2):
        harness.submit(request, range(request, 20), max_tokens=8)
    for _ in range(4):
        harness.run_step()
    under_way = len(harness.steps)
    assert under_way > 0
    assert harness.switch(reprefill=True) == []
    for _ in range(under_way):
        assert harness.machine.counts().epoch == 1
        harness.run_step()
    assert harness.machine.counts().epoch == 2
    assert harness.machine.counts().reprefills == 2
    harness.run_all()
    for request in range(2):
        assert harness.tokens[request] == expected_tokens(MODEL, range(request, 20), GREEDY, 8)


def test_a_cut_to_fewer_blocks_preempts_whoever_holds_one_that_will_not_be_there():
    harness = Harness(blocks=20, depth=1)
    for request in range(3):
        harness.submit(request, range(request, 60), max_tokens=30)
    for _ in range(5):
        harness.run_step()
    assert harness.machine.beyond(7) > 0
    harness.switch(blocks=7, depth=1)
    harness.run_all()
    assert harness.machine.counts().preemptions > 0
    assert harness.machine.counts().kv_blocks == 7
    for request in range(3):
        assert harness.tokens[request] == expected_tokens(MODEL, range(request, 60), GREEDY, 30)


def test_a_limit_on_blocks_preempts_their_holders_until_it_is_lifted():
    harness = Harness(blocks=20, depth=1)
    for request in range(3):
        harness.submit(request, range(request, 60), max_tokens=30)
    harness.run_step()
    harness.handle(LimitBlocks(7))
    for _ in range(4):
        harness.run_step()
    assert harness.machine.beyond(7) == 0
    assert harness.machine.counts().kv_blocks_used <= 7
    harness.handle(LimitBlocks(None))
    harness.run_step()
    assert harness.machine.counts().kv_blocks_used > 7
    harness.run_all()
    for request in range(3):
        assert harness.tokens[request] == expected_tokens(MODEL, range(request, 60), GREEDY, 30)


def test_a_request_that_an_epoch_in_the_making_could_not_hold_is_refused_from_the_room_check_on():
    harness = Harness(blocks=64, depth=1)
    harness.submit(0, range(20), max_tokens=8)
    harness.handle(LimitBlocks(2))
    harness.submit(1, range(40), max_tokens=6)  # between the room check and the cut
    harness.submit(2, range(20), max_tokens=12)
    harness.switch(blocks=2)
    harness.run_all()
    assert harness.failed == {1: "too_long"}
    assert harness.finished == {0: "length", 2: "length"}


@pytest.mark.parametrize("end", ["lifted", "broken"])
def test_an_epoch_that_will_not_be_limits_no_request(end):
    harness = Harness(blocks=64)
    harness.handle(LimitBlocks(2))
    assert harness.machine.context_tokens == 32
    harness.handle(LimitBlocks(None) if end == "lifted" else PipelineInterrupted("a worker was lost"))
    harness.submit(0, range(40), max_tokens=6)
    assert harness.failed == {}


def test_a_recovery_with_fewer_blocks_limits_requests_that_come_while_it_is_made():
    harness = Harness(blocks=64)
    harness.handle(PipelineInterrupted("a worker was lost"))
    harness.sent.clear()
    harness.handle(LimitBlocks(2))
    harness.submit(0, range(40), max_tokens=6)
    harness.submit(1, range(20), max_tokens=6)
    assert harness.failed == {0: "too_long"}
    harness.up(blocks=2)
    harness.run_all()
    assert harness.finished == {1: "length"}


def test_the_same_epoch_told_twice_changes_nothing():
    harness = Harness()
    assert harness.handle(PipelineUp(1, 2, 64, CONTEXT_TOKENS)) == []
    harness.submit(0, [1, 2], max_tokens=3)
    harness.switch()
    assert harness.handle(PipelineSwitch(2, 2, 64, reprefill=False)) == []
    assert harness.handle(PipelineSwitch(1, 2, 64, reprefill=False)) == []
    harness.run_all()
    assert harness.tokens[0] == expected_tokens(MODEL, [1, 2], GREEDY, 3)


# --- a broken pipeline ---


def test_an_interrupted_pipeline_loses_no_request_and_repeats_no_token():
    harness = Harness()
    params = SamplingParams(seed=9, presence_penalty=1.0)
    harness.submit(0, range(40), max_tokens=20, params=params)
    for _ in range(8):
        harness.run_step()
    delivered = len(harness.tokens[0])
    assert delivered > 0
    harness.handle(PipelineInterrupted("worker 1 was lost"))
    assert harness.machine.counts().kv_blocks_used == 0
    harness.sent.clear()
    harness.up(blocks=30)
    assert isinstance(harness.sent[0], Cut)
    assert harness.sent[0].abandon
    harness.run_all()
    assert harness.tokens[0] == expected_tokens(MODEL, range(40), params, 20)
    assert harness.failed == {}
    assert harness.machine.counts().reprefills == 1


def test_a_pipeline_that_comes_up_again_with_less_room_ends_what_it_cannot_hold_and_nothing_else():
    harness = Harness()
    harness.submit(0, range(40), max_tokens=200)
    harness.submit(1, range(20), max_tokens=20)
    for _ in range(4):
        harness.run_step()
    harness.handle(PipelineInterrupted("worker 1 was lost"))
    harness.up(blocks=8)
    assert harness.failed == {0: "stage_lost"}
    harness.run_all()
    assert set(harness.failed) == {0}
    assert harness.tokens[1] == expected_tokens(MODEL, range(20), SamplingParams(temperature=0.0), 20)


def test_a_broken_pipeline_takes_requests_that_wait_for_it():
    harness = Harness()
    harness.handle(PipelineInterrupted("worker 1 was lost"))
    harness.submit(0, [1, 2], max_tokens=3)
    assert (harness.failed, harness.steps) == ({}, [])
    harness.up()
    harness.run_all()
    assert harness.tokens[0] == expected_tokens(MODEL, [1, 2], GREEDY, 3)


def test_a_result_of_a_pipeline_that_broke_is_ignored_before_and_after_the_next_is_up():
    harness = Harness()
    harness.submit(0, [1, 2], max_tokens=3)
    late = StepDone(StepResult(1, harness.steps[0].step, (SampledToken(1),)))
    harness.handle(PipelineInterrupted("worker 1 was lost"))
    harness.sent.clear()
    assert harness.handle(late) == []
    harness.up()
    assert harness.handle(late) == []
    harness.run_all()
    assert harness.tokens[0] == expected_tokens(MODEL, [1, 2], GREEDY, 3)


def test_a_request_cancelled_in_a_step_ends_with_the_pipeline_that_ran_it():
    harness = Harness()
    harness.submit(0, [1, 2], max_tokens=3)
    harness.handle(Cancel(0))
    harness.handle(PipelineInterrupted("worker 1 was lost"))
    harness.sent.clear()
    harness.up()
    harness.run_all()
    assert harness.tokens[0] == []
    assert harness.machine.counts().waiting == 0


def test_a_change_that_a_break_overtakes_is_forgotten():
    harness = Harness(depth=2)
    harness.submit(0, range(20), max_tokens=5)
    harness.switch(reprefill=True)
    harness.handle(PipelineInterrupted("worker 1 was lost"))
    harness.sent.clear()
    harness.up(blocks=40)
    harness.run_all()
    assert harness.machine.counts().epoch == 3
    assert harness.tokens[0] == expected_tokens(MODEL, range(20), GREEDY, 5)


def test_a_pipeline_given_up_while_it_was_broken_fails_who_waited():
    harness = Harness()
    harness.submit(0, [1, 2], max_tokens=3)
    harness.handle(PipelineInterrupted("worker 1 was lost"))
    harness.handle(PipelineDown("stage_lost", "given up"))
    assert harness.failed == {0: "stage_lost"}
    assert harness.machine.counts().lost == 1


REQUESTS = st.tuples(
    st.integers(1, 60),
    st.integers(1, 30),
    st.sampled_from([GREEDY, SamplingParams(seed=3), SamplingParams(temperature=0.0, presence_penalty=1.0)]),
)
CHANGES = ("break", "switch", "recompute", "limit")


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(REQUESTS, min_size=1, max_size=8),
    order=st.lists(st.sampled_from(["submit", *["step"] * 4, "cancel", *CHANGES]), max_size=80),
    sizes=st.lists(st.integers(7, 20), min_size=1, max_size=5),
    depth=st.integers(1, 4),
    budget=st.integers(1, 40),
)
def test_whatever_the_order_of_events_every_token_is_right_and_no_block_is_lost(requests, order, sizes, depth, budget):
    limits = SchedulerLimits(running_requests_max=4, batch=BatchLimits(step_tokens_max=budget))
    blocks = cycle(sizes)
    harness = Harness(blocks=next(blocks), depth=depth, limits=limits)
    pending = deque(enumerate(requests))
    cancelled = set()
    for action in [*order, *["submit"] * len(requests)]:
        if action == "submit" and pending:
            request, (prompt, count, params) = pending.popleft()
            harness.submit(request, range(request, request + prompt), count, params)
        elif action == "step":
            harness.run_step()
        elif action == "cancel" and harness.tokens:
            victim = max(harness.tokens)
            harness.handle(Cancel(victim))
            cancelled.add(victim)
        elif action in CHANGES:
            change(harness, action, next(blocks), depth)
    if harness.machine.counts().epoch < 0:
        harness.up(blocks=next(blocks), depth=depth)
    harness.handle(LimitBlocks(None))
    harness.run_all()
    for request, (prompt, count, params) in enumerate(requests):
        truth = expected_tokens(MODEL, range(request, request + prompt), params, count)
        got = harness.tokens[request]
        assert got == (truth[: len(got)] if request in cancelled else truth)
    assert harness.failed == {}
    assert harness.machine.counts().kv_blocks_used == 0
    assert len(harness.sampling) <= len(requests)


def change(harness, action, blocks, depth):
    """Let the pipeline break, come up or change, where that is possible."""
    if harness.machine.counts().epoch < 0:
        harness.up(blocks=blocks, depth=depth)
    elif action == "break":
        harness.handle(PipelineInterrupted("a worker was lost"))
        harness.sent.clear()
    elif action == "limit":
        harness.handle(LimitBlocks(min(blocks, harness.machine.counts().kv_blocks)))
    else:
        harness.switch(blocks=blocks, depth=depth, reprefill=action == "recompute")
