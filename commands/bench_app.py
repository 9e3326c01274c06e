"""The arguments of `flexpipe bench engine | pipeline | refactor | controller | placement`; nothing heavy is imported before."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

DEFAULT_MODEL = "smollm2"

AsJson = Annotated[bool, Parameter(negative="", help="Print facts as JSON, for machines.")]

bench = App(name="bench", help="Measure speed on this machine; compare figures of one run only.")


@bench.command(name="engine")
def bench_engine(
    model: str = DEFAULT_MODEL,
    /,
    *,
    concurrency: tuple[int, ...] = (1, 8, 32),
    threads: int = 2,
    compare_transformers: bool = False,
    json: AsJson = False,
) -> int:
    """One stage without sockets: tokens/s at several concurrencies, and their share of this machine's roofline.

    For example:

        flexpipe bench engine --json
        flexpipe bench engine smollm2 --concurrency 1 --concurrency 16 --compare-transformers

    Args:
        model: Model to measure.
        concurrency: Requests at once; may be given several times.
        threads: Processor threads.
        compare_transformers: Run transformers' generate() too, alternating with ours.
        json: Print facts as JSON, for machines.
    """
    from .bench import engine_command

    return engine_command(model, concurrency, threads, compare=compare_transformers, as_json=json)


@bench.command(name="pipeline")
def bench_pipeline(
    model: str = DEFAULT_MODEL,
    /,
    *,
    concurrency: tuple[int, ...] = (8, 32),
    rounds: int = 3,
    json: AsJson = False,
) -> int:
    """The pipeline's tax: two stages of one thread against one stage of two, with as many requests in flight.

    Args:
        model: Model to measure.
        concurrency: Requests at once; may be given several times.
        rounds: Times that the contenders take turns.
        json: Print facts as JSON, for machines.
    """
    from .bench import pipeline_command

    return pipeline_command(model, concurrency, rounds, as_json=json)


@bench.command(name="refactor")
def bench_refactor(
    model: str = DEFAULT_MODEL,
    /,
    *,
    rounds: int = 3,
    contexts: str = "256,1024,4096",
    plot: Path | None = None,
    json: AsJson = False,
) -> int:
    """What refactoring costs eight running streams: pauses, slower tokens, wrong tokens, by each strategy along 2→4→3→6→1.

    Takes about five minutes a round, and as long again for the contexts; nothing else should run meanwhile.

    For example:

        flexpipe bench refactor --rounds 1 --plot plots
        flexpipe bench refactor --contexts 256,1024 --json

    Args:
        model: Model to measure.
        rounds: Times that the strategies take turns.
        contexts: Tokens of context under which a split and a merge are measured too, as 256,1024,4096.
        plot: Folder to write plots to, as PNG; needs the extra `bench`.
        json: Print facts as JSON, for machines.
    """
    from .bench import refactor_command

    return refactor_command(model, rounds, contexts, plot, as_json=json)


@bench.command(name="controller")
def bench_controller(
    *,
    pipelines: int = 100,
    candidates: int = 32,
    rounds: int = 20,
    json: AsJson = False,
) -> int:
    """How long one decision of the controller takes, with signals of an hour behind it, by each policy.

    For example:

        flexpipe bench controller --json

    Args:
        pipelines: Pipelines under control.
        candidates: Shapes that each of them is weighed against, up to 128.
        rounds: Decisions per pipeline.
        json: Print facts as JSON, for machines.
    """
    from .bench import controller_command

    return controller_command(pipelines, candidates, rounds, as_json=json)


@bench.command(name="encryption")
def bench_encryption(*, rounds: int = 7, mib: int = 128, json: AsJson = False) -> int:
    """What encryption costs between nodes: a hop's time and the throughput of pages, sealed and under CURVE, against the clear.

    For example:

        flexpipe bench encryption --json

    Args:
        rounds: Turns that the kinds of link take.
        mib: MiB of pages a turn.
        json: Print facts as JSON, for machines.
    """
    from .bench import encryption_command

    return encryption_command(rounds, mib, as_json=json)


@bench.command(name="cluster")
def bench_cluster(
    model: str = DEFAULT_MODEL,
    /,
    *,
    requests: int = 100,
    tokens: int = 16,
    case: tuple[str, ...] = (),
    json: AsJson = False,
) -> int:
    """Four daemons in network namespaces under load: what kills and cut cables cost, and hops against arithmetic.

    Needs root, iproute2 and etcd-server. Every case has a cluster of its own; eight clients ask at two gateways.

    For example:

        flexpipe bench cluster --requests 25
        flexpipe bench cluster --case "kill the leader" --case "kill etcd" --json

    Args:
        model: Model to serve.
        requests: Requests of each client in each case.
        tokens: Tokens of each request.
        case: A case to run; may be given several times; all of them by default.
        json: Print facts as JSON, for machines.
    """
    from .bench import cluster_command

    return cluster_command(model, requests, tokens, case, as_json=json)


@bench.command(name="simulator")
def bench_simulator(
    *,
    requests: int = 300_000,
    json: AsJson = False,
) -> int:
    """How many events a second the cluster simulator makes on one core, from one pipeline to 100,000 devices.

    For example:

        flexpipe bench simulator --requests 1000000

    Args:
        requests: Requests to simulate at each size.
        json: Print facts as JSON, for machines.
    """
    from .bench import simulator_command

    return simulator_command(requests, as_json=json)


@bench.command(name="placement")
def bench_placement(
    *,
    instances: int = 320,
    rounds: int = 8,
    maps: Path | None = None,
    part: tuple[str, ...] = (),
    plot: Path | None = None,
    json: AsJson = False,
) -> int:
    """How good placement is: gap to the optimum, time up to 100,000 devices, and packing beside six baselines on nine maps.

    All parts take about half an hour; needs the extra `bench`.

    For example:

        flexpipe bench placement --part scale --rounds 2
        flexpipe bench placement --maps traces --json --plot plots

    Args:
        instances: Small instances for the exact judge.
        rounds: Times that each request is solved on each map.
        maps: Folder with a file for each map, named as random_90 or bestfit_50, as `flexpipe map --from` reads them; drawn from
            a seed if left out.
        part: What to measure: gap, floors, scale or packing; may be given several times; all if left out.
        plot: Folder to write plots to, as PNG.
        json: Print facts as JSON, for machines.
    """
    from .bench import placement_command

    return placement_command(instances, rounds, maps, part, plot, as_json=json)
