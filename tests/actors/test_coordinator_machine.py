"""The coordinator's decisions: the dialogue of a change, and what every failure at every point of it leads to."""

import flexpipe.actors.coordinator_events as c
import pytest
from flexpipe.actors.change import ChangePhase
from flexpipe.actors.coordinator_events import CoordinatorError, PipelineState
from flexpipe.actors.messages import Abort, HandoffFailed, Loaded, Open, Prepare, StageFailed
from flexpipe.actors.pipeline_spec import CoordinatorLimits
from flexpipe.actors.refactor import RefactorRefusedError
from flexpipe.runtime.interface import EngineSpec
from modelled_house import House, facts, placements

OLD_ONLY, BOTH, NEW_ONLY = 1, 0, 2
"""The workers of the change that most tests here make: stages at 0 and 1 become stages at 0 and 2."""
BEFORE_COMMIT = (ChangePhase.LOADING, ChangePhase.ROOM, ChangePhase.OPENING)
AFTER_COMMIT = (ChangePhase.SWITCHING, ChangePhase.RELEASING, ChangePhase.CLOSING)
FORWARD = (ChangePhase.PLANNING, *BEFORE_COMMIT, ChangePhase.COMMITTING, *AFTER_COMMIT)


def by_name(phase):
    return phase.value


def changing(phase, **options):
    """A house whose change to stages at 0 and 2 is in ``phase``."""
    house = House(**options).served()
    house.refactor((4,), (BOTH, NEW_ONLY))
    house.advance_to(phase)
    return house


def recover(house):
    """Let the pause pass, and everything settle."""
    house.settle()
    assert house.machine.state is PipelineState.WAITING
    house.fire("recover")
    house.settle()


def check_serving(house, epoch, workers):
    """It serves ``epoch`` at ``workers``, and no other worker is left."""
    assert house.machine.state is PipelineState.SERVING
    assert house.machine.reason == ""
    assert house.machine.change is None
    assert house.machine.epoch == house.scheduler_epoch == epoch
    assert house.machine.route.workers == workers
    assert set(house.inbox) == set(workers)
    committed = house.journal.committed
    assert (committed.epoch, committed.workers) == (epoch, workers)
    assert house.journal.released


# --- the dialogue ---


def test_a_start_is_a_change_from_nothing():
    house = House().served()
    check_serving(house, 1, (0, 1))
    assert house.records == [("planned", 1), ("commit", 1), ("released", 1)]
    assert [done for done in house.done if isinstance(done, c.BringUp)] == [c.BringUp(house.machine.route, 64)]


def test_a_live_change_goes_through_its_phases_in_order_and_lets_the_old_worker_leave_gracefully():
    house = House().served()
    house.done.clear()
    house.records.clear()
    house.refactor((4,), (BOTH, NEW_ONLY))
    house.settle()
    check_serving(house, 2, (BOTH, NEW_ONLY))
    phases = [done.phase for done in house.done if isinstance(done, c.Begun)]
    assert phases == ["plan", "load", "copy", "commit", "switch", "release"]
    assert house.records == [("planned", 2), ("commit", 2), ("released", 2)]
    assert house.ended[2] == c.Ended(2, "", "")
    (retired,) = [done for done in house.done if isinstance(done, c.RetireWorker)]
    assert (retired.worker, retired.kill) == (OLD_ONLY, False)
    assert not any(isinstance(done, c.Interrupt) for done in house.done)


def test_new_workers_start_one_after_another_where_others_serve_and_all_at_once_where_nobody_does():
    house = House().served()
    assert house.coming_at_most == 2
    house.coming_at_most = 0
    house.refactor((3, 6, 9), (BOTH, 2, 3, 4))
    house.settle()
    check_serving(house, 2, (BOTH, 2, 3, 4))
    assert house.coming_at_most == 1


def test_every_worker_is_told_of_the_pages_that_it_gives_or_takes():
    house = changing(ChangePhase.OPENING)
    opens = {
        done.worker: done.message
        for done in house.done
        if isinstance(done, c.TellWorker) and isinstance(done.message, Open) and done.message.epoch == 2
    }
    assert set(opens) == {OLD_ONLY, BOTH, NEW_ONLY}
    moves = {(move.donor, move.acquirer): move.layers for opened in opens.values() for move in opened.transfers}
    assert moves == {(BOTH, NEW_ONLY): (2,), (OLD_ONLY, NEW_ONLY): (3, 4, 5)}
    assert len(opens[NEW_ONLY].transfers) == 2
    assert opens[NEW_ONLY].upstream == opens[BOTH].downstream is not None
    assert (opens[OLD_ONLY].upstream, opens[OLD_ONLY].downstream) == (None, None)


