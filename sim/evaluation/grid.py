"""Which runs the evaluation consists of: the paper's table, its quick form, and a trace of one's own.

Owns the choice of systems, loads, maps and seeds, and nothing of how they run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..arrival_trace import AZURE_CODE
from ..systems.catalogue import STATIC_DEPTHS, SYSTEMS, static_name
from .cells import CALM, Cell, Load

AZURE_CONV = "azure_llm_2023_conv"
SERVEGEN = "servegen_m_large_bursty_1h"
CVS = (1.0, 2.0, 4.0, 8.0)
PAPER_MAP = "a100"
SHARED_MAP = "a100:random:50"
SHARED_RATE = 4.0
"""Requests a second on the shared map, which has room for half as much as 20 would need."""
MAPS = tuple(f"{policy}:{share}" for policy in ("random", "bestfit", "fgd") for share in (70, 90))
"""Drawn clusters. Most of their cards are small: they serve Llama-2-7B, since OPT-66B is too slow there for its deadlines."""
STATIC_SMALL = (1, 2, 4, 8)
"""Depths of static systems for models that fit on one device."""
SEEDS, SEEDS_QUICK = 5, 3
HOURS_2_S, HOUR_S, HALF_HOUR_S, QUARTER_S, QUICK_S = 7200.0, 3600.0, 1800.0, 900.0, 600.0
PROVISIONS = (0.85, 0.95, 1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 2.0)
"""Capacities of static systems that are tried with hindsight, over the mean load."""
PROVISIONS_QUICK = (0.95, 1.0, 1.1, 1.2, 1.5)
PROVISIONS_BURSTY = (1.0, 1.2, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0)
ABLATED = (1.0, 4.0)
"""Where every control and ablation runs."""
CORE = ("fluid", "paper", "alpaserve", "muxserve", "serverlessllm", "tetris", "replicas-only", "oracle")
"""Systems run everywhere; the other controls and the ablations only where what each part is worth is asked."""
TROUBLED = ("fluid", "paper", "alpaserve", "muxserve", "serverlessllm", "tetris", "replicas-only")
"""Systems that are sent into bad weather: all but the oracle, which knows the load but not the weather."""


@dataclass(frozen=True, slots=True)
class Part:
    """Systems on one load and one map in one weather, over some seeds."""

    load: Load
    map: str
    systems: tuple[str, ...]
    seeds: int
    weather: str = CALM

    def cells(self) -> Iterable[Cell]:
        """Its runs, seed by seed."""
        return (
            Cell(system, self.load, self.map, seed, self.weather)
            for seed in range(self.seeds)
            for system in self.systems
        )


def cells_of(parts: Sequence[Part]) -> list[Cell]:
    """All runs of all parts, each once."""
    return list(dict.fromkeys(cell for part in parts for cell in part.cells()))


def paper_parts(*, quick: bool) -> tuple[Part, ...]:
    """The paper's evaluation. The quick one: the main model, the harshest trace, a full map and failing nodes, for ten minutes."""
    return _quick() if quick else (*_main(), *_ablated(), *_models(), *_shared(), *_traces(), *_maps(), *_troubled())


def _quick() -> tuple[Part, ...]:
    statics = statics_of(PROVISIONS_QUICK)
    gammas = [
        Part(gamma("opt-66b", cv, QUICK_S), PAPER_MAP, (*(SYSTEMS if cv in ABLATED else CORE), *statics), SEEDS_QUICK)
        for cv in CVS
    ]
    code = Load("opt-66b", AZURE_CODE, duration_s=QUICK_S)
    full = gamma("llama-2-7b", 4.0, QUICK_S)
    return (
        *gammas,
        Part(code, PAPER_MAP, (*CORE, *statics_of(PROVISIONS_BURSTY)), SEEDS_QUICK),
        Part(full, "random:90", (*CORE, *statics_of(PROVISIONS_QUICK, STATIC_SMALL)), SEEDS_QUICK),
        Part(gammas[2].load, PAPER_MAP, (*TROUBLED, *statics_of((1.1, 1.5), (4,))), SEEDS_QUICK, "failures"),
    )


