"""Writes docs/state-machines.md from the machines' own tables: `python docs/state_machines.py`. A test compares the two."""

from pathlib import Path
from typing import Any

from flexpipe.actors.change import CHANGE_TRANSITIONS
from flexpipe.actors.cluster.leader_line_machine import LINE_TRANSITIONS
from flexpipe.actors.cluster.leadership_machine import LEADERSHIP_TRANSITIONS
from flexpipe.actors.cluster.node_agent_machine import AGENT_TRANSITIONS
from flexpipe.actors.cluster.nodes_machine import NODE_TRANSITIONS
from flexpipe.actors.coordinator_events import PIPELINE_TRANSITIONS
from flexpipe.actors.handoff_machine import HANDOFF_TRANSITIONS
from flexpipe.actors.transitions import Transitions
from flexpipe.actors.worker_epoch import EPOCH_TRANSITIONS
from flexpipe.actors.worker_machine import WORKER_TRANSITIONS

PAGE = Path(__file__).with_name("state-machines.md")

MACHINES: tuple[tuple[Transitions[Any], str, str], ...] = (
    (
        PIPELINE_TRANSITIONS,
        "actors/coordinator_machine.py",
        "One for each pipeline. Live changes come and go while it is serving.",
    ),
    (
        CHANGE_TRANSITIONS,
        "actors/change_machine.py",
        "One for each epoch that the coordinator makes. The point of no return is the commit on disk.",
    ),
    (
        EPOCH_TRANSITIONS,
        "actors/stage_machine.py",
        "Up to two at each worker: the epoch that serves and the one that is being made.",
    ),
    (
        HANDOFF_TRANSITIONS,
        "actors/handoff_machine.py",
        "One for each worker and epoch in which it gives or takes pages.",
    ),
    (WORKER_TRANSITIONS, "actors/worker_machine.py", "One for each process, in the daemon's pool of workers."),
    (
        NODE_TRANSITIONS,
        "actors/cluster/nodes_machine.py",
        "One for each node that belongs to a cluster, at its leader.",
    ),
    (AGENT_TRANSITIONS, "actors/cluster/node_agent_machine.py", "One on each node."),
    (LEADERSHIP_TRANSITIONS, "actors/cluster/leadership_machine.py", "One on each daemon that may lead."),
    (LINE_TRANSITIONS, "actors/cluster/leader_line_machine.py", "One at each gateway of a cluster."),
)


def page() -> str:
    """The document."""
    parts = [
        "# State machines\n",
        "Drawn from the tables in the code by `python docs/state_machines.py`; do not edit.\n",
    ]
    for table, file, words in MACHINES:
        parts.append(f"## {table.name[0].upper()}{table.name[1:]}\n")
        parts.append(f"`{file}`. {words}\n")
        parts.append(f"```mermaid\n{table.diagram()}```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
