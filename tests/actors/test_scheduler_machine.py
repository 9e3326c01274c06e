"""The scheduler's decisions, driven by a modelled pipeline whose KV pages notice any wrong block."""

from collections import deque

import numpy as np
import pytest
import trio
from flexpipe.actors.generation import GenerationRequest
from flexpipe.actors.messages import StepPlan, StepResult
from flexpipe.actors.sampling_ledger import SamplingLedger
from flexpipe.actors.scheduler_machine import (
    Cancel,
    Deliver,
    Fail,
    PipelineDown,
    PipelineUp,
    SchedulerError,
    SchedulerLimits,
    SchedulerMachine,
    SendStep,
    StepDone,
    Submit,
)
from flexpipe.actors.stage import batch_of
from flexpipe.policies.batching import BatchLimits
from flexpipe.runtime.interface import SampledToken, SamplingParams, StageSpec
from flexpipe.sim.modelled_engine import ModelledEngine, ModelledModel, expected_tokens
from hypothesis import given, settings
from hypothesis import strategies as st

MODEL = ModelledModel(layers=2, vocabulary=50)
GREEDY = SamplingParams(temperature=0.0)


class Harness:
    """A scheduler machine, and the steps it planned, run one by one on a modelled engine."""

    def __init__(self, *, blocks=64, depth=2, limits=None):
        self.machine = SchedulerMachine(limits or SchedulerLimits())
        self.engine = ModelledEngine(MODEL)
        self.sampling = SamplingLedger()
        self.steps: deque[StepPlan] = deque()
        self.tokens: dict[int, list[int]] = {}
        self.finished: dict[int, str] = {}
        self.failed: dict[int, str] = {}
        self.up(blocks=blocks, depth=depth)

    def up(self, *, epoch=1, blocks=64, depth=2):
        trio.run(self.engine.load, StageSpec("", "", 0, MODEL.layers), _ignore)
        trio.run(self.engine.reserve, blocks)
        self.handle(PipelineUp(epoch, depth, blocks, context_tokens=512))

    def handle(self, event):
        instructions = self.machine.handle(event)
        for instruction in instructions:
            match instruction:
                case SendStep(plan):
                    self.steps.append(plan)
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
        plan = self.steps.popleft()
        rows = self.sampling.rows(plan)
        output = trio.run(self.engine.run, batch_of(plan), None, rows)
        self.sampling.drawn(plan, output.tokens)
        self.handle(StepDone(StepResult(plan.epoch, plan.step, tuple(output.tokens))))
        return plan

    def run_all(self):
        while self.steps:
            self.run_step()


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
    while harness.steps:
        sizes.append(len(harness.run_step().token_ids) // 4)
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


def test_a_new_epoch_serves_again():
    harness = Harness()
    harness.handle(PipelineDown("stage_lost", "gone"))
    harness.steps.clear()
    harness.sampling = SamplingLedger()
    harness.up(epoch=2)
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


REQUESTS = st.tuples(
    st.integers(1, 60),
    st.integers(1, 30),
    st.sampled_from([GREEDY, SamplingParams(seed=3), SamplingParams(temperature=0.0, presence_penalty=1.0)]),
)


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(REQUESTS, min_size=1, max_size=8),
    order=st.lists(st.sampled_from(["submit", "step", "step", "cancel"]), max_size=80),
    blocks=st.integers(7, 20),
    depth=st.integers(1, 4),
    budget=st.integers(1, 40),
)
def test_whatever_the_order_of_events_every_token_is_right_and_no_block_is_lost(requests, order, blocks, depth, budget):
    limits = SchedulerLimits(running_requests_max=4, batch=BatchLimits(step_tokens_max=budget))
    harness = Harness(blocks=blocks, depth=depth, limits=limits)
    pending = deque(enumerate(requests))
    cancelled = set()
    for action in [*order, *["submit"] * len(requests)]:
        if action == "submit" and pending:
            request, (prompt, count, params) = pending.popleft()
            harness.submit(request, range(request, request + prompt), count, params)
        elif action == "step" and harness.steps:
            harness.run_step()
        elif action == "cancel" and harness.tokens:
            victim = max(harness.tokens)
            harness.handle(Cancel(victim))
            cancelled.add(victim)
    harness.run_all()
    for request, (prompt, count, params) in enumerate(requests):
        truth = expected_tokens(MODEL, range(request, request + prompt), params, count)
        got = harness.tokens[request]
        if request in harness.failed:
            assert harness.failed[request] == "too_long"
        elif request in cancelled:
            assert got == truth[: len(got)]
        else:
            assert got == truth
    assert harness.machine.counts().kv_blocks_used == 0
    assert len(harness.sampling) <= len(requests)
