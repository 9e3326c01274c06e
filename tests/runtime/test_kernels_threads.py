"""The pool: every chunk runs once, on any number of threads, and idle threads sleep."""

import multiprocessing
import threading
import time

import numpy as np
import pytest
from flexpipe.runtime.kernels import compiler
from flexpipe.runtime.kernels.machine import atomic_add
from flexpipe.runtime.kernels.threads import get_threads, pool, set_threads


@compiler.task
def _count_chunk(arguments, chunk, thread):
    atomic_add(arguments + 8 * chunk, 1)
    atomic_add(arguments + 8 * (1000 + thread), 1)


@pytest.fixture(autouse=True)
def _threads_as_before():
    before = get_threads()
    yield
    set_threads(before)


def _run(chunks):
    counts = np.zeros(1100, np.int64)
    with pool.lock:
        pool.run(_count_chunk, counts.ctypes.data, chunks)
    return counts


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_chunk_runs_exactly_once(threads):
    set_threads(threads)
    for chunks in [0, 1, 2, 3, 100, 1000] * 20:
        counts = _run(chunks)
        assert (counts[:chunks] == 1).all()
        assert counts[chunks:1000].sum() == 0
        assert counts[1000 + threads :].sum() == 0


def test_the_pool_grows_and_shrinks():
    for threads in [3, 1, 4, 2]:
        set_threads(threads)
        assert get_threads() == threads
        assert sum(thread.name.startswith("kernel-") for thread in threading.enumerate()) == threads - 1
        assert (_run(64)[:64] == 1).all()


def test_no_threads_are_refused():
    with pytest.raises(ValueError, match="at least one thread"):
        set_threads(0)


def test_sleeping_workers_wake_for_work():
    set_threads(3)
    for _ in range(20):
        pool.wait_asleep()
        assert (_run(64)[:64] == 1).all()


def test_sleeping_workers_use_no_time():
    set_threads(3)
    _run(64)
    pool.wait_asleep()
    before = time.process_time()
    threading.Event().wait(0.2)
    assert time.process_time() - before < 0.1


def test_calls_from_several_threads_take_turns():
    set_threads(2)
    results = []
    callers = [threading.Thread(target=lambda: results.extend(_run(50)[:50] for _ in range(50))) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(results) == 200
    assert all((counts == 1).all() for counts in results)


def _in_child(results):
    results.put((get_threads(), bool((_run(10)[:10] == 1).all())))


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_forked_child_starts_over_with_one_thread():
    set_threads(3)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=_in_child, args=(results,))
    child.start()
    assert results.get(timeout=20) == (1, True)
    child.join()