@pytest.mark.parametrize(
    ("strategy", "transfers", "precopy", "reprefill"),
    [("precopy", True, True, False), ("stop-copy", True, False, False), ("recompute", False, False, True)],
)
def test_a_strategy_says_whether_pages_move_and_when(strategy, transfers, precopy, reprefill):
    house = House().served()
    house.refactor((4,), (BOTH, NEW_ONLY), strategy)
    house.advance_to(ChangePhase.OPENING)
    opened = house.machine.change.opens[NEW_ONLY]
    assert (bool(opened.transfers), opened.precopy) == (transfers, precopy)
    house.settle()
    (switch,) = [done for done in house.done if isinstance(done, c.SwitchOver)]
    assert switch.reprefill == reprefill
    check_serving(house, 2, (BOTH, NEW_ONLY))


def test_a_restart_kills_first_and_loads_then():
    house = House().served()
    instructions = house.refactor((4, 8), (2, 3, 4), "restart")
    assert isinstance(instructions[0], c.Interrupt)
    assert [done.kill for done in instructions if isinstance(done, c.RetireWorker)] == [True, True]
    house.settle()
    check_serving(house, 2, (2, 3, 4))


def test_a_restart_that_fails_brings_the_old_shape_up_again():
    house = House().served()
    house.refactor((4, 8), (2, 3, 4), "restart")
    house.advance_to(ChangePhase.LOADING)
    house.kill(3)
    recover(house)
    assert house.ended[2].reason == "aborted"
    assert [stage.first_atom for stage in house.machine.route.stages] == [0, 6]


# --- what fails before the decision ---


@pytest.mark.parametrize("phase", BEFORE_COMMIT, ids=by_name)
@pytest.mark.parametrize("failure", ["a worker that cannot", "a new worker that dies", "time"])
def test_before_the_decision_a_failure_is_an_abort_that_the_old_stages_do_not_notice(phase, failure):
    house = changing(phase)
    house.done.clear()
    if failure == "time":
        house.fire("prepare")
    elif failure == "a worker that cannot":
        house.say(HandoffFailed(2, BOTH, "no room"))
    else:
        house.kill(NEW_ONLY)
    house.settle()
    assert house.ended[2].reason == "aborted"
    told_scheduler = [
        done for done in house.done if isinstance(done, c.Interrupt | c.SwitchOver | c.TakeDown | c.BringUp)
    ]
    assert told_scheduler == []
    assert house.journal.committed.epoch == 1
    assert set(house.inbox) == {OLD_ONLY, BOTH}
    house.refactor((4,), (BOTH, house.machine.roster.next_worker))
    house.settle()
    check_serving(house, 3, (BOTH, 3))


@pytest.mark.parametrize("phase", [ChangePhase.PLANNING, *BEFORE_COMMIT], ids=by_name)
@pytest.mark.parametrize("worker", [OLD_ONLY, BOTH], ids=["old-only", "both"])
def test_before_the_decision_the_loss_of_a_serving_worker_aborts_and_restores_the_old_route(phase, worker):
    house = changing(phase)
    house.kill(worker)
    assert house.ended[2].reason == "aborted"
    assert house.scheduler_epoch == -1
    recover(house)
    replaced = {0: 0, 1: 1, worker: house.machine.roster.next_worker - 1}
    check_serving(house, 3, (replaced[0], replaced[1]))
    assert [stage.first_atom for stage in house.machine.route.stages] == [0, 6]


# --- what fails while the decision is being written ---


@pytest.mark.parametrize("worker", [OLD_ONLY, BOTH, NEW_ONLY], ids=["old-only", "both", "new-only"])
def test_a_loss_while_the_decision_is_written_waits_for_the_disk_and_then_restores_the_new_route(worker):
    house = changing(ChangePhase.COMMITTING)
    house.kill(worker)
    assert 2 not in house.ended
    house.write()
    assert house.ended[2].reason == "recovered"
    assert not any(isinstance(done, c.SwitchOver) for done in house.done)
    recover(house)
    assert [stage.first_atom for stage in house.machine.route.stages] == [0, 4]
    assert house.machine.state is PipelineState.SERVING
    assert set(house.inbox) == set(house.machine.route.workers)


