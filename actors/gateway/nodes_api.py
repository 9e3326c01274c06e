"""`GET /flexpipe/v1/nodes` and `POST /flexpipe/v1/nodes/NODE/drain`: the nodes of a cluster, and how one is let go.

Owns the refusals. What a node says of itself is the leader's to know.
"""

from __future__ import annotations

from ..cluster_nodes import ClusterNodes, NodeRefusedError
from ..generation import GenerationFailedError
from .openai_errors import generation_failed, refused


async def all_nodes(cluster: ClusterNodes | None) -> dict[str, object]:
    """The answer. Raises `ApiError`: 404 on a server of one host, 503 where nobody knows."""
    try:
        return {"nodes": await _of(cluster).nodes()}
    except GenerationFailedError as error:
        raise generation_failed(error) from error


async def drain(cluster: ClusterNodes | None, node: str) -> dict[str, object]:
    """The answer: it has begun. Raises `ApiError`: 404 on a server of one host, 409 where it cannot be, 503 where nobody knows."""
    try:
        await _of(cluster).drain(node)
    except NodeRefusedError as refusal:
        raise refused(409, "node_refused", str(refusal), "node") from refusal
    except GenerationFailedError as error:
        raise generation_failed(error) from error
    return {"node": node, "draining": True}


def _of(cluster: ClusterNodes | None) -> ClusterNodes:
    if cluster is None:
        raise refused(404, "no_cluster", "This server runs on one host, without nodes; flexpipe daemon makes clusters.")
    return cluster
