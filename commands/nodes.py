"""`flexpipe nodes` and `flexpipe drain`: the nodes of a cluster, and letting one go."""

from __future__ import annotations

import json
import time
from typing import Any

from rich.console import JustifyMethod
from rich.table import Table

from ..client import Client
from .console import err, out, size

POLL_INTERVAL_S = 0.2


def nodes_command(url: str, api_key: str | None, *, as_json: bool) -> int:
    """Print the nodes; the exit code. Raises `FlexPipeError`."""
    with Client(url, api_key=api_key) as client:
        nodes = client.nodes()
    if as_json:
        print(json.dumps(nodes))
    else:
        out.print(node_table(nodes))
    return 0


def drain_command(node: str, url: str, api_key: str | None, timeout_s: float) -> int:
    """Have everything moved off ``node``, and wait until it has left; the exit code. Raises `FlexPipeError`."""
    deadline = time.monotonic() + timeout_s
    with Client(url, api_key=api_key) as client:
        client.drain(node)
        out.print(f"moving everything off node {node}", highlight=False)
        while any(other["node"] == node for other in client.nodes()):
            if time.monotonic() > deadline:
                err.print(
                    f"node {node} has not left within {timeout_s:g} s; it is still tried", style="red", highlight=False
                )
                return 1
            time.sleep(POLL_INTERVAL_S)
    out.print(f"node {node} has left, and its daemon stops", highlight=False)
    return 0


def node_table(nodes: list[dict[str, Any]]) -> Table:
    """The nodes as `flexpipe nodes` shows them; fits 80 columns."""
    table = Table(box=None, header_style="bold", padding=(0, 1), pad_edge=False)
    for name in ("node", "state", "host", "cores", "free", "warm", "devices in use"):
        justify: JustifyMethod = "left" if name in ("node", "state", "host", "devices in use") else "right"
        table.add_column(name, justify=justify, no_wrap=True)
    for node in nodes:
        used = [device["device"].rpartition("/")[2] for device in node["devices"] if device["in_use"]]
        table.add_row(
            node["node"],
            "leads" if node["leads"] else node["state"],
            node["host"],
            str(node["cores"]),
            size(node["memory_free_bytes"]),
            size(node["warm_bytes"]),
            f"{', '.join(used) or '-'} of {len(node['devices'])}",
        )
    return table