@pytest.mark.parametrize("worker", [OLD_ONLY, BOTH], ids=["old-only", "both"])
def test_a_loss_while_the_decision_is_written_and_the_disk_fails_restores_the_old_route(worker):
    house = changing(ChangePhase.COMMITTING)
    house.kill(worker)
    house.write("the disk is full")
    assert house.ended[2].reason == "aborted"
    recover(house)
    assert [stage.first_atom for stage in house.machine.route.stages] == [0, 6]


def test_a_worker_that_fails_after_its_vote_waits_for_the_disk_too():
    house = changing(ChangePhase.COMMITTING)
    house.say(HandoffFailed(2, OLD_ONLY, "its link broke"))
    assert 2 not in house.ended
    house.write()
    assert house.ended[2] == c.Ended(2, "recovered", "worker 1: its link broke")
    recover(house)
    check_serving(house, 3, (BOTH, NEW_ONLY))


def test_a_new_worker_lost_while_the_decision_cannot_be_written_is_an_abort():
    house = changing(ChangePhase.COMMITTING)
    house.kill(NEW_ONLY)
    house.write("the disk is full")
    house.settle()
    assert house.ended[2].reason == "aborted"
    assert (house.machine.state, house.scheduler_epoch) == (PipelineState.SERVING, 1)


# --- what fails after it ---


@pytest.mark.parametrize("phase", AFTER_COMMIT, ids=by_name)
@pytest.mark.parametrize("worker", [BOTH, NEW_ONLY], ids=["both", "new-only"])
def test_after_the_decision_the_loss_of_a_worker_restores_the_new_route(phase, worker):
    house = changing(phase)
    house.kill(worker)
    assert house.ended[2].reason == "recovered"
    recover(house)
    assert [stage.first_atom for stage in house.machine.route.stages] == [0, 4]
    assert house.machine.epoch == 3
    assert set(house.inbox) == set(house.machine.route.workers)


def test_a_donor_lost_before_it_gave_its_last_pages_is_a_recovery():
    house = changing(ChangePhase.SWITCHING)
    house.kill(OLD_ONLY)
    assert house.ended[2].reason == "recovered"
    recover(house)
    check_serving(house, 3, (BOTH, NEW_ONLY))


def test_a_donor_lost_after_it_gave_all_is_no_loss():
    house = changing(ChangePhase.SWITCHING)
    house.answer(OLD_ONLY)
    house.kill(OLD_ONLY)
    house.settle()
    assert house.ended[2].reason == ""
    check_serving(house, 2, (BOTH, NEW_ONLY))


@pytest.mark.parametrize("phase", [ChangePhase.RELEASING, ChangePhase.CLOSING], ids=by_name)
def test_the_end_of_a_donor_that_was_let_go_is_expected(phase):
    house = changing(phase)
    if OLD_ONLY in house.inbox:
        house.kill(OLD_ONLY)
    house.settle()
    check_serving(house, 2, (BOTH, NEW_ONLY))


def test_workers_that_do_not_cross_in_time_are_killed_and_replaced():
    house = changing(ChangePhase.SWITCHING)
    house.answer(BOTH)
    house.answer(OLD_ONLY)
    house.fire("switch")
    assert house.ended[2].reason == "recovered"
    assert NEW_ONLY in house.going
    recover(house)
    check_serving(house, 3, (BOTH, 3))


# --- the disk ---


def test_a_plan_that_cannot_be_written_changes_nothing():
    house = changing(ChangePhase.PLANNING)
    house.write("the disk is full")
    house.settle()
    assert house.ended[2] == c.Ended(2, "aborted", "the plan could not be written down: the disk is full")
    assert (house.machine.epoch, set(house.inbox)) == (1, {0, 1})


def test_a_decision_that_cannot_be_written_is_none():
    house = changing(ChangePhase.COMMITTING)
    house.write("the disk is full")
    house.settle()
    assert house.ended[2].reason == "aborted"
    check_serving(house, 1, (0, 1))


def test_a_release_that_cannot_be_written_is_written_again():
    house = changing(ChangePhase.CLOSING)
    house.write("the disk is full")
    assert 2 not in house.ended
    house.fire("resend")
    house.settle()
    check_serving(house, 2, (BOTH, NEW_ONLY))


# --- stop ---


