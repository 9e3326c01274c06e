"""Everything that happens to a model before it is served: fetched, captured, cut into stages, given devices.

A composition root like `daemon`, and as light: what needs torch runs in a child process.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .actors.config import ServeConfig
from .actors.devices import StageDevice, assign, default_devices, parse_devices, stated_memory
from .planning import Plan, costs_under, make_plan
from .policies.memory_fit import no_room, room_of, roomiest, stated_in_words, tightest
from .policies.types import AtomCost, InfeasiblePartition
from .runtime.capturing.capture import program_file
from .runtime.costing.costs import DeviceRates, StepLoad
from .runtime.costing.device_rates import cached_cpu_rates
from .runtime.costing.profile import device_key, load_profile
from .runtime.interface import ModelFiles
from .runtime.models.model_digest import model_digest
from .runtime.models.model_folder import ModelError, Report, silent
from .runtime.models.model_store import resolve
from .runtime.program import Program, load_program
from .runtime.text.tokenizer import HfTokenizer

PLANNED_REQUESTS = 8
PLANNED_CONTEXT_TOKENS = 512
"""The load that cut points are chosen for where nobody says otherwise: a few requests decoding in the middle of a chat."""


@dataclass(frozen=True, slots=True)
class ModelOnDisk:
    """A model that was fetched, converted and captured."""

    name: str
    files: ModelFiles
    program: Program
    tokenizer: HfTokenizer


@dataclass(frozen=True, slots=True)
class PreparedModel(ModelOnDisk):
    """A model that can be served on this host: cut into stages, and its devices chosen.

    ``stated_bytes`` is what weights and KV may take on a device, for those of which the user stated it.
    """

    plan: Plan
    devices: tuple[StageDevice, ...]
    stated_bytes: Mapping[str, int] = field(default_factory=dict)


def put_on_disk(model: str, report: Report = silent) -> ModelOnDisk:
    """Fetch, convert and capture ``model``. Raises `ModelError`, one sentence."""
    folder = resolve(model, report=report)
    program_path = captured(folder.path, report)
    return ModelOnDisk(
        name=Path(model).name or model,
        files=ModelFiles(str(folder.path), str(program_path), digest=model_digest(folder, program_path)),
        program=load_program(program_path),
        tokenizer=HfTokenizer(folder.path),
    )


def prepare(model: str, config: ServeConfig, report: Report = silent) -> PreparedModel:
    """Fetch, convert, capture and plan ``model``.

    Raises `ModelError`, `PlanError`, `InfeasiblePartition` or `DeviceError`, each one sentence.
    """
    on_disk = put_on_disk(model, report)
    plan, devices = _plan_and_devices(on_disk.program, Path(on_disk.files.program_file), config, report)
    return PreparedModel(
        name=on_disk.name,
        files=on_disk.files,
        program=on_disk.program,
        tokenizer=on_disk.tokenizer,
        plan=plan,
        devices=assign(devices, len(plan.stages), config.threads),
        stated_bytes=stated_memory(config.devices),
    )


def _plan_and_devices(
    program: Program, program_path: Path, config: ServeConfig, report: Report
) -> tuple[Plan, tuple[str, ...]]:
    """The first plan, and devices for its stages in order: with the memory for them, where the user stated any."""

    def planned(stages: int | None, memory_bytes: Sequence[int] | None = None) -> Plan:
        return plan_for(
            program,
            program_path,
            stages,
            config.partition,
            memory_bytes=memory_bytes,
            dtype=config.dtype,
            report=report,
        )

    stated = stated_memory(config.devices)
    if config.devices is None or not stated:
        plan = planned(config.stages)
        return plan, parse_devices(config.devices) if config.devices else default_devices(len(plan.stages))
    devices = parse_devices(config.devices)
    if config.partition is not None:
        plan = planned(None)
        return plan, _devices_for(plan, devices, stated)
    return _fewest_stages(planned, config.stages, devices, stated)


def _fewest_stages(
    planned: Callable[[int, Sequence[int]], Plan], stages: int | None, devices: Sequence[str], stated: Mapping[str, int]
) -> tuple[Plan, tuple[str, ...]]:
    """A plan of ``stages`` stages, or of as few as fit where that is None, on the first devices or else the roomiest."""
    for count in range(1, len(devices) + 1) if stages is None else (min(stages, len(devices)),):
        for chosen in (tuple(devices[:count]), roomiest(devices, stated, count)):
            try:
                return planned(stages or count, [room_of(device, stated) for device in chosen]), chosen
            except InfeasiblePartition as error:
                refusal = error
    raise InfeasiblePartition(
        f"the model does not fit {stated_in_words(chosen, stated)}: {refusal}", refusal.missing_bytes
    )


def _devices_for(plan: Plan, devices: Sequence[str], stated: Mapping[str, int]) -> tuple[str, ...]:
    """A device with the memory for each stage of a partition that the user gave."""
    needed = [stage.memory_bytes for stage in plan.stages]
    if len(needed) > len(devices):
        return tuple(devices)  # `assign` says how many there are to be
    chosen = tightest(needed, devices[: len(needed)], devices, stated)
    if chosen is None:
        raise InfeasiblePartition(f"{no_room(needed, devices, stated)}; cut finer, or give larger devices")
    return chosen


def plan_for(
    program: Program,
    program_path: Path,
    stages: int | None,
    partition: str | None,
    *,
    memory_bytes: Sequence[int] | None = None,
    dtype: str = "float32",
    measure: bool = False,
    report: Report = silent,
) -> Plan:
    """Cut ``program`` for `PLANNED_REQUESTS` decoding at once, from measured times where there are some, else estimates.

    ``memory_bytes`` are the stages' limits in order, None for none. ``measure`` times the atoms on this machine first and
    keeps the times for later plans. Raises `PlanError` or
    `InfeasiblePartition`.
    """
    if measure:
        report("measure", 0, 0)
        _in_child("flexpipe.runtime.costing.engine_timer", str(program_path), "cpu", "1", dtype)
    load = _planned_load(program)
    return make_plan(
        program,
        load=load,
        rates=_rates(report),
        stages=stages if stages is not None or partition is not None else 1,
        partition_text=partition,
        memory_bytes=memory_bytes,
        dtype=dtype,
        measured_s=_measured_seconds(program, load, dtype),
    )


def costs_for(program: Program, dtype: str = "float32", report: Report = silent) -> tuple[AtomCost, ...]:
    """What each atom costs under the load that `plan_for` plans for, from the same times."""
    load = _planned_load(program)
    return costs_under(program, load, _rates(report), dtype, _measured_seconds(program, load, dtype))


def prompt_weight(program: Program, dtype: str = "float32", report: Report = silent) -> float:
    """What a prompt's token costs against a decoded one: many are computed at once, and read the weights only once."""
    prompt = min(PLANNED_CONTEXT_TOKENS, program.context_tokens)
    decoding, prefilling = _planned_load(program), StepLoad.prefill(prompt)
    step_ns, prompt_ns = (
        sum(
            cost.compute_ns
            for cost in costs_under(program, load, _rates(report), dtype, _measured_seconds(program, load, dtype))
        )
        for load in (decoding, prefilling)
    )
    return (prompt_ns / prompt) / (step_ns / decoding.requests)


