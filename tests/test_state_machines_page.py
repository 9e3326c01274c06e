"""The diagrams in the docs are those of the code's tables."""

import runpy
from enum import Enum
from pathlib import Path

import pytest
from flexpipe.actors.transitions import IllegalTransitionError, Transitions

DOCS = Path(__file__).parent.parent / "docs"


class Lamp(Enum):
    OFF = "off"
    ON = "on"


def test_the_page_is_drawn_from_the_tables_of_today():
    page = runpy.run_path(str(DOCS / "state_machines.py"))["page"]()
    assert (DOCS / "state-machines.md").read_text() == page, "run python docs/state_machines.py"


def test_a_table_leads_on_or_refuses_by_name():
    table = Transitions("a lamp", Lamp.OFF, {(Lamp.OFF, "press"): Lamp.ON, (Lamp.OFF, "voice"): Lamp.ON})
    assert table.after(Lamp.OFF, "press") is Lamp.ON
    with pytest.raises(IllegalTransitionError, match="a lamp: press came while it was on"):
        table.after(Lamp.ON, "press")
    assert table.diagram() == "stateDiagram-v2\n    [*] --> off\n    off --> on: press, voice\n"
