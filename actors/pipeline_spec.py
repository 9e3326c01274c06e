"""What a pipeline is to be: its stages, its model, its bounds. Values only; `supervisor_machine` makes them real."""

from __future__ import annotations

from dataclasses import dataclass

from .messages import Load


@dataclass(frozen=True, slots=True)
class StagePlan:
    """What one stage is to be; ``first_name`` and ``last_name`` are atom names, for people."""

    first_atom: int
    end_atom: int
    first_name: str
    last_name: str
    device: str
    threads: int


@dataclass(frozen=True, slots=True)
class PipelineSpec:
    """What the pipeline is to be. ``kv_blocks_max`` bounds the KV blocks; ``context_tokens`` is the model's."""

    model_folder: str
    program_file: str
    stages: tuple[StagePlan, ...]
    dtype: str
    deterministic: bool
    step_tokens_max: int
    kv_blocks_max: int
    context_tokens: int

    def load_message(self, epoch: int, stage: int) -> Load:
        """What the stage is told to load."""
        plan = self.stages[stage]
        return Load(
            epoch=epoch,
            stage=stage,
            model_folder=self.model_folder,
            program_file=self.program_file,
            first_atom=plan.first_atom,
            end_atom=plan.end_atom,
            device=plan.device,
            threads=plan.threads,
            dtype=self.dtype,
            deterministic=self.deterministic,
            step_tokens_max=self.step_tokens_max,
        )


@dataclass(frozen=True, slots=True)
class SupervisorLimits:
    """Bounds, in seconds unless said. ``start_s_max``: from spawn to serving."""

    start_s_max: float = 600.0
    drain_s_max: float = 30.0
    terminate_s_max: float = 2.0
    restarts_max: int = 5
    restart_pause_s: float = 0.5
    steady_s: float = 60.0
