"""The process of one worker: wires a real engine and real sockets to a stage actor, and nothing else.

Started by the daemon as ``python -m flexpipe.stage_process``; not meant for people. It dies with its daemon, whatever kills
that, and leaves signals from the terminal to it.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
import threading
from pathlib import Path


def main() -> None:
    """Parse the daemon's arguments, prepare the process, and live as a worker."""
    parser = argparse.ArgumentParser(prog="flexpipe worker process")
    parser.add_argument("--worker", type=int, required=True)
    parser.add_argument("--control", required=True, help="address of the control link")
    parser.add_argument("--log", type=Path, required=True, help="file for this process's JSON events")
    parser.add_argument("--daemon-pid", type=int, required=True)
    parser.add_argument("--cpus", default="", help="cores to stay on, as 0,1")
    arguments = parser.parse_args()
    _die_with(arguments.daemon_pid)
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole group; the daemon drains, we wait for its word
    if arguments.cpus:
        # Before the first thread is made, so that ZeroMQ's and the kernels' threads stay there too; it shortens
        # a hop's tail most (`bench/link.py --pin`).
        os.sched_setaffinity(0, {int(core) for core in arguments.cpus.split(",")})
    sys.exit(_live(arguments.worker, arguments.control, arguments.log))


def _die_with(daemon_pid: int) -> None:
    """End this process at once when the daemon's ends.

    Not PR_SET_PDEATHSIG: that fires when the *thread* that started us ends, and trio starts processes from a thread that it
    lets go after ten idle seconds.
    """
    try:
        daemon = os.pidfd_open(daemon_pid)
    except ProcessLookupError:
        sys.exit(1)
    threading.Thread(target=_end_after, args=(daemon,), name="daemon watch", daemon=True).start()


def _end_after(process: int) -> None:
    select.select([process], [], [])
    os._exit(1)


def _live(worker: int, control_address: str, log_file: Path) -> int:
    import trio

    from .actors.engine_thread import EngineThread
    from .actors.event_log import EventLog, LogFile
    from .actors.stage import StageActor
    from .actors.worker_pool import CONTROL_LIMITS
    from .runtime.stage_engine import LoweredStageEngine
    from .transport.zmq_link import ZmqTransport

    async def live() -> bool:
        async with ZmqTransport.open() as transport:
            link = await transport.connect(control_address, name="control", limits=CONTROL_LIMITS)
            actor = StageActor(worker, link, transport, EngineThread(LoweredStageEngine), log)
            await actor.run()
            return actor.failed

    with LogFile(log_file) as stream:
        log = EventLog(stream, process=f"worker-{worker}", pid=os.getpid())
        return int(trio.run(live))


if __name__ == "__main__":
    main()
