"""Under which keys a checkpoint holds a model's weights, where they are not the module's own names.

Owns the reading of transformers' conversion tables backwards, names only. Knows no files: `runtime.weights` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter, WeightRenaming

from ..program import WeightSpec


def as_stored(model: PreTrainedModel, weights: Mapping[str, WeightSpec]) -> dict[str, WeightSpec]:
    """``weights`` with the keys that `save_pretrained` and the hub use for ``model``, experts in parts where so stored."""
    tables = get_model_conversion_mapping(model, add_legacy=False)
    renamings = [table.reverse_transform() for table in reversed(tables) if type(table) is WeightRenaming]
    converters = [table for table in tables if isinstance(table, WeightConverter)]
    return {
        name: spec if spec.value is not None else _stored(name, spec, renamings, converters)
        for name, spec in weights.items()
    }


def _stored(name: str, spec: WeightSpec, renamings: list[Any], converters: list[Any]) -> WeightSpec:
    for converter in converters:
        target = converter.target_patterns[0]
        if name.endswith(target) and _stacks(converter):
            stem = name.removesuffix(target)
            rows = [[_numbered(source, e) for source in converter.source_patterns] for e in range(spec.shape[0])]
            stacked = tuple(tuple(_renamed(stem + part, renamings) for part in row) for row in rows)
            return msgspec.structs.replace(spec, name=_renamed(name, renamings), stacked=stacked)
    return msgspec.structs.replace(spec, name=_renamed(name, renamings))


def _stacks(converter: Any) -> bool:
    """Whether the table does what `WeightSpec.stacked` can say: concatenate the parts of an expert, stack the experts."""
    merge, *concatenate = converter.operations
    return (
        isinstance(merge, MergeModulelist)
        and merge.dim == 0
        and all(isinstance(step, Concatenate) and step.dim == 1 for step in concatenate)
    )


def _numbered(pattern: str, expert: int) -> str:
    return str(pattern).replace("*", str(expert), 1)


def _renamed(name: str, renamings: list[Any]) -> str:
    for renaming in renamings:
        name = renaming.rename_source_key(name)[0]
    return name
