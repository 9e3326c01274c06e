"""What a story consists of, and numbers in words. Values only: no log is read here and nothing is drawn."""

from __future__ import annotations

from dataclasses import dataclass, field

BYTES_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of the subject's time and why it was spent; ``kind``: queue, prefill, decode, stall, change, or a phase."""

    begin_s: float
    end_s: float
    kind: str
    says: str

    @property
    def lasted_s(self) -> float:
        """Its length."""
        return self.end_s - self.begin_s


@dataclass(frozen=True, slots=True)
class StageShare:
    """What a stage computed meanwhile: of all requests, since one step is for many. ``share`` is of the story's time."""

    epoch: int
    stage: int
    worker: str
    device: str
    steps: int
    compute_s: float
    share: float
    longest_s: float


@dataclass(frozen=True, slots=True)
class Moment:
    """Something that happened."""

    time_s: float
    says: str


@dataclass(slots=True)
class Story:
    """``verdict`` says it in short, ``spans`` are the waterfall, ``around`` the changes that overlap it.

    ``spent_s`` adds the spans up by kind; ``notes`` say what to know of the logs.
    """

    title: str
    begin_s: float
    end_s: float
    verdict: list[str] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    around: list[Span] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    stages: list[StageShare] = field(default_factory=list)
    spent_s: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def lasted_s(self) -> float:
        """Its length."""
        return self.end_s - self.begin_s


def seconds(count: float) -> str:
    """As "38 ms", "1.24 s", "3 min 12 s"."""
    if count < 0.0995:
        return f"{count * 1e3:.3g} ms"
    if count < 60:
        return f"{count:.2f} s"
    return f"{int(count // 60)} min {count % 60:.0f} s"


def amount(count: float) -> str:
    """Bytes: "1.5 MiB"."""
    unit = 0
    while count >= 1000 and unit < len(BYTES_UNITS) - 1:
        count, unit = count / 1024, unit + 1
    return f"{count:.0f} B" if unit == 0 else f"{count:.3g} {BYTES_UNITS[unit]}"


def plural(count: int, word: str) -> str:
    """As "1 token", "2 tokens"."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
