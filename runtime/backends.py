"""Which backend computes a stage: owns the choice and its reason. Knows nothing of what backends do inside."""

from __future__ import annotations

import torch

from .interface import EngineSpec
from .lowered import Backend
from .program import ATTEND, Literal, Program
from .torch_backend import TorchBackend


def choose_backend(spec: EngineSpec, program: Program, device: torch.device, dtype: torch.dtype) -> tuple[Backend, str]:
    """The fastest backend that can serve ``spec``, and why it was chosen."""
    reason = _why_not_packed(program, device, dtype)
    if reason is None:
        try:
            from .packed_backend import PackedBackend
        except Exception as error:  # no LLVM for this CPU, an unwritable cache: anything but serving must not fail here
            reason = f"the packed kernels could not be built ({error})"
        else:
            return PackedBackend(spec.threads), "packed kernels: fp32 on CPU"
    torch.set_num_threads(spec.threads)
    return TorchBackend(device, dtype, each_token=spec.deterministic), f"plain torch: {reason}"


def _why_not_packed(program: Program, device: torch.device, dtype: torch.dtype) -> str | None:
    """What the packed kernels lack for this stage, None where they can serve it."""
    if device.type != "cpu":
        return f"the stage runs on {device}"
    if dtype != torch.float32:
        return f"the stage computes in {dtype}, the packed kernels in fp32"
    attends = (node for graph in program.graphs for node in graph.nodes if node.target == ATTEND)
    if any(node.args[-1] != Literal(None) for node in attends):
        return "the model has attention sinks"
    return None
