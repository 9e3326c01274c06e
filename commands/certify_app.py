"""The arguments of `flexpipe certify microgrid9 | controller`; nothing heavy is imported before one of them runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from ..policies.certificate.serving_facts import RouterFacts
from ..policies.control.decision import Limits

AsJson = Annotated[bool, Parameter(negative="", help="Print facts as JSON, for machines.")]

_LIMITS = Limits()

certify = App(
    name="certify", help="Prove by contraction theory that something settles, and by which margins.", config=[]
)


@certify.command
def microgrid9(*, plot: Path | None = None, json: AsJson = False) -> int:
    """Three grid-forming inverters on the 9-bus grid: rates proved over regions, invariant balls, bounds against simulation.

    For example:

        flexpipe certify microgrid9
        flexpipe certify microgrid9 --plot microgrid9.png

    Args:
        plot: File to draw the study into, as PNG; needs the extra `bench`.
        json: Print facts as JSON, for machines.
    """
    from .certify_microgrid import microgrid_command

    return microgrid_command(plot, as_json=json)


@certify.command
def controller(
    *,
    capacities: tuple[float, ...] = (1000.0, 1000.0),
    arriving: float = 1400.0,
    drain_s: float = _LIMITS.drain_s,
    startup_s: float = 10.0,
    lag_s: float = _LIMITS.confirm_grow_s,
    dwell_s: float = _LIMITS.dwell_s_min,
    growth: float = 1.5,
    router: Annotated[RouterFacts, Parameter(name="*")] = RouterFacts(),  # noqa: B008 - frozen value
    json: AsJson = False,
) -> int:
    """A serving configuration: whether it settles, condition by condition. Ends with 1 where a condition fails.

    The conditions are a fluid model's: they tell what thrashes or herds, and promise nothing about single requests. What is
    not given is as the controller's own limits and FlexPipe's own router have it; capacities, load and start-up are an example.

    For example:

        flexpipe certify controller
        flexpipe certify controller --startup-s 40 --drain-s 30
        flexpipe certify controller --capacities 1000 --capacities 600 --sharpness-per-s 1 --report-age-s 1 --spread-s 0.5

    Args:
        capacities: What each replica can do, tokens a second; once for each replica.
        arriving: What arrives, tokens a second.
        drain_s: Within how many seconds the controller wants a backlog gone.
        startup_s: Seconds from its decision until new capacity serves.
        lag_s: How old its view of the load is, seconds.
        dwell_s: Seconds between two changes of shape.
        growth: By how much such a change multiplies the imbalance of queues at most.
        router: How requests are shared among replicas.
        json: Print facts as JSON, for machines.
    """
    from ..policies.certificate.serving_facts import ControllerFacts
    from .certify_controller import controller_command

    facts = ControllerFacts(capacities, arriving, drain_s, startup_s, lag_s, dwell_s, growth, router)
    return controller_command(facts, as_json=json)
