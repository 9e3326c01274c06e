"""How long each distinct graph takes on a device, measured once and kept on disk.

Owns the grid of loads, the interpolation between them, and the cache keyed by program and device. Does not know how an
atom is run: a `Timer` is passed in (see `runtime.costing.engine_timer` for the one that drives a stage engine).
"""

from __future__ import annotations

import hashlib
import platform
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from ..cache_folder import cache_folder
from ..program import Graph, Program
from .costs import StepLoad

PROFILE_VERSION = 1

DECODE_BATCHES = (1, 8, 32)
"""Token counts measured as decoding: each token a request of its own."""

PREFILL_TOKENS = (128, 512)
"""Token counts measured as one request's prefill chunk, or the whole context where that is shorter."""

CONTEXTS = (128, 512, 2048)
"""Context lengths measured for graphs that attend; longer ones are extrapolated along the last two."""


class Timer(Protocol):
    """Measures one atom of a program on one device."""

    def __call__(self, atom: int, load: StepLoad) -> float:
        """Seconds that atom number ``atom`` takes for one step of ``load``, warm."""
        ...


class Point(msgspec.Struct, frozen=True, array_like=True):
    """One measurement: a step of ``tokens`` tokens of ``requests`` requests at ``context`` took ``seconds``."""

    tokens: int
    requests: int
    context: int
    seconds: float


class Profile(msgspec.Struct, frozen=True):
    """Measured times of a program's graphs on one device; ``points[g]`` are graph g's, in order of context and tokens.

    ``device`` names the hardware, threads and dtype, as `device_key` does.
    """

    version: int
    device: str
    points: tuple[tuple[Point, ...], ...]

    def seconds(self, program: Program, load: StepLoad) -> list[float]:
        """Each atom's time under ``load``, in order: linear between measured loads, and beyond the outermost two.

        A load of one token per request lies between measured decode batches, any other between measured prefill chunks;
        the head, whose work is the sampled rows, always between decode batches of as many rows.
        """
        known = [
            _interpolate(points, load.sampled if _samples(graph) else load.tokens, load, decode_only=_samples(graph))
            for graph, points in zip(program.graphs, self.points, strict=True)
        ]
        return [known[atom.graph] for atom in program.atoms]


def measure(program: Program, device: str, timer: Timer, contexts: Sequence[int] = CONTEXTS) -> Profile:
    """Time one atom of every distinct graph over the grid of loads."""
    representatives: dict[int, int] = {}
    for index, atom in enumerate(program.atoms):
        representatives.setdefault(atom.graph, index)
    possible = [context for context in contexts if context <= program.context_tokens] or [program.context_tokens]
    points = []
    for graph in range(len(program.graphs)):
        index = representatives[graph]
        attends = bool(program.atoms[index].layers)
        chunks = () if _samples(program.graphs[graph]) else PREFILL_TOKENS
        loads = [load for context in (possible if attends else possible[-1:]) for load in _loads(context, chunks)]
        points.append(tuple(Point(load.tokens, load.requests, load.context, timer(index, load)) for load in loads))
    return Profile(PROFILE_VERSION, device, tuple(points))


def device_key(device: str, threads: int, dtype: str) -> str:
    """A name for what was measured: device, threads, dtype and this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    return f"{device}, {threads} threads, {dtype}, {model}"


def profile_file(program: Program, device: str) -> Path:
    """Where the profile of ``program`` on ``device`` is or will be kept."""
    digest = hashlib.sha256(msgspec.json.encode(program))
    digest.update(f"\n{device}".encode())
    return cache_folder("profiles") / f"{digest.hexdigest()[:32]}.json"


def load_profile(program: Program, device: str) -> Profile | None:
    """The cached profile, or None where there is none that this version can read."""
    file = profile_file(program, device)
    try:
        profile = msgspec.json.decode(file.read_bytes(), type=Profile)
    except (OSError, msgspec.MsgspecError):
        return None
    return profile if profile.version == PROFILE_VERSION and len(profile.points) == len(program.graphs) else None


def save_profile(program: Program, profile: Profile) -> Path:
    """Keep ``profile`` for later plans; returns where."""
    file = profile_file(program, profile.device)
    partial = file.with_suffix(".partial")
    partial.write_bytes(msgspec.json.encode(profile))
    return partial.replace(file)


def _samples(graph: Graph) -> bool:
    return "sample_tokens" in graph.inputs


def _loads(context: int, chunks: Sequence[int]) -> list[StepLoad]:
    decoding = [StepLoad.decode(batch, context) for batch in DECODE_BATCHES]
    sizes = sorted({min(tokens, context) for tokens in chunks} - {1})
    return decoding + [StepLoad(tokens, 1, context, 1) for tokens in sizes]


def _interpolate(points: Sequence[Point], tokens: int, load: StepLoad, *, decode_only: bool) -> float:
    decodes = decode_only or load.tokens == load.requests
    by_context: dict[int, list[Point]] = {}
    for point in points:
        if point.requests == (point.tokens if decodes else 1):
            by_context.setdefault(point.context, []).append(point)
    contexts = sorted(by_context)
    times = [
        _line([float(p.tokens) for p in by_context[context]], [p.seconds for p in by_context[context]], tokens)
        for context in contexts
    ]
    return max(_line([float(context) for context in contexts], times, load.context), 0.0)


def _line(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    """Piecewise linear through (xs ascending, ys), its ends prolonged; below the first x, the first y."""
    if len(xs) == 1 or x <= xs[0]:
        return ys[0]
    right = min(bisect_right(xs, x), len(xs) - 1)
    left = right - 1
    slope = (ys[right] - ys[left]) / (xs[right] - xs[left])
    return ys[left] + slope * (x - xs[left])