def planned_tokens(program: Program) -> int:
    """Tokens of context for which every plan keeps KV room: those of the load that `plan_for` plans for."""
    load = _planned_load(program)
    return load.requests * load.context


def _planned_load(program: Program) -> StepLoad:
    return StepLoad.decode(PLANNED_REQUESTS, min(PLANNED_CONTEXT_TOKENS, program.context_tokens))


def _measured_seconds(program: Program, load: StepLoad, dtype: str) -> list[float] | None:
    profile = load_profile(program, device_key("cpu", 1, dtype))
    return None if profile is None else profile.seconds(program, load)


def captured(folder: Path, report: Report = silent) -> Path:
    """The file of the model's program, captured first where it is not cached. Raises `ModelError`."""
    file = program_file(folder)
    if not file.exists():
        report("capture", 0, 0)
        _in_child("flexpipe.runtime.capturing.capture", str(folder), str(file))
    return file


def _rates(report: Report) -> DeviceRates:
    """What one thread of this machine can do: cuts depend on the proportion of arithmetic to memory traffic only."""
    rates = cached_cpu_rates(1)
    if rates is None:
        report("probe", 0, 0)
        _in_child("flexpipe.runtime.costing.device_rates", "1")
        rates = cached_cpu_rates(1)
    assert rates is not None
    return rates


def _in_child(module: str, *arguments: str) -> None:
    """Run one of our modules in a process of its own, so that torch stays out of this one. Raises `ModelError`."""
    child = subprocess.run(  # noqa: S603 - our own interpreter and module, no shell
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False
    )
    if child.returncode != 0:
        lines = child.stderr.strip().splitlines() or [f"{module} ended with exit code {child.returncode}"]
        raise ModelError(lines[-1])
