"""A sweep on a Dask cluster: the same facts as in one process. Skipped where distributed is not installed."""

import pytest
from flexpipe.sim.evaluation.cells import Cell, Load
from flexpipe.sim.evaluation.store import open_store
from flexpipe.sim.evaluation.sweep import SweepError, Where, sweep

TRACE = b"arrival_s,input_tokens,output_tokens\n" + b"".join(b"%d,100,10\n" % second for second in range(20))


def cells(count):
    return [Cell("static-4@1.5", Load("opt-66b", "mine.csv", duration_s=0.0), "a100", seed) for seed in range(count)]


@pytest.mark.filterwarnings("ignore")  # distributed's own
def test_a_dask_cluster_gives_what_one_process_gives(tmp_path):
    distributed = pytest.importorskip("distributed")
    files = {"mine.csv": TRACE}
    local = distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None)
    with local as cluster, open_store(tmp_path / "dask") as store:
        there = sweep(cells(3), files, store, Where(dask=cluster.scheduler_address), lambda _: None)
    with open_store(tmp_path / "here") as store:
        here = sweep(cells(3), files, store, Where(), lambda _: None)
    assert there == here


@pytest.mark.filterwarnings("ignore")
def test_a_scheduler_that_does_not_answer_is_one_sentence(tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("flexpipe.sim.evaluation.sweep.DASK_S_MAX", 0.2)
    with open_store(tmp_path) as store, pytest.raises(SweepError, match="no Dask scheduler answers at"):
        sweep(cells(1), {"mine.csv": TRACE}, store, Where(dask="tcp://127.0.0.1:9"), lambda _: None)
