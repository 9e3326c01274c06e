"""Reads the logs of a run as blocks of whole lines: 1 GB in seconds, at most a few MiB of it in memory.

Owns the search in bytes, before anything is decoded. It must never know what an event means.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ..actors.config import ConfigError

BLOCK_BYTES = 4 * 1024 * 1024
"""What is read at once."""
LINE_BYTES_MAX = 1024 * 1024
"""A longer line is none of ours (the largest event, a decision, has some 100 KiB) and is thrown away as it comes."""
SAMPLES = 32
"""Lines of a block whose times say which times it may hold, and whether they ascend."""
SLACK_S = 1.0
"""By so much lines may be out of order: processes that write to one file, or a clock that was corrected."""

_TIME = re.compile(rb'^\{"time_s": (\d+(?:\.\d+)?(?:[eE][-+]?\d+)?),', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class LogFile:
    """``clock`` is the place of its folder among those given: files below one folder have one host's clock."""

    path: Path
    clock: int
    label: str


@dataclass(frozen=True, slots=True)
class Block:
    """Whole lines of one file."""

    file: LogFile
    data: bytes

    def may_hold(self, begin_s: float, end_s: float) -> bool:
        """Whether some line of it may be of that time; a block that cannot say so may."""
        times = self._sampled_s()
        if len(times) < 2 or any(b < a - SLACK_S for a, b in pairwise(times)):
            return True
        return times[0] <= end_s + SLACK_S and times[-1] >= begin_s - SLACK_S

    def lines_with(self, needle: bytes) -> Iterator[bytes]:
        """Its lines that hold ``needle``."""
        at = self.data.find(needle)
        while at >= 0:
            begin, end = self.data.rfind(b"\n", 0, at) + 1, self.data.find(b"\n", at)
            yield self.data[begin:end]
            at = self.data.find(needle, end)

    def _sampled_s(self) -> list[float]:
        last = self.data.rfind(b"\n", 0, len(self.data) - 1) + 1
        starts = [self.data.find(b"\n", len(self.data) * k // SAMPLES) + 1 for k in range(1, SAMPLES)]
        found = (_TIME.match(self.data, at) for at in sorted({0, *(s for s in starts if s <= last), last}))
        return [float(match[1]) for match in found if match is not None]


class LogFolders:
    """The logs below some folders. Raises `ConfigError` where one is none, or holds no logs."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.files: list[LogFile] = []
        self.overlong = 0
        seen: set[Path] = set()
        for clock, folder in enumerate(folders):
            found = sorted(path for pattern in ("*.jsonl", "*.jsonl.1") for path in folder.rglob(pattern))
            if not found:
                raise ConfigError(f"{folder} holds no logs; give the folder that `flexpipe serve` names at its start")
            for path in found:
                if (real := path.resolve()) not in seen and path.is_file():
                    seen.add(real)
                    self.files.append(LogFile(path, clock, str(path.relative_to(folder))))

    @property
    def total_bytes(self) -> int:
        """How much there is now."""
        return sum(file.path.stat().st_size for file in self.files)

    def blocks(self) -> Iterator[Block]:
        """All of it. The last line of a file counts even where it was cut off. Raises `ConfigError` where a file cannot be read."""
        self.overlong = 0  # a story reads more than once
        for file in self.files:
            try:
                yield from self._blocks_of(file)
            except OSError as error:
                raise ConfigError(f"{file.path} cannot be read: {error.strerror or error}") from None

    def _blocks_of(self, file: LogFile) -> Iterator[Block]:
        rest, skipping = b"", False
        with file.path.open("rb", buffering=0) as stream:
            while data := stream.read(BLOCK_BYTES):
                if skipping:  # the rest of an overlong line
                    _, newline, data = data.partition(b"\n")
                    skipping = not newline
                    rest = b""
                end = data.rfind(b"\n") + 1
                if end:
                    yield Block(file, rest + data[:end])
                    rest = data[end:]
                else:
                    rest += data
                if len(rest) > LINE_BYTES_MAX:
                    self.overlong += 1
                    rest, skipping = b"", True
        if rest:
            yield Block(file, rest + b"\n")