@pytest.mark.parametrize("phase", [*FORWARD, ChangePhase.ABORTING], ids=by_name)
def test_a_stop_in_any_phase_lets_every_worker_go_and_finishes(phase):
    house = changing(ChangePhase.OPENING if phase is ChangePhase.ABORTING else phase)
    if phase is ChangePhase.ABORTING:
        house.say(HandoffFailed(2, BOTH, "no room"))
    house.handle(c.Stop())
    house.settle()
    assert house.done[-1] == c.Finish(False, "every worker left")
    assert (house.machine.state, house.inbox) == (PipelineState.STOPPED, {})
    assert house.handle(c.Stop()) == []


def test_a_stop_drains_workers_that_serve_and_kills_those_of_a_broken_pipeline():
    for broken in (False, True):
        house = House().served()
        if broken:
            house.kill(0)
        instructions = house.handle(c.Stop())
        assert {done.kill for done in instructions if isinstance(done, c.RetireWorker)} == {broken}


# --- a coordinator that starts anew ---


@pytest.mark.parametrize("phase", [*BEFORE_COMMIT, ChangePhase.COMMITTING], ids=by_name)
def test_a_plan_without_a_decision_is_taken_back_by_the_next_coordinator(phase):
    house = changing(phase)
    house.restart()
    house.start()
    house.settle()
    check_serving(house, 1, (0, 1))
    assert ("aborted", 2) in house.records
    house.refactor((4,), (BOTH, house.machine.roster.next_worker))
    house.settle()
    check_serving(house, 3, (BOTH, 3))


def test_the_abort_of_a_plan_that_a_dead_coordinator_left_is_told_until_it_is_answered():
    house = changing(ChangePhase.OPENING)
    house.restart()
    house.start()
    for told in house.inbox.values():
        told.clear()  # every Abort gets lost
    house.settle()
    assert house.machine.change.phase is ChangePhase.ABORTING
    with pytest.raises(RefactorRefusedError, match="epoch 2 is still under way"):
        house.refactor((4,), (BOTH, 3))
    house.fire("resend")
    told = {w: [m.epoch for m in inbox if isinstance(m, Abort)] for w, inbox in house.inbox.items() if inbox}
    assert told == {BOTH: [2], OLD_ONLY: [2]}
    house.settle()
    assert house.ended[2].reason == "aborted"
    check_serving(house, 1, (0, 1))


@pytest.mark.parametrize("told", [False, True], ids=["before", "after"])
def test_a_decision_is_driven_to_its_end_by_a_coordinator_that_starts_before_or_after_the_scheduler_was_told(told):
    house = changing(ChangePhase.SWITCHING if told else ChangePhase.COMMITTING)
    if not told:
        house.write_unheard()
    house.restart()
    house.start()
    house.settle()
    check_serving(house, 2, (BOTH, NEW_ONLY))


@pytest.mark.parametrize("phase", [ChangePhase.RELEASING, ChangePhase.CLOSING], ids=by_name)
def test_a_release_is_finished_by_the_next_coordinator(phase):
    house = changing(phase)
    house.restart()
    house.start()
    house.settle()
    check_serving(house, 2, (BOTH, NEW_ONLY))


def test_a_worker_that_was_let_go_before_the_coordinator_ended_is_not_missed_by_the_next_one():
    house = changing(ChangePhase.RELEASING)
    assert house.going == [OLD_ONLY]
    house.restart()
    house.start()
    house.kill(OLD_ONLY)  # as it was told to
    house.settle()
    assert not any(isinstance(done, c.Interrupt) for done in house.done)
    check_serving(house, 2, (BOTH, NEW_ONLY))


def test_a_coordinator_that_starts_beside_a_serving_pipeline_disturbs_nothing():
    house = House().served()
    house.restart()
    house.done.clear()
    house.start()
    house.settle()
    check_serving(house, 1, (0, 1))
    assert not any(isinstance(done, c.BringUp | c.SwitchOver | c.Interrupt | c.RetireWorker) for done in house.done)
    house.refactor((4,), (BOTH, NEW_ONLY))
    house.settle()
    check_serving(house, 2, (BOTH, NEW_ONLY))


def test_a_coordinator_that_just_started_refuses_changes_until_it_knows_what_the_workers_hold():
    house = House().served()
    house.restart()
    house.start()
    with pytest.raises(RefactorRefusedError, match="has just started"):
        house.refactor((4,), (BOTH, NEW_ONLY))
    house.settle()
    house.refactor((4,), (BOTH, NEW_ONLY))


def test_a_recovery_takes_the_stages_that_can_be_had_and_lets_go_of_a_worker_that_they_lack():
    house = House().served()
    house.replan = lambda _wanted, next_worker: placements((), (next_worker,))
    house.kill(0)
    recover(house)
    check_serving(house, 2, (2,))


