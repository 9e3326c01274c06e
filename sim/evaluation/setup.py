"""What the names in a run stand for: models with their deadlines, maps, and loads.

Owns the evaluation's constants. The paper's cluster is 42 servers with 82 GPUs, 100 Gbit/s and a hop of 2.1 ms; what model of
GPU they are it does not say, and its Table 2 was taken on A100s, so they are A100s of 80 GiB here. How full the cluster is it
does not say either; of its production clusters it says that 43 to 51 % of memory are in use: shared maps are half taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import numpy as np

from ...policies.cluster.cluster_map import ClusterMap, cluster_map
from ...policies.cluster.device_facts import DeviceFacts, LinkClasses, MapError, NodeFacts
from ...policies.types import NS_PER_S, Link
from ..arrival_trace import ArrivalTrace, bundled, read_trace
from ..cluster.engine_profiles import PAPER_HOP_S, bert_21b, llama_2_7b, opt_66b, whisper_9b
from ..cluster.incidents import cotenant_slowdowns
from ..cluster.metrics import Deadlines
from ..cluster.served_model import ServedModel
from ..cluster.workload import Workload, gamma_workload, of_trace
from ..gpu_models import GIB, GPU_MODELS
from ..map_file import document, read_map
from ..synthetic_map import SyntheticMap
from ..systems.model_shapes import STAGE_COUNTS
from ..systems.placing import stage_need_bytes
from ..tenants import POLICIES, WHOLE, fill
from .cells import Load

_Read = TypeVar("_Read")
PAPER_SERVERS, PAPER_GPUS = 42, 82
A100 = GPU_MODELS["G3"]
"""What step times were measured on: speed 1 in simulations."""
CONTEXT_MAX = 4096
"""Longest prompt and answer together: the paper's sequence length."""
WHISPER_FRAMES, WHISPER_ANSWER_MAX = 1500, 224
"""What Whisper's encoder makes of half a minute of sound, and the most tokens that it decodes for it (half its text context)."""
SYNTHETIC_NODES = 240
"""Nodes of a drawn cluster, about 1,230 GPUs: a fifth of the published one."""
HISTORY_SEEDS = 1_000_003
"""A run's history is drawn from its seed plus this."""
HISTORY_S = 1200.0


@dataclass(frozen=True, slots=True)
class Served:
    """A model with the deadlines that its requests are held to: first token, and mean time from token to token.

    ``requests`` says what is asked of it: it makes a load of the trace's lengths into one of its own.
    """

    make: Callable[[], ServedModel]
    deadlines: Deadlines
    requests: Callable[[Workload], Workload]


def texts(drawn: Workload) -> Workload:
    """Prompts and answers as the trace has them, cut to a context of `CONTEXT_MAX`."""
    return drawn.at_most(CONTEXT_MAX)


def embeddings(drawn: Workload) -> Workload:
    """The trace's prompts, each answered with one vector: one pass through the model, and no decoding."""
    return drawn.answering(np.ones(len(drawn), np.int64)).at_most(CONTEXT_MAX)


def transcriptions(drawn: Workload) -> Workload:
    """Half a minute of sound each: `WHISPER_FRAMES` frames in, as many tokens out as the trace's answer has, up to the limit."""
    answers = np.minimum(drawn.output_tokens, WHISPER_ANSWER_MAX)
    return drawn.asking(np.full(len(drawn), WHISPER_FRAMES)).answering(answers)


MODELS = {
    "opt-66b": Served(opt_66b, Deadlines(10.0, 0.5), texts),
    "llama-2-7b": Served(llama_2_7b, Deadlines(2.0, 0.1), texts),
    "bert-21b": Served(bert_21b, Deadlines(3.0, 1.0), embeddings),
    "whisper-9b": Served(whisper_9b, Deadlines(3.0, 0.15), transcriptions),
}
"""Deadlines are about four times a long prompt's time on the unloaded model, and two to three times a planned step."""


class SetupError(ValueError):
    """A name stands for nothing; the sentence says what there is."""


def model_of(name: str) -> Served:
    """The model of that name. Raises `SetupError`."""
    if name not in MODELS:
        raise SetupError(f"no model is called {name}; there are: {', '.join(MODELS)}")
    return MODELS[name]


def cluster_of(name: str, seed: int, files: Mapping[str, bytes]) -> ClusterMap:
    """The map that a run calls so: "a100", "a100:random:50" (the paper's cluster, shared by tenants), "random:90", or a file.

    Raises `MapError` for one without a device, and `SetupError` for no map.
    """
    if name in files:
        found = _of_file(files[name], read_map, name)
        return _usable(_as_a100s(found, seed), name)
    head, _, rest = name.partition(":")
    if head == "a100":
        return _paper_cluster(rest, seed)
    if head in POLICIES:
        return _usable(_as_a100s(SyntheticMap.parse(name, SYNTHETIC_NODES, seed).draw(), seed), name)
    raise SetupError(
        f"no map is called {name}; give a100, a100:random:50, {', '.join(f'{p}:70' for p in POLICIES)}, or a file"
    )


