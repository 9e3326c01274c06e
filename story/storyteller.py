"""`Story` of what was asked for, out of log folders: two passes over the files, the clocks put right, then told.

The one way into this folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from . import change_story, clocks, request_story
from .evidence import Evidence, Gathering
from .log_files import LogFolders
from .log_lines import LogLines
from .subject import find
from .telling import StageShare, Story


def story_of(asked: str, folders: Sequence[Path]) -> Story:
    """Tell it. Raises `ConfigError` where the logs have no such thing, or a folder has no logs."""
    logs, lines = LogFolders(folders), LogLines()
    subject = find(asked, logs, LogLines())
    evidence = Gathering(subject, logs, lines).run()
    leader = subject.owner[0]
    bounds = clocks.bounds(evidence.crossings, leader)
    _correct(evidence, {clock: bound.offset_s for clock, bound in bounds.items()})
    story = request_story.tell(subject, evidence) if subject.trace else change_story.tell(subject, evidence)
    story.stages = _stages(evidence, story)
    names = dict(enumerate(str(folder) for folder in folders))
    story.notes += subject.notes
    story.notes += [
        note
        for note in (
            clocks.sentence(bounds, {file.clock for file in logs.files}, leader, names),
            lines.sentence(),
            f"{logs.overlong} lines were too long to be ours." if logs.overlong else "",
            f"{evidence.left_out} events were left out: the story has too many." if evidence.left_out else "",
        )
        if note
    ]
    return story


def _correct(evidence: Evidence, offsets_s: dict[int, float]) -> None:
    """Put all times on the leader's clock."""
    if not any(offsets_s.values()):
        return
    evidence.records = sorted(
        (replace(r, time_s=r.time_s - offsets_s.get(r.file.clock, 0.0)) for r in evidence.records),
        key=lambda record: record.time_s,
    )
    for key, place in evidence.places.items():
        evidence.places[key] = replace(place, time_s=place.time_s - offsets_s.get(place.file.clock, 0.0))


def _stages(evidence: Evidence, story: Story) -> list[StageShare]:
    """What each worker computed meanwhile, by epoch and place in the pipeline."""
    found = []
    for (clock, process, replica, epoch), work in evidence.work.items():
        place = evidence.places.get((clock, process, replica, epoch))
        fields = place.fields if place is not None else {}
        stage = fields.get("stage", -1)
        found.append(
            StageShare(
                epoch=epoch,
                stage=stage if isinstance(stage, int) else -1,
                worker=process,
                device=str(fields.get("device", "?")),
                steps=work.steps,
                compute_s=round(work.compute_s, 6),
                share=round(work.compute_s / story.lasted_s, 4) if story.lasted_s > 0 else 0.0,
                longest_s=work.longest_s,
            )
        )
    return sorted(found, key=lambda share: (share.epoch, share.stage, share.worker))