def test_a_pipeline_without_devices_waits_for_some_however_long_and_says_so():
    house = House().served()
    house.replan = lambda _wanted, _next_worker: ()
    house.kill(0)
    for _ in range(3 * house.limits.restarts_max):
        recover_in_vain = house.fire("recover")
        assert recover_in_vain == [c.SetTimer("recover", 1, house.limits.devices_pause_s)]
        assert house.machine.reason == "no device is free"
    house.replan = lambda wanted, _next_worker: wanted
    recover(house)
    check_serving(house, 2, (2, 1))


def test_an_answer_about_devices_that_comes_too_late_changes_nothing():
    house = House().served()
    late = c.StagesKnown(1, house.machine.route.stages)
    assert house.handle(late) == []
    house.kill(0)
    recover(house)
    assert house.handle(late) == []
    check_serving(house, 2, (2, 1))


def test_workers_of_a_recovery_that_did_not_come_off_are_killed_by_a_coordinator_that_starts():
    house = House().served()
    house.kill(0)
    house.fire("recover")
    house.advance_to(ChangePhase.LOADING)
    house.kill(1)
    house.write()  # epoch 2 will not be; its new worker waits for the next try
    house.restart()
    house.start()
    recover(house)
    check_serving(house, 3, (3, 4))


def test_workers_that_no_decision_names_are_killed_by_a_coordinator_that_starts():
    house = House()
    house.start()
    house.advance_to(ChangePhase.OPENING)
    house.restart()
    house.start()
    house.settle()
    check_serving(house, 2, (2, 3))


# --- giving up ---


def test_after_failures_without_a_minute_of_service_the_pipeline_is_given_up():
    house = House(limits=CoordinatorLimits(restarts_max=2)).served()
    for _ in range(2):
        house.kill(house.machine.route.workers[0])
        recover(house)
    house.kill(house.machine.route.workers[0])
    house.settle()
    assert house.machine.state is PipelineState.FAILED
    assert isinstance(house.done[-1], c.Finish)
    assert house.done[-1].failed
    assert [done.kind for done in house.done if isinstance(done, c.TakeDown)] == ["stage_lost"]
    assert house.inbox == {}


def test_steady_service_makes_failures_forgotten_and_each_pause_is_twice_the_one_before():
    house = House(limits=CoordinatorLimits(restarts_max=2, restart_pause_s=0.5)).served()
    pauses = []
    for _ in range(4):
        instructions = house.kill(house.machine.route.workers[0])
        pauses.append(next(done.after_s for done in instructions if isinstance(done, c.SetTimer)))
        recover(house)
        if len(pauses) == 2:
            house.fire("steady")
    assert pauses == [0.5, 1.0, 0.5, 1.0]


def test_a_worker_that_says_at_the_first_start_that_it_cannot_ends_it_with_its_own_sentence():
    house = House()
    house.start()
    house.advance_to(ChangePhase.LOADING)
    house.hello(0)
    house.handle(c.WorkerSaid(StageFailed(0, "EngineError", "the weights are cut short")))
    house.settle()
    assert house.done[-1] == c.Finish(True, "worker 0 failed: the weights are cut short")


def test_a_failed_worker_is_counted_once_though_its_process_ends_too():
    house = House().served()
    house.handle(c.WorkerSaid(StageFailed(0, "EngineError", "memory")))
    before = len([done for done in house.done if isinstance(done, c.Interrupt)])
    recover(house)
    assert before == len([done for done in house.done if isinstance(done, c.Interrupt)]) == 1
    check_serving(house, 2, (2, 1))


# --- what is refused ---


