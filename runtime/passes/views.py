"""Removes reshapes that change nothing once other passes have run: they cost a microsecond each, in every layer."""

from __future__ import annotations

import torch

from .. import lowered
from .importing import Draft
from .matching import is_call, shape_of, through_views


def drop_views(draft: Draft) -> None:
    """Drop reshapes to the same shape, reshapes of reshapes, and those under operators that know the width anyway."""
    for node in draft.calls(torch.Tensor.reshape):
        base = through_views(node)
        if shape_of(base) is not None and shape_of(base) == shape_of(node):
            node.replace_all_uses_with(base)
        elif base is not node.args[0]:
            node.args = (base, *node.args[1:])
    for node in draft.calls(lowered.linear_add):
        source = node.args[0]
        if is_call(source, torch.Tensor.reshape):
            node.args = (through_views(source), *node.args[1:])
    draft.drop_dead()
