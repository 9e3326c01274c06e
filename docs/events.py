"""Writes docs/events.md from the catalogue in the code: `python docs/events.py`. A test compares the two."""

from itertools import groupby
from pathlib import Path

from flexpipe.actors.event_catalogue import BOUND, EVENTS, FIELDS, Field

PAGE = Path(__file__).with_name("events.md")

JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "true or false", list: "list", dict: "object"}

HEAD = """# Log events

Made of `actors/event_catalogue.py` by `python docs/events.py`; do not edit.

Every process writes one JSON object a line, each with `time_s`, `event`, and who wrote it. A field means the same in every event.
`flexpipe story` reads all logs of a run and tells what happened to a request or in a change. No prompt or output text is logged.
"""


def page() -> str:
    """The document."""
    parts = [HEAD, "## In every event\n", _fields(BOUND)]
    for writer, events in groupby(EVENTS.items(), key=lambda item: item[1].writer):
        parts.append(f"## {writer[0].upper()}{writer[1:]}\n")
        rows = [
            f"| `{name}` | {', '.join(f'`{field}`' for field in kind.fields)} | {kind.says} |" for name, kind in events
        ]
        parts.append("\n".join(["| event | fields | what it says |", "| --- | --- | --- |", *rows, ""]))
    return "\n".join([*parts, "## Fields\n", _fields(dict(sorted(FIELDS.items())))])


def _fields(fields: dict[str, Field]) -> str:
    rows = [f"| `{name}` | {JSON_TYPES[field.value]} | {field.says} |" for name, field in fields.items()]
    return "\n".join(["| field | type | meaning |", "| --- | --- | --- |", *rows, ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