@pytest.mark.parametrize(
    ("cuts", "workers", "options", "sentence"),
    [
        ((4,), (0, 2), {"based_on": 7}, "the plan was made for epoch 7; epoch 1 serves now"),
        ((4,), (0, 2), {"strategy": "hope"}, "'hope' is no strategy"),
        ((4,), (0, 0), {}, "a worker would hold two stages"),
        ((4, 4), (0, 1, 2), {}, "stage 1 would hold atoms 4 to 4"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_and_changes_nothing(cuts, workers, options, sentence):
    house = House().served()
    house.done.clear()
    with pytest.raises(RefactorRefusedError, match=sentence):
        house.refactor(cuts, workers, **options)
    assert (house.done, house.machine.highest_epoch) == ([], 1)
    check_serving(house, 1, (0, 1))


def test_a_plan_that_does_not_cover_the_model_is_refused():
    house = House().served()
    short = placements((4,), (0, 2))[:1]
    with pytest.raises(RefactorRefusedError, match="the stages would hold 4 atoms; the model has 12"):
        house.handle(c.Refactor(1, short, "precopy", allow_preempt=False))
    check_serving(house, 1, (0, 1))


@pytest.mark.parametrize("phase", FORWARD, ids=by_name)
def test_a_second_change_is_refused_while_one_is_under_way_and_disturbs_it_not(phase):
    house = changing(phase)
    with pytest.raises(RefactorRefusedError, match="is still under way"):
        house.refactor((8,), (0, 5), based_on=1)
    house.settle()
    check_serving(house, 2, (BOTH, NEW_ONLY))


def test_a_second_start_is_our_bug():
    house = House().served()
    with pytest.raises(CoordinatorError, match="start came while the pipeline was serving"):
        house.start()


# --- room ---


@pytest.mark.parametrize(("room", "sentence"), [((2, 10), "2 running requests"), ((0, 65), "may need 65")])
def test_a_plan_that_would_not_hold_the_requests_is_refused_by_name(room, sentence):
    house = changing(ChangePhase.ROOM)
    house.room = room
    house.settle()
    assert house.ended[2].reason == "aborted"
    assert sentence in house.ended[2].sentence
    check_serving(house, 1, (0, 1))


def test_with_leave_to_preempt_blocks_are_limited_and_the_number_is_told():
    house = House().served()
    house.room = (2, 10)
    house.refactor((4,), (BOTH, NEW_ONLY), allow_preempt=True)
    house.settle()
    assert c.LimitBlocks(64) in house.done
    assert house.ended[2].preempted == 2
    check_serving(house, 2, (BOTH, NEW_ONLY))


@pytest.mark.parametrize("beyond", [0, 2])
def test_the_scheduler_counts_on_the_blocks_of_an_epoch_from_the_room_check_until_it_is_aborted(beyond):
    house = House().served()
    house.room = (beyond, 10)
    house.done.clear()
    house.refactor((4,), (BOTH, NEW_ONLY), allow_preempt=True)
    house.advance_to(ChangePhase.ROOM)
    assert house.know_room()[0] == c.LimitBlocks(64)
    house.kill(NEW_ONLY)
    assert house.done.index(c.LimitBlocks(64)) < house.done.index(c.LimitBlocks(None))


def test_a_coordinator_that_takes_a_plan_back_lifts_its_limit():
    house = changing(ChangePhase.OPENING)
    house.restart()
    assert c.LimitBlocks(None) in house.start()


# --- what is told twice, or not at all ---


def test_answers_that_come_twice_change_nothing():
    house = House().served()
    house.refactor((4,), (BOTH, NEW_ONLY))
    while moves := house.moves():
        worker = next((w for w, told in house.inbox.items() if told and w not in house.coming), None)
        if worker is None or house.writing or house.rooms:
            moves[0]()
        elif (answer := house.answer(worker)) is not None:
            before = len(house.done)
            house.say(answer)
            assert house.done[before:] == []
    check_serving(house, 2, (BOTH, NEW_ONLY))


def test_answers_for_another_epoch_change_nothing():
    house = changing(ChangePhase.LOADING)
    assert house.say(Loaded(9, NEW_ONLY, facts(4, 12))) == []
    assert house.machine.change.phase is ChangePhase.LOADING


@pytest.mark.parametrize("phase", [*BEFORE_COMMIT, ChangePhase.SWITCHING, ChangePhase.RELEASING], ids=by_name)
def test_a_command_that_got_lost_is_sent_again(phase):
    house = changing(phase)
    for told in house.inbox.values():
        told.clear()
    house.crossed.update({(worker, 2) for worker in (OLD_ONLY, BOTH, NEW_ONLY)})
    house.settle()
    for _ in range(4):
        if house.machine.change is not None:
            house.fire("resend")
            house.settle()
    check_serving(house, 2, (BOTH, NEW_ONLY))


def test_a_worker_is_told_what_its_stage_is_on_its_device_with_its_threads():
    house = changing(ChangePhase.LOADING)
    house.hello(NEW_ONLY)
    told = [message for message in house.inbox[NEW_ONLY] if isinstance(message, Prepare)]
    assert told == [Prepare(2, 1, 4, 12, EngineSpec(device="cpu:2", threads=1))]
