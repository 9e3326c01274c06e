"""What one run is of: a system, a load, a map and a seed, as values that can be stored, compared and hashed.

Owns the digest under which a run is kept: of the run's own values, of the files that go in, and of the code that computes it, so
that a result is never taken for another's, and never outlives the simulator that made it.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import msgspec

PACKAGE = Path(__file__).parents[2]
CODE = ("policies", "sim/cluster", "sim/systems")
"""Folders whose source decides what comes out of a run."""
CODE_FILES = (
    "runtime/interface.py",
    "sim/arrival_trace.py",
    "sim/gpu_models.py",
    "sim/map_file.py",
    "sim/synthetic_map.py",
    "sim/tenants.py",
    "sim/evaluation/cells.py",
    "sim/evaluation/setup.py",
    "sim/evaluation/run_cell.py",
    "sim/evaluation/weather.py",
)
DATA = ("sim/traces",)
"""Folders of traces that come with FlexPipe: what is in them decides too."""


CALM = "calm"
"""The weather in which nothing happens beside the load."""


class Load(msgspec.Struct, frozen=True):
    """Requests of one model: a trace as it is, or Gamma arrivals with a trace's lengths where ``cv`` is set.

    ``trace`` is the name of one that comes with FlexPipe, or of one of the files that go with the run.
    """

    model: str
    trace: str
    cv: float | None = None
    rate_per_s: float = 20.0
    duration_s: float = 7200.0

    @property
    def words(self) -> str:
        """As in tables."""
        return self.trace if self.cv is None else f"CV {self.cv:g}"


class Cell(msgspec.Struct, frozen=True):
    """One run. ``map`` names a map (`setup.cluster_of`), or one of the files that go with the run; ``weather`` is of `weather`."""

    system: str
    load: Load
    map: str
    seed: int
    weather: str = CALM

    def place(self) -> tuple[Load, str, str]:
        """What systems are compared within: all but the system and the seed."""
        return self.load, self.map, self.weather


def key_of(cell: Cell, files: dict[str, bytes]) -> str:
    """The digest of a run with these files, by the names under which the cell calls them."""
    digest = hashlib.sha256(code_digest().encode())
    digest.update(msgspec.json.encode(cell))
    for name in (cell.load.trace, cell.map):
        if name in files:
            digest.update(hashlib.sha256(files[name]).digest())
    return digest.hexdigest()[:24]


@cache
def code_digest() -> str:
    """The digest of the source that computes runs, and of the traces that they are drawn from."""
    digest = hashlib.sha256()
    for path in digested():
        digest.update(str(path.relative_to(PACKAGE)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def digested() -> list[Path]:
    """The files that the digest is of."""
    code = [path for folder in CODE for path in (PACKAGE / folder).rglob("*.py")]
    data = [path for folder in DATA for path in (PACKAGE / folder).glob("*.csv.gz")]
    return sorted([*code, *data, *(PACKAGE / name for name in CODE_FILES)])
