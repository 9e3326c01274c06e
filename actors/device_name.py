"""How devices of several nodes are named: "n1/cuda:0" is device cuda:0 of node n1, "cuda:0" a device of the only node there is."""

from __future__ import annotations


def on_node(node: str, device: str) -> str:
    """The name of ``device`` of ``node`` that means the same everywhere; of the only node where ``node`` is ""."""
    return f"{node}/{device}" if node else device


def node_of(name: str) -> str:
    """The node of a device; "" where there is one node only."""
    return name.rpartition("/")[0]


def local_name(name: str) -> str:
    """What a device is called on its own node."""
    return name.rpartition("/")[2]
