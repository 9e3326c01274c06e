"""`flexpipe plan`: how a model would be cut, as a table or as JSON."""

from __future__ import annotations

from rich.table import Table

from ..planning import Plan
from ..preparation import captured, plan_for
from ..runtime.models.model_store import resolve
from ..runtime.program import load_program
from .console import out, progress, ranges, reporter, size, span


def plan_command(model: str, stages: int | None, partition: str | None, *, measure: bool, as_json: bool) -> int:
    """Plan ``model`` from its config alone; print it; the exit code."""
    with progress() as display:
        report = reporter(display)
        folder = resolve(model, report=report, need_weights=False)
        program_file = captured(folder.path, report)
        program = load_program(program_file)
        plan = plan_for(program, program_file, stages, partition, measure=measure, report=report)
    if as_json:
        print(plan.to_json().decode())
    else:
        _show(model, plan)
    return 0


def _show(model: str, plan: Plan) -> None:
    out.print(
        f"[bold]{model}[/]: {plan.architecture}, {plan.parameters / 1e6:,.0f} M parameters, "
        f"{size(plan.weight_bytes)} in {plan.dtype}, {size(plan.kv_bytes_per_token)} of KV a token, "
        f"{len(plan.atoms)} atoms of {plan.graphs} kinds, {len(plan.cut_points)} cut points",
        highlight=False,
    )
    table = Table(box=None, header_style="bold")
    for name in ("stage", "atoms", "layers", "weights", "KV a token", "sends a step", "a step takes"):
        table.add_column(name, justify="left" if name in ("atoms", "layers") else "right")
    for number, stage in enumerate(plan.stages):
        mark = " ◄" if number == plan.bottleneck_stage and len(plan.stages) > 1 else ""
        table.add_row(
            str(number),
            span(stage.atoms[0], stage.atoms[-1]),
            ranges(stage.layers),
            size(stage.weight_bytes),
            size(stage.kv_bytes_per_token),
            size(stage.activation_bytes),
            f"{stage.step_s * 1e3:.2f} ms{mark}",
        )
    out.print(table)
    load = plan.load
    out.print(
        f"For {load.requests} requests of {load.context} tokens decoding at once, times from the {plan.times_from}: a step "
        f"leaves every {plan.bottleneck_s * 1e3:.2f} ms ({plan.tokens_per_s:,.0f} tokens/s) and takes "
        f"{plan.latency_s * 1e3:.2f} ms through the pipeline.",
        highlight=False,
    )
    for weight in plan.duplicated_weights:
        first, second = weight.stages
        out.print(
            f"{weight.name} is tied to {weight.tied_to}: stages {first} and {second} each hold it "
            f"({size(weight.weight_bytes)}).",
            highlight=False,
        )
