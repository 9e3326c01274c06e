"""What one simulated history is to be, drawn from its seed: the pipeline, its changes, its visitors, its weather and its faults.

Values only. Fault kinds and phases are named here, and which of the two can meet: the seed chooses the pair to aim at in turn, so
that a few hundred seeds cover all of them.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

from ...runtime.interface import SamplingParams
from ...transport.memory_wire import Weather
from ..modelled_engine import PAGE_BYTES, WEIGHT_BYTES, FaultlessHistory, ModelledModel, ModelledSpeed

PHASES: Final = ("serving", "plan", "load", "copy", "commit", "switch", "release", "abort", "recovery")
"""Where a fault can fall: no change is under way, a live change is in one of its phases, or a cold one is."""

_LIVE = ("plan", "load", "copy", "commit", "switch", "release", "abort")
_TALKING = ("load", "copy", "switch", "release", "abort", "recovery")

FAULTS: Final[dict[str, tuple[str, ...]]] = {
    "crash-old": ("plan", "load", "copy", "commit", "switch", "abort"),
    "crash-new": ("load", "copy", "commit", "switch", "release", "recovery"),
    "crash-both": PHASES,
    "hang": PHASES,
    "slow": PHASES,
    "no-memory": ("load", "copy", "recovery"),
    "coordinator": PHASES,
    "daemon": PHASES,
    "lose": _TALKING,
    "repeat": _TALKING,
    "delay": PHASES,
    "partition": PHASES,
    "partition-one-way": PHASES,
    "disk-full": ("plan", "commit", "release", "abort", "recovery"),
    "corrupt-page": ("copy", "switch"),
    "corrupt-frame": PHASES,
    "cancel": PHASES,
}
"""Kinds of fault, and the phases in which each can happen. crash-old, -new and -both: a worker that only the old route has, only
the new one, or both. lose and repeat: commands of the coordinator and their answers."""

PAIRS: Final = tuple((phase, kind) for kind, phases in FAULTS.items() for phase in phases)

_TROUBLE = (
    ("no-memory", "load"),
    ("no-memory", "copy"),
    ("crash-new", "copy"),
    ("crash-both", "copy"),
    ("crash-both", "switch"),
    ("coordinator", "copy"),
    ("coordinator", "switch"),
)
_BEFORE = {"load": "plan", "copy": "load", "switch": "commit", "release": "switch"}
_MODEL = ModelledModel(layers=4, vocabulary=400)
CONTEXT_TOKENS = 64
"""Longest prompt and output together."""
_PROMPTS = (1, 5, 17, 33, 40)
_LONG_PROMPTS = (33, 40)
"""Tokens."""
_LIVE_STRATEGIES = ("precopy", "precopy", "precopy", "stop-copy", "recompute")


@dataclass(frozen=True, slots=True)
class Aim:
    """A fault of ``kind`` in ``phase``, ``delay_s`` after the world enters ``armed_in``; ``lasts_s`` bounds what heals by itself.

    ``choice`` in [0, 1) picks among those it can hit.
    """

    kind: str
    phase: str
    armed_in: str
    delay_s: float
    choice: float
    lasts_s: float


@dataclass(frozen=True, slots=True)
class Reshape:
    """A change that an operator asks for, ``after_s`` after the last one (or the start) ended.

    The new stages are cut at atoms ``cuts``. ``keeps`` gives for each stage the place of the old stage whose worker it gets, or
    -1 for a new worker.
    """

    after_s: float
    cuts: tuple[int, ...]
    keeps: tuple[int, ...]
    strategy: str
    allow_preempt: bool


@dataclass(frozen=True, slots=True)
class Visit:
    """A client that asks for tokens and leaves after ``patience`` of them (None: stays to the end).

    It comes ``arrives_s`` after the world enters phase ``arrives_in``, or after the start where that is "".
    """

    arrives_s: float
    prompt: tuple[int, ...]
    params: SamplingParams
    max_tokens: int
    stop_token_ids: tuple[int, ...]
    patience: int | None
    arrives_in: str = ""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One history. Times are virtual seconds from the moment at which the pipeline serves for the first time."""

    seed: int
    model: ModelledModel
    speed: ModelledSpeed
    weather: Weather
    kv_blocks_max: int
    cuts: tuple[int, ...]
    reshapes: tuple[Reshape, ...]
    visits: tuple[Visit, ...]
    aims: tuple[Aim, ...]
    run_pages_max: int
    remaining_pages_max: int
    restart_s: float


