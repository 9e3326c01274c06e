"""From a program's graph to one callable that all equal atoms share.

Owns the order of the passes and the binding to a device's backend. Knows nothing of stages, checkpoints or batches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from torch import nn

from . import lowered
from .passes.attention import lower_attention
from .passes.constants import addmm_to_linear, fold_constants, scale_into_linear
from .passes.flat import flatten_tokens
from .passes.importing import Draft, import_graph
from .passes.linears import fuse_gates, fuse_residuals, merge_siblings, pack_linears
from .passes.norms import fuse_gelu, fuse_norms
from .passes.views import drop_views
from .program import Dim, Graph
from .recipes import AnyRecipe

PASSES: tuple[Callable[[Draft], None], ...] = (
    addmm_to_linear,
    fold_constants,
    fuse_norms,
    fuse_gelu,
    scale_into_linear,
    lower_attention,
    merge_siblings,
    fuse_gates,
    pack_linears,
    fuse_residuals,
    drop_views,
    flatten_tokens,
)
"""In this order: constants first, so that norms see plain weights; attention before merging, which looks for it."""


@dataclass(frozen=True, slots=True)
class LoweredGraph:
    """``call(step, layers, *inputs, *weights)`` gives the graph's outputs, a tuple.

    ``layers`` are the atom's `KvLayer` by ordinal, ``inputs`` in the order of the program's graph, ``weights`` what
    ``recipes`` make of the weight ``slots``, in their order. The hidden state is [T, W] where
    the graph is ``flat``, else [1, T, W]. Graphs with the same ``digest`` make the same of the same weights.
    """

    call: Callable[..., tuple[torch.Tensor, ...]]
    inputs: tuple[str, ...]
    slots: tuple[str, ...]
    recipes: tuple[AnyRecipe, ...]
    graph: torch.fx.Graph
    flat: bool
    digest: str


def lower(source: Graph, backend: lowered.Backend, shapes: Mapping[str, tuple[Dim, ...]]) -> LoweredGraph:
    """Rewrite ``source`` in fused operators and bind them to ``backend``. Raises `EngineError` on unknown operators.

    ``shapes`` are those of the prelude's values among the graph's inputs.
    """
    draft = import_graph(source, shapes)
    for rewrite in PASSES:
        rewrite(draft)
    _bind(draft, backend)
    draft.graph.lint()
    module = torch.fx.GraphModule(nn.Module(), draft.graph)
    recipes = tuple(draft.recipes[node] for node in draft.graph.nodes if node in draft.recipes)
    digest = hashlib.sha256(msgspec.msgpack.encode((source, dict(shapes)))).hexdigest()
    return LoweredGraph(module.forward, source.inputs, source.weights, recipes, draft.graph, draft.flat, digest)


def _bind(draft: Draft, backend: lowered.Backend) -> None:
    """Let the lowered operators call the backend's methods."""
    methods: dict[Any, Any] = {operator: getattr(backend, operator.__name__) for operator in lowered.OPERATORS}
    for node in draft.graph.nodes:
        if node.op == "call_function" and node.target in methods:
            node.target = methods[node.target]
