"""Where a request's time goes."""

from flexpipe.actors.request_times import STALL_RATIO, RequestTimes


def test_each_second_is_counted_once_where_it_was_spent():
    times = RequestTimes(10.0)
    assert times.planned(7, 11.0)  # 1 s in the queue
    assert not times.planned(8, 12.0)
    assert times.token(13.0) == (True, 0.0)  # 2 s of prefill
    assert times.token(14.0) == (False, 0.0)
    times.requeued(14.5)  # 1.5 s of decode
    assert times.planned(20, 16.5)  # 2 s in the queue
    assert times.token(17.0)[0]  # 0.5 s of prefill
    ended = times.ended(18.0)  # 1 s of decode
    assert ended == {
        "queue_s": 3.0,
        "prefill_s": 2.5,
        "decode_s": 2.5,
        "gap_s_max": 3.0,
        "first_step": 7,
        "steps": 3,
        "requeues": 1,
    }


def test_a_token_that_comes_much_later_than_usual_is_a_stall_and_no_part_of_what_is_usual():
    times = RequestTimes(0.0)
    times.planned(0, 0.0)
    for index in range(6):
        assert times.token(index * 0.1) == (index == 0, 0.0)
    now_s = 0.5
    for _ in range(2):
        now_s += 1.1 * STALL_RATIO * 0.1
        assert times.token(now_s)[1] > STALL_RATIO * 0.1
    assert times.token(now_s + 0.15)[1] == 0.0


def test_a_request_that_is_always_slow_has_no_stalls():
    times = RequestTimes(0.0)
    times.planned(0, 0.0)
    assert {times.token(index * 3.0)[1] for index in range(50)} == {0.0}


def test_a_request_that_was_never_admitted_waited_all_its_time():
    assert RequestTimes(1.0).ended(3.5) == {
        "queue_s": 2.5,
        "prefill_s": 0.0,
        "decode_s": 0.0,
        "gap_s_max": 0.0,
        "first_step": -1,
        "steps": 0,
        "requeues": 0,
    }
