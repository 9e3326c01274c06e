"""The arguments of `flexpipe evaluate paper | trace | fidelity`; nothing heavy is imported before one of them runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

AsJson = Annotated[bool, Parameter(negative="", help="Print facts as JSON, for machines.")]
Jobs = Annotated[int | None, Parameter(help="Processes to share the work; as many as there are cores by default.")]

evaluate = App(
    name="evaluate",
    help="Compare serving systems in a simulated cluster, with the policies that the product runs.",
    config=[],
)


@evaluate.command
def paper(
    *,
    quick: Annotated[bool, Parameter(negative="")] = False,
    out: Path | None = None,
    jobs: Jobs = None,
    dask: str | None = None,
    markdown: Path | None = None,
    json: AsJson = False,
) -> int:
    """Redo the FlexPipe paper's evaluation, with the controls it lacks, and write a report.

    An interrupted run goes on where it was, with the same --out.

    For example:

        flexpipe evaluate paper --quick
        flexpipe evaluate paper --out evaluation --jobs 2

    Args:
        quick: The main model, one trace and one full map, ten minutes of load, three seeds: about three minutes on two cores.
        out: Folder for results and the report; without it nothing is kept.
        jobs: Processes to share the work; as many as there are cores by default.
        dask: Address of an existing Dask scheduler to run on instead, as tcp://10.0.0.1:8786; needs the extra `dask`.
        markdown: A file, as README.md, whose block between the evaluation's two markers is written anew.
        json: Print facts as JSON, for machines.
    """
    from .evaluate import paper_command

    return paper_command(out, jobs, dask, markdown, quick=quick, as_json=json)


@evaluate.command
def trace(
    file: Path,
    /,
    *,
    map_file: Annotated[Path | None, Parameter(name="--map")] = None,
    model: str = "opt-66b",
    seeds: int = 3,
    out: Path | None = None,
    jobs: Jobs = None,
    dask: str | None = None,
    json: AsJson = False,
) -> int:
    """Compare the systems on a trace of your own: a CSV file with the columns arrival_s, input_tokens and output_tokens.

    For example:

        flexpipe evaluate trace monday.csv --model llama-2-7b
        flexpipe evaluate trace monday.csv.gz --map cluster.csv.gz --out monday

    Args:
        file: The trace, arrivals ascending; gzipped or not.
        map_file: The cluster's map, as flexpipe map --from reads it; without it the paper's 82 GPUs.
        model: What is served: opt-66b, llama-2-7b, bert-21b or whisper-9b.
        seeds: Runs of each system; start-ups and co-tenants differ between them.
        out: Folder for results and the report; without it nothing is kept.
        jobs: Processes to share the work; as many as there are cores by default.
        dask: Address of an existing Dask scheduler to run on instead; needs the extra `dask`.
        json: Print facts as JSON, for machines.
    """
    from .evaluate import trace_command

    return trace_command(file, map_file, model, seeds, out, jobs, dask, as_json=json)


@evaluate.command
def fidelity(
    *,
    quick: Annotated[bool, Parameter(negative="")] = False,
    trace_file: Annotated[Path | None, Parameter(name="--trace")] = None,
    calibration: Path | None = None,
    model: str = "smollm2",
    seed: int = 1,
    out: Path | None = None,
    json: AsJson = False,
) -> int:
    """Measure how far the simulators are from the real runtime: same traces, same live changes, in all three.

    A real pipeline is timed under synthetic load, its times are frozen, and then it serves under three loads, at fixed depths and
    refactored, while the simulators do the same. About eleven minutes; nothing else should run on the machine meanwhile.

    For example:

        flexpipe evaluate fidelity --out fidelity
        flexpipe evaluate fidelity --trace monday.csv --calibration fidelity/calibration.json

    Args:
        quick: A quarter of the load and fewer changes: about four minutes, and percentiles of few requests.
        trace_file: A trace of your own instead of synthetic arrivals, played as fast as each load asks for.
        calibration: Times from an earlier run, instead of measuring them now.
        model: What is served, on CPU stages of one thread.
        seed: Of arrivals, lengths and prompts.
        out: Folder for calibration.json, observed.json and fidelity.json; without it nothing is kept.
        json: Print facts as JSON, for machines.
    """
    from .evaluate_fidelity import fidelity_command

    return fidelity_command(trace_file, calibration, model, seed, out, quick=quick, as_json=json)
