"""What a forked process does to become a worker: its own cores and files, then a stage actor on real engine and sockets.

It dies with its daemon, whatever kills that, and leaves signals from the terminal to it.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import traceback
from pathlib import Path

import msgspec

from .runtime.interface import ModelFiles


class WorkerOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the daemon asks the fork server for: a worker that connects to ``control`` and computes from ``files``.

    ``purpose`` is what it says there where others come, too. ``cores`` empty: wherever there is room. ``sockets`` is the folder
    where the workers of this node meet, ``keys`` the one with the node's keys, "" where it has none; ``insecure`` as in
    `ZmqTransport.open`.
    """

    number: int
    worker: int
    control: str
    log: str
    errors: str
    cores: tuple[int, ...]
    daemon_pid: int
    files: ModelFiles
    sockets: str
    replica: int = 0
    purpose: str = ""
    keys: str = ""
    insecure: bool = False


def become_worker(order: WorkerOrder) -> int:
    """Live as a worker in this process; its exit code."""
    # It stays in the fork server's session, which has no terminal: Linux shares cores out between sessions before it looks at
    # priorities, so that a thread which stands back (`engine_thread`) would do so for its own process only.
    _redirect(order.errors)
    _die_with(order.daemon_pid)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Ctrl-C reaches the whole group; the daemon drains, we wait for its word.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    all_cores = os.sched_getaffinity(0)
    if order.cores:
        # Before the first thread is made, so that ZeroMQ's and the kernels' threads stay there too; it shortens
        # a hop's tail most (`bench/link.py --pin`).
        os.sched_setaffinity(0, order.cores)
    return _live(order, all_cores)


def _redirect(errors: str) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    output = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(nothing)
    os.close(output)


def _die_with(daemon_pid: int) -> None:
    """End this process at once when the daemon's ends.

    Not PR_SET_PDEATHSIG: that fires when the *thread* that started us ends, and the daemon is not our parent anyway.
    """
    try:
        daemon = os.pidfd_open(daemon_pid)
    except ProcessLookupError:
        os._exit(1)
    threading.Thread(target=_end_after, args=(daemon,), name="daemon watch", daemon=True).start()


def _end_after(process: int) -> None:
    select.select([process], [], [])
    os._exit(1)


def _live(order: WorkerOrder, all_cores: set[int]) -> int:
    from functools import partial

    import trio

    from .actors.engine_thread import EngineThread
    from .actors.event_log import EventLog, LogFile
    from .actors.stage import StageActor
    from .actors.worker_pool import CONTROL_LIMITS
    from .runtime.stage_engine import LoweredStageEngine
    from .transport.key_ring import KeyRing
    from .transport.zmq_link import ZmqTransport

    async def live() -> bool:
        keys = KeyRing.load(Path(order.keys)) if order.keys else None
        async with ZmqTransport.open(keys, insecure=order.insecure) as transport:
            link = await transport.connect(order.control, name="control", limits=CONTROL_LIMITS, purpose=order.purpose)
            engine = EngineThread(partial(LoweredStageEngine, files=order.files), all_cores)
            actor = StageActor(order.worker, link, transport, engine, log, sockets=order.sockets)
            try:
                await actor.run()
            except Exception:
                traceback.print_exc()  # now: once the link is closed the daemon lets this process live no longer
                sys.stderr.flush()
                raise
            return actor.failed

    with LogFile(Path(order.log)) as stream:
        log = EventLog(stream, process=f"worker-{order.worker}", pid=os.getpid(), replica=order.replica)
        return int(trio.run(live))