def check_room(name: str, cluster: ClusterMap, map_name: str) -> None:
    """Raise `SetupError` where no depth of the model finds devices with room for one replica."""
    model = model_of(name).make()
    depths = [depth for depth in STAGE_COUNTS if depth <= model.layers]
    needs = {depth: stage_need_bytes(model, depth) for depth in depths}
    if any(np.count_nonzero(cluster.free_bytes >= need) >= depth for depth, need in needs.items()):
        return
    deepest = depths[-1]
    have = int(np.count_nonzero(cluster.free_bytes >= needs[deepest]))
    raise SetupError(
        f"{name} fits nowhere on {map_name}: even {deepest} stages need {needs[deepest] / GIB:.1f} GiB free on each of as many "
        f"devices, and {have} have that"
    )


def workload_of(load: Load, seed: int, files: Mapping[str, bytes]) -> Workload:
    """The requests of a run. Raises `TraceError`, `SetupError` and `WorkloadError`."""
    trace = _trace(load.trace, files)
    if load.cv is None:
        drawn = of_trace(trace.between(0.0, load.duration_s) if load.duration_s else trace)
    else:
        drawn = gamma_workload(trace, load.rate_per_s, load.cv, load.duration_s, seed)
    return model_of(load.model).requests(drawn)


def history_of(load: Load, seed: int, files: Mapping[str, bytes]) -> Workload:
    """A load of the same kind from before the run: other draws, or of a trace what it is itself.

    Whoever plans from a trace's history thus knows the trace: kinder to static systems than life is.
    """
    if load.cv is None:
        return workload_of(load, seed, files)
    return workload_of(replace_load(load, min(load.duration_s, HISTORY_S)), seed + HISTORY_SEEDS, files)


def replace_load(load: Load, duration_s: float) -> Load:
    """The same load for another time."""
    return Load(load.model, load.trace, load.cv, load.rate_per_s, duration_s)


def faster_loading(cluster: ClusterMap, factor: float) -> ClusterMap:
    """The same map with weights coming so many times as fast, from wherever."""
    facts = document(cluster)
    nodes = [
        replace(
            node,
            host_bytes_per_s=node.host_bytes_per_s * factor,
            network_bytes_per_s=node.network_bytes_per_s * factor,
        )
        for node in facts.nodes
    ]
    return cluster_map(facts.devices, nodes, cluster.links)


def _paper_cluster(tenants: str, seed: int) -> ClusterMap:
    """40 servers with two GPUs and two with one, on which tenants have come and gone."""
    gpus = [2] * (PAPER_GPUS - PAPER_SERVERS) + [1] * (2 * PAPER_SERVERS - PAPER_GPUS)
    free = [[WHOLE] * count for count in gpus]
    if tenants:
        wanted = SyntheticMap.parse(tenants)
        free = fill(gpus, wanted.policy, wanted.allocated, np.random.default_rng(seed))
    devices = [
        DeviceFacts(
            f"server-{server:02d}/{place}",
            f"server-{server:02d}",
            A100.memory_bytes,
            A100.memory_bytes * hundredths // WHOLE,
            "A100",
        )
        for server, held in enumerate(free)
        for place, hundredths in enumerate(held)
    ]
    nodes = [NodeFacts(f"server-{server:02d}", "rack-0") for server in range(PAPER_SERVERS)]
    cluster = cluster_map(devices, nodes, paper_links())
    return cotenant_slowdowns(cluster, seed) if tenants else cluster


def paper_links() -> LinkClasses:
    """A hop of `PAPER_HOP_S` for a planned step however far it goes, since the paper has one for all."""
    hop = Link(round(PAPER_HOP_S * NS_PER_S), 12.5e9)
    return LinkClasses(hop, hop, hop, hop)


def _as_a100s(cluster: ClusterMap, seed: int) -> ClusterMap:
    """Speeds relative to the A100 that step times are of, and co-tenants as busy as the paper's where the map names none."""
    facts = document(cluster)
    devices = [replace(device, speed=device.speed / A100.speed) for device in facts.devices]
    again = cluster_map(devices, facts.nodes, cluster.links)
    return again if again.slowdown.any() else cotenant_slowdowns(again, seed)


def _usable(cluster: ClusterMap, name: str) -> ClusterMap:
    if cluster.devices == 0:
        raise MapError(f"{name} holds no device; there is nothing to serve on")
    return cluster


def _trace(name: str, files: Mapping[str, bytes]) -> ArrivalTrace:
    return _of_file(files[name], read_trace, name) if name in files else _bundled(name)


@cache
def _bundled(name: str) -> ArrivalTrace:
    """A process reads each trace once."""
    return bundled(name)


def _of_file(data: bytes, read: Callable[[Path], _Read], name: str) -> _Read:
    """What ``read`` makes of a file with these bytes, wherever the run is."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / Path(name).name
        path.write_bytes(data)
        return read(path)