def pairs_of(kinds: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The (phase, kind) pairs of some kinds of fault."""
    return tuple(pair for pair in PAIRS if pair[1] in kinds)


def draw(seed: int, kinds: Sequence[str]) -> Scenario:
    """The history of ``seed`` where faults are of ``kinds`` (none: a history without any)."""
    chance = random.Random(f"history {seed}")  # noqa: S311 - reproducible on purpose
    pairs = pairs_of(kinds)
    aims = _aims(chance, seed, pairs, kinds) if pairs else ()
    cuts = _cuts(chance, least=1 if any(aim.kind == "crash-old" for aim in aims) else 0)
    reshapes = [_reshape(chance, len(cuts) + 1, aims)]
    if chance.random() < (0.8 if any(aim.kind in ("lose", "repeat") for aim in aims) else 0.2):
        reshapes.append(_reshape(chance, len(reshapes[0].cuts) + 1, ()))
    visits = tuple(_visit(chance) for _ in range(chance.randint(2, 3)))
    blocks = chance.choice((8, 16, 32))
    memory_bytes = _memory_bytes(chance, blocks, cuts, reshapes[0])
    if memory_bytes < _ample_bytes(blocks):
        # It asks for much between the count of blocks and the cut.
        late = _visit(random.Random(f"late {seed}"), _LONG_PROMPTS)  # noqa: S311
        visits = (*visits, replace(late, arrives_s=late.arrives_s / 40, arrives_in="copy"))
    return Scenario(
        seed=seed,
        model=_MODEL,
        speed=ModelledSpeed(
            step_s=chance.choice((0.001, 0.003, 0.006)),
            load_s_per_atom=chance.choice((0.0005, 0.003)),
            page_s=chance.choice((0.0001, 0.001)),
            memory_bytes=memory_bytes,
        ),
        weather=Weather(0.0, chance.choice((0.0005, 0.002)), chance.choice((0.0, 0.0, 0.02)), 0.03),
        kv_blocks_max=blocks,
        cuts=cuts,
        reshapes=tuple(reshapes),
        visits=visits,
        aims=aims,
        run_pages_max=chance.randint(1, 4),
        remaining_pages_max=chance.choice((0, 2, 8)),
        restart_s=chance.uniform(0.005, 0.2),
    )


def _aims(chance: random.Random, seed: int, pairs: Sequence[tuple[str, str]], kinds: Sequence[str]) -> tuple[Aim, ...]:
    """What the seed aims at, after what brings that phase about, and now and then something more."""
    phase, kind = pairs[seed % len(pairs)]
    cause = _cause(chance, phase)
    if kind in ("lose", "repeat"):
        return _mischief(chance, kind, phase, cause or _trouble(chance, kinds))
    aims = [_aim(chance, kind, phase)]
    if cause is not None:
        aims.insert(0, cause)
    elif chance.random() < 0.3:
        other = chance.choice(pairs)
        aims.append(_aim(chance, other[1], other[0]))
    return tuple(aims)


def _cause(chance: random.Random, phase: str) -> Aim | None:
    """What brings a phase about that does not come by itself."""
    if phase == "recovery":
        return _aim(chance, "crash-both", chance.choice(("serving", "copy", "switch")))
    if phase == "abort":
        return _aim(chance, *chance.choice((("no-memory", "load"), ("disk-full", "commit"), ("no-memory", "copy"))))
    return None


def _trouble(chance: random.Random, kinds: Sequence[str]) -> Aim | None:
    """What makes it matter that messages are lost or come twice: the change is taken back, or somebody starts anew."""
    troubles = [pair for pair in _TROUBLE if pair[0] in kinds]
    return _aim(chance, *chance.choice(troubles)) if troubles and chance.random() < 0.5 else None


def _mischief(chance: random.Random, kind: str, phase: str, beside: Aim | None) -> tuple[Aim, ...]:
    """Messages are lost or come twice from before a phase on: its first commands go out as it begins."""
    begins_in = phase if beside is None or phase in _BEFORE else beside.armed_in
    armed_in = "plan" if phase == "abort" else _BEFORE.get(begins_in, begins_in)
    aim = Aim(kind, phase, armed_in, 0.0, chance.random(), chance.uniform(0.1, 0.6))
    return (aim,) if beside is None else (aim, beside)


def _aim(chance: random.Random, kind: str, phase: str) -> Aim:
    """Phases are short: most faults come at once or soon after one begins."""
    delay_s = 0.0 if kind == "disk-full" or chance.random() < 0.3 else chance.uniform(0, 0.004)
    if phase in ("serving", "recovery") or chance.random() < 0.2:
        delay_s = 0.0 if kind == "disk-full" else chance.uniform(0, 0.04)
    lasts_s = chance.uniform(0.02, 0.6)
    if kind.startswith("partition") and chance.random() < 0.4:
        lasts_s = chance.uniform(2.0, 5.0)
    return Aim(kind, phase, phase, delay_s, chance.random(), lasts_s)


def _cuts(chance: random.Random, least: int = 0) -> tuple[int, ...]:
    """Anywhere, so also inside blocks; at most four stages."""
    return tuple(sorted(chance.sample(range(1, _MODEL.atoms), chance.randint(least, 3))))


def _reshape(chance: random.Random, stages: int, aims: Sequence[Aim]) -> Reshape:
    """A change in which what is aimed at can happen."""
    kinds = {aim.kind for aim in aims}
    live = any(aim.phase in _LIVE for aim in aims)
    while True:
        cuts = _cuts(chance)
        places = list(range(stages))
        chance.shuffle(places)
        keeps = tuple(places.pop() if places and chance.random() < 0.6 else -1 for _ in range(len(cuts) + 1))
        kept = [place for place in keeps if place >= 0]
        if "crash-new" in kinds | {"no-memory"} and live and len(kept) == len(keeps):
            continue
        if kinds & {"crash-both", "lose", "repeat"} and live and not kept:
            continue
        if "crash-old" in kinds and len(kept) == stages:
            continue
        if "corrupt-page" in kinds and len(kept) == len(keeps):
            continue
        break
    strategy = chance.choice(_LIVE_STRATEGIES)
    if not live and chance.random() < 0.25:
        strategy = "restart"
    if any(aim.kind == "corrupt-page" for aim in aims):
        strategy = "precopy"
    return Reshape(chance.choice((0.0, chance.uniform(0.0, 0.06))), cuts, keeps, strategy, chance.random() < 0.7)


def _visit(chance: random.Random, prompts: Sequence[int] = _PROMPTS) -> Visit:
    prompt = tuple(chance.randrange(_MODEL.vocabulary) for _ in range(chance.choice(prompts)))
    max_tokens = chance.randint(3, 14)
    params = SamplingParams(
        temperature=chance.choice((0.0, 0.8)),
        seed=chance.randrange(1 << 16),
        presence_penalty=chance.choice((0.0, 0.0, 0.5)),
        logprobs=chance.choice((None, None, 2)),
    )
    stops: tuple[int, ...] = ()
    if chance.random() < 0.2:
        history = FaultlessHistory(_MODEL, prompt, params)
        stops = ([history.next().token_id for _ in range(max_tokens)][chance.randrange(max_tokens)],)
    patience = chance.randint(0, max_tokens) if chance.random() < 0.15 else None
    return Visit(chance.uniform(0.0, 0.08), prompt, params, max_tokens, stops, patience)


def _memory_bytes(chance: random.Random, blocks: int, cuts: tuple[int, ...], change: Reshape) -> int:
    """Mostly ample; now and then so little that the first change has fewer blocks than before, and a later one may not fit."""
    if chance.random() < 0.65:
        return _ample_bytes(blocks)
    fewer = chance.choice((chance.randint(1, 4), chance.randint(1, blocks)))
    old = dict(enumerate(_stages(cuts)))
    needs = [_bytes_of(atoms, blocks) for atoms in old.values()]
    for keep, atoms in zip(change.keeps, _stages(change.cuts), strict=True):
        kept = old.get(keep, range(0))
        needs.append(_bytes_of(kept, blocks) + _bytes_of(set(atoms) - set(kept), fewer))
    return max(needs)


def _ample_bytes(blocks: int) -> int:
    return 2 * _bytes_of(range(_MODEL.atoms), blocks)


def _stages(cuts: tuple[int, ...]) -> list[range]:
    return [range(first, end) for first, end in pairwise((0, *cuts, _MODEL.atoms))]


def _bytes_of(atoms: Collection[int], blocks: int) -> int:
    """What atoms take, each with its pages where it owns some."""
    return len(atoms) * WEIGHT_BYTES + sum(len(_MODEL.layers_of[atom]) for atom in atoms) * blocks * PAGE_BYTES