def _main() -> list[Part]:
    """The paper's table: two hours of its largest model at all four variations."""
    systems = (*CORE, *statics_of(PROVISIONS))
    return [Part(gamma("opt-66b", cv), PAPER_MAP, systems, SEEDS) for cv in CVS]


def _ablated() -> list[Part]:
    """What each part is worth: every control and ablation, on shorter loads of the same kind."""
    loads = [
        *(gamma("opt-66b", cv, HALF_HOUR_S) for cv in ABLATED),
        Load("opt-66b", AZURE_CODE, duration_s=HALF_HOUR_S),
    ]
    return [Part(load, PAPER_MAP, (*SYSTEMS, *statics_of(PROVISIONS_QUICK)), SEEDS) for load in loads]


def _models() -> list[Part]:
    """The paper's other models, each alone on the cluster."""
    systems = (*CORE, *statics_of(PROVISIONS, STATIC_SMALL))
    return [
        Part(gamma(model, cv, HALF_HOUR_S), PAPER_MAP, systems, SEEDS)
        for model in ("llama-2-7b", "bert-21b", "whisper-9b")
        for cv in CVS
    ]


def _shared() -> list[Part]:
    """The paper's cluster, half of it taken by tenants."""
    systems = (*CORE, *statics_of(PROVISIONS))
    return [Part(gamma("opt-66b", cv, HALF_HOUR_S, SHARED_RATE), SHARED_MAP, systems, SEEDS) for cv in ABLATED]


def _traces() -> list[Part]:
    """Traces as they are."""
    systems = (*CORE, *statics_of(PROVISIONS_BURSTY))
    return [
        Part(Load("opt-66b", trace, duration_s=HOUR_S), PAPER_MAP, systems, SEEDS)
        for trace in (AZURE_CONV, AZURE_CODE, SERVEGEN)
    ]


def _maps() -> list[Part]:
    """Large clusters filled by three policies to two degrees."""
    systems = (*CORE, *statics_of(PROVISIONS, STATIC_SMALL))
    return [Part(gamma("llama-2-7b", 4.0, QUARTER_S), name, systems, SEEDS) for name in MAPS]


def _troubled() -> list[Part]:
    """Bad weather: each kind where calm weather was measured too, on the same load and map."""
    empty, shared = gamma("opt-66b", 4.0, HALF_HOUR_S), gamma("opt-66b", 4.0, HALF_HOUR_S, SHARED_RATE)
    full = gamma("llama-2-7b", 4.0, QUARTER_S)
    large, small = statics_of(PROVISIONS_QUICK, (4, 8)), statics_of(PROVISIONS_QUICK, (1, 2))
    return [
        Part(empty, PAPER_MAP, (*TROUBLED, *large), SEEDS, "failures"),
        Part(empty, PAPER_MAP, (*TROUBLED, *large), SEEDS, "stragglers"),
        Part(shared, SHARED_MAP, (*TROUBLED, *large), SEEDS, "tenants"),
        Part(full, "random:90", (*TROUBLED, *small), SEEDS, "tenants"),
    ]


def trace_parts(trace: str, model: str, map_name: str, seeds: int) -> tuple[Part, ...]:
    """A trace as it is, on one map, by all systems."""
    return (Part(Load(model, trace, duration_s=0.0), map_name, (*SYSTEMS, *statics_of(PROVISIONS_BURSTY)), seeds),)


def gamma(model: str, cv: float, duration_s: float = HOURS_2_S, rate_per_s: float = 20.0) -> Load:
    """The paper's load: 20 requests a second, lengths of Azure's conversations."""
    return Load(model, AZURE_CONV, cv, rate_per_s, duration_s)


def statics_of(provisions: Sequence[float], depths: Sequence[int] = STATIC_DEPTHS) -> tuple[str, ...]:
    """Static systems of all depths and provisions."""
    return tuple(static_name(depth, provision) for depth in depths for provision in provisions)
