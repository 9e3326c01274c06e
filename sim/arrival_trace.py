"""Arrivals of requests with their lengths: read from a CSV file, or from a trace that comes with FlexPipe (`sim/traces`).

Owns the format, three columns ``arrival_s, input_tokens, output_tokens`` with arrivals ascending, plain or gzipped. It must never
know who plays a trace back.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

COLUMNS = ("arrival_s", "input_tokens", "output_tokens")
AZURE_CODE = "azure_llm_2023_code"
"""An hour of a code assistant: long prompts, short answers, and the harshest bursts of the public traces."""
_FOLDER = Path(__file__).parent / "traces"


class TraceError(ValueError):
    """A file that is no trace; the sentence says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class ArrivalTrace:
    """``arrival_s`` float64 [n] ascending; ``input_tokens``, ``output_tokens`` int64 [n], at least 1."""

    arrival_s: NDArray[np.float64]
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.arrival_s)

    def between(self, begin_s: float, end_s: float) -> ArrivalTrace:
        """The requests that arrive in this time, which begins at 0 then."""
        held = (self.arrival_s >= begin_s) & (self.arrival_s < end_s)
        return ArrivalTrace(self.arrival_s[held] - begin_s, self.input_tokens[held], self.output_tokens[held])

    def faster(self, factor: float) -> ArrivalTrace:
        """The same requests in a ``factor``-th of the time."""
        return ArrivalTrace(self.arrival_s / factor, self.input_tokens, self.output_tokens)

    def shorter(self, inputs: int, outputs: int) -> ArrivalTrace:
        """The same requests with prompts of an ``inputs``-th of the tokens and answers of an ``outputs``-th, at least 1 each."""
        return ArrivalTrace(
            self.arrival_s, np.maximum(1, self.input_tokens // inputs), np.maximum(1, self.output_tokens // outputs)
        )


def bundled(name: str) -> ArrivalTrace:
    """The trace of that name that comes with FlexPipe. Raises `TraceError`."""
    file = _FOLDER / f"{name}.csv.gz"
    if not file.exists():
        known = ", ".join(sorted(path.name.removesuffix(".csv.gz") for path in _FOLDER.glob("*.csv.gz")))
        raise TraceError(f"no trace {name} comes with FlexPipe; there are: {known}")
    return read_trace(file)


def read_trace(file: Path) -> ArrivalTrace:
    """The trace in ``file``. Raises `TraceError`."""
    try:
        data = file.read_bytes()
        text = (gzip.decompress(data) if file.suffix == ".gz" else data).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise TraceError(f"{file} cannot be read as a trace: {error}") from error
    lines = text.splitlines()
    rows = list(csv.reader(lines))
    if not rows or not set(COLUMNS) <= set(rows[0]):
        raise TraceError(f"{file} has no columns {', '.join(COLUMNS)} in its first line")
    places = [rows[0].index(column) for column in COLUMNS]
    return _checked(file, [_numbers(file, line, row, places) for line, row in enumerate(rows[1:], 2) if row])


def _numbers(file: Path, line: int, row: list[str], places: Iterable[int]) -> list[float]:
    try:
        return [float(row[place]) for place in places]
    except (IndexError, ValueError):
        raise TraceError(f"{file}, line {line} does not hold three numbers: {','.join(row)[:80]}") from None


def _checked(file: Path, rows: list[list[float]]) -> ArrivalTrace:
    if not rows:
        raise TraceError(f"{file} holds no request")
    table = np.array(rows)
    if not np.isfinite(table).all() or (table[:, 1:] < 1).any() or (table[:, 0] < 0).any():
        raise TraceError(f"{file} holds a request before time 0, without tokens, or with something that is no number")
    if (np.diff(table[:, 0]) < 0).any():
        raise TraceError(f"{file} is not in the order of arrival")
    return ArrivalTrace(table[:, 0], table[:, 1].astype(np.int64), table[:, 2].astype(np.int64))
