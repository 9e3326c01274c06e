"""Runs what a grid still lacks, over processes of this machine or an existing Dask cluster, and keeps each result as it comes.

Owns the order, the processes and the end of it all: an interruption leaves what is finished in the store. It must never know
what a run computes.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Thread
from typing import Any

import msgspec

from .cells import Cell, code_digest, key_of
from .run_cell import Facts, run_cell
from .store import Run, Store

DASK_S_MAX = 10.0
"""How long a Dask scheduler may take to answer."""
Done = Callable[[int], None]
"""Told how many runs have just finished."""
Finished = Iterator[tuple[Cell, Facts]]


class SweepError(Exception):
    """The sweep cannot be run as asked; the sentence says why and what to do."""


@dataclass(frozen=True, slots=True)
class Where:
    """``jobs`` processes here, or the Dask scheduler at ``dask``."""

    jobs: int = 1
    dask: str | None = None


def sweep(
    cells: Sequence[Cell], files: Mapping[str, bytes], store: Store, where: Where, done: Done
) -> list[tuple[Cell, Facts]]:
    """The facts of every cell, in order; those that are in the store are taken from there. Raises `SweepError`."""
    known = dict(files)
    keys = {cell: key_of(cell, known) for cell in cells}
    missing = [cell for cell in keys if keys[cell] not in store]
    done(len(keys) - len(missing))
    for cell, facts in _run(missing, known, where):
        store.add(Run(keys[cell], msgspec.Raw(msgspec.json.encode(cell)), msgspec.Raw(msgspec.json.encode(facts))))
        done(1)
    return [(cell, _facts(store, keys[cell])) for cell in cells]


def _facts(store: Store, key: str) -> Facts:
    run = store.get(key)
    assert run is not None
    return msgspec.json.decode(run.outcome, type=Facts)


def _run(cells: Sequence[Cell], files: dict[str, bytes], where: Where) -> Finished:
    if not cells:
        return iter(())
    if where.dask is not None:
        return _on_dask(cells, files, where.dask)
    if where.jobs == 1:
        return ((cell, run_cell(cell, files)) for cell in cells)
    return _in_processes(cells, files, where.jobs)


def _in_processes(cells: Sequence[Cell], files: dict[str, bytes], jobs: int) -> Finished:
    # Fresh processes: a fork would share this one's compiled kernels' locks and threads.
    context = multiprocessing.get_context("spawn")
    with _ended(ProcessPoolExecutor(jobs, mp_context=context, initializer=_end_with_parent)) as processes:
        futures = {processes.submit(_run_same, cell, files, code_digest()): cell for cell in cells}
        for future in as_completed(futures):
            yield futures[future], future.result()


def _run_same(cell: Cell, files: Mapping[str, bytes], code: str) -> Facts:
    """The run, where this process has the code under whose digest it will be kept. Raises `SweepError` where it has another."""
    if code_digest() != code:
        raise SweepError(
            "a process has other code than the one that keeps its runs; give all the same version, and start again"
        )
    return run_cell(cell, files)


def _end_with_parent() -> None:
    """A process of the pool waits for work for ever where its parent was killed: so it ends itself."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()


@contextmanager
def _ended(processes: ProcessPoolExecutor) -> Iterator[ProcessPoolExecutor]:
    """No run is begun any more once this is left, however it is."""
    try:
        yield processes
    finally:
        processes.shutdown(cancel_futures=True)


def _on_dask(cells: Sequence[Cell], files: dict[str, bytes], address: str) -> Finished:
    client = _dask_client(address)
    with client:
        shared = client.scatter(files, broadcast=True) if files else files
        futures = {client.submit(_run_same, cell, shared, code_digest(), pure=False): cell for cell in cells}
        import distributed

        for future in distributed.as_completed(list(futures)):
            yield futures[future], future.result()


def _dask_client(address: str) -> Any:
    try:
        from distributed import Client
    except ImportError as error:
        raise SweepError("--dask needs the package distributed; install flexpipe-serve[dask]") from error
    try:
        return Client(address, timeout=DASK_S_MAX)
    except (OSError, ValueError) as error:
        raise SweepError(f"no Dask scheduler answers at {address} ({error}); start one, or leave --dask out") from error
