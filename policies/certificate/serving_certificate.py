"""Whether a serving configuration may be trusted to settle, condition by condition, and which changes must be refused.

Owns the claims of ``docs/contraction.md`` about routing and scaling as a certificate with margins in words, and the guard that
`control.controller` asks. It must never know what the controller prefers. Rates and formulas: `certificate.serving_rates`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..control.decision import Guard, GuardInputs, Refusal
from .contraction import dwell_s_min, switched_rate, tracking_bound
from .serving_facts import ControllerFacts, RouterFacts
from .serving_rates import (
    DRAIN_FACTOR,
    balance_rate,
    ball_radius_s,
    drain_s_min,
    greatest_weight,
    pause_growth,
    phase_margin_deg,
    sharpness_max_per_s,
    tracking_sensitivity,
)

REFUSED = ("drain", "reports", "dwell")
"""Conditions whose failure refuses a change; the others are told in the certificate only."""


class CertificateError(ValueError):
    """What was to be certified is no configuration."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition: ``value`` against ``limit``, both in ``unit``; ``margin`` is by how much it holds, negative where it fails."""

    name: str
    holds: bool
    value: float
    limit: float
    margin: float
    unit: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Certificate:
    """All conditions of a configuration.

    ``rate_per_s`` is how fast delays even out, ``net_rate_per_s`` what changes of shape leave of it; infinite where nothing is
    to be evened out.
    """

    facts: ControllerFacts
    rate_per_s: float
    net_rate_per_s: float
    phase_margin_deg: float
    conditions: tuple[Condition, ...]

    @property
    def holds(self) -> bool:
        """Whether every condition is met."""
        return all(condition.holds for condition in self.conditions)

    def refusal(self) -> Refusal | None:
        """The first condition that refuses a change, or None."""
        for condition in self.conditions:
            if condition.name in REFUSED and not condition.holds:
                return Refusal(condition.name, condition.sentence)
        return None


def certify(facts: ControllerFacts) -> Certificate:
    """The certificate of a configuration; raises `CertificateError` where it is none."""
    flaw = facts.flaw()
    if flaw is not None:
        raise CertificateError(flaw)
    rate = _rate(facts)
    changes = facts.growth > 1 and not math.isinf(facts.dwell_s)
    net = rate if not changes else switched_rate(rate, facts.growth, facts.dwell_s) if facts.dwell_s > 0 else -math.inf
    judged = (_drain, *_BALANCING) if facts.balances else (_drain,)
    margin = phase_margin_deg(facts.drain_s, facts.startup_s, facts.lag_s)
    return Certificate(facts, rate, net, margin, tuple(condition(facts, rate) for condition in judged))


def controller_guard(router: RouterFacts) -> Guard:
    """The guard for `controller.decide`: judges each wanted change by what the signals say at that moment.

    Raises `CertificateError` where ``router`` is none; the guard itself never raises.
    """
    wrong = router.flaw()
    if wrong is not None:
        raise CertificateError(wrong)

    def guard(inputs: GuardInputs) -> Refusal | None:
        try:
            return certify(wanted_facts(inputs, router)).refusal()
        except (CertificateError, ArithmeticError) as flaw:  # finite numbers may still have no quotient
            return Refusal("facts", f"the change cannot be judged: {flaw}")

    return guard


def wanted_facts(inputs: GuardInputs, router: RouterFacts) -> ControllerFacts:
    """The configuration that a change would lead to: equal replicas of the wanted shape under the load that is seen."""
    wanted = inputs.wanted
    return ControllerFacts(
        capacities=(wanted.capacity_tokens_per_s / max(1, wanted.replicas),) * wanted.replicas,
        arriving=inputs.observation.tokens_per_s,
        drain_s=inputs.drain_s,
        startup_s=inputs.startup_s,
        lag_s=inputs.lag_s,
        dwell_s=math.inf if inputs.dwell_s is None else inputs.dwell_s,
        growth=pause_growth(1 / max(1, wanted.replicas), wanted.switch_s, router.spread_s),
        router=router,
    )


# --- conditions -------------------------------------------------------------------------------------------------------


def _rate(facts: ControllerFacts) -> float:
    if not facts.balances:
        return math.inf
    router = facts.router
    return balance_rate(facts.load, facts.share, router.sharpness_per_s, router.spread_s) - router.service_fall_per_s


def _drain(facts: ControllerFacts, _rate_per_s: float) -> Condition:
    """Claim B: the total backlog is an integrator; capacity that comes late must not chase it too fast."""
    limit = drain_s_min(facts.startup_s, facts.lag_s)
    margin = facts.drain_s - limit
    phase = phase_margin_deg(facts.drain_s, facts.startup_s, facts.lag_s)
    stable = f"{phase:.0f} degrees of phase margin" if phase > 0 else "no phase margin: it would swing ever wider"
    sentence = (
        f"a backlog is to drain in {facts.drain_s:.3g} s, and {DRAIN_FACTOR} x ({facts.startup_s:.3g} s start-up + "
        f"{facts.lag_s:.3g} s lag) is {limit:.3g} s: the loop has {stable}"
    )
    if margin < 0:
        sentence += f"; give it {limit:.3g} s or more"
    return Condition("drain", margin >= 0, facts.drain_s, limit, margin, "s", sentence)


def _reports(facts: ControllerFacts, _rate_per_s: float) -> Condition:
    """Claim C at balance: a router too sharp for how old its reports are herds."""
    return _staleness(facts, "reports", sharpness_max_per_s(facts.load, facts.router.report_age_s), "at balance")


def _reports_in_region(facts: ControllerFacts, _rate_per_s: float) -> Condition:
    """Claim C over the region, where some replica may be more attractive than at balance."""
    router = facts.router
    weight = greatest_weight(facts.share, router.sharpness_per_s, router.spread_s)
    limit = sharpness_max_per_s(facts.load, router.report_age_s, weight)
    return _staleness(facts, "reports-in-region", limit, f"with delays up to {router.spread_s:.3g} s apart")


def _staleness(facts: ControllerFacts, name: str, limit: float, where: str) -> Condition:
    sharpness, age = facts.router.sharpness_per_s, facts.router.report_age_s
    kind = "least-work routing" if math.isinf(sharpness) else f"a sharpness of {sharpness:.3g} /s"
    if math.isinf(limit):
        return Condition(
            name, True, sharpness, limit, math.inf, "1/s", f"{kind} sees queues as they are: it cannot herd"
        )
    verdict = "stays under" if sharpness < limit else "is not under"
    sentence = f"{kind} on reports {age:.3g} s old {verdict} the {limit:.3g} /s {where} from which on routers herd"
    if sharpness >= limit:
        sentence += "; make it blunter or its reports younger"
    return Condition(name, sharpness < limit, sharpness, limit, limit - sharpness, "1/s", sentence)


def _balance(facts: ControllerFacts, rate: float) -> Condition:
    """Claim A: differences between queues die out, at any load."""
    fall = facts.router.service_fall_per_s
    sentence = f"delays within {facts.router.spread_s:.3g} s of each other even out at {rate + fall:.3g} /s or faster"
    if fall > 0:
        sentence += f", and service that slows down under its queue undoes {fall:.3g} /s of it"
    return Condition("balance", rate > 0, rate + fall, fall, rate, "1/s", sentence)


def _region(facts: ControllerFacts, rate: float) -> Condition:
    """Claim A's invariant ball: misjudged speeds do not push the queues out of the region."""
    pull, error = rate * ball_radius_s(facts.share, facts.router.spread_s), facts.router.speed_error
    sentence = (
        f"misjudged speeds drive delays apart by at most {error:.3g} s a second, and at the edge of the region routing pulls them "
        f"together by {max(pull, 0):.3g} s a second"
    )
    return Condition("region", pull >= error, pull, error, pull - error, "s/s", sentence)


def _dwell(facts: ControllerFacts, rate: float) -> Condition:
    """Claim D: changes of shape come no faster than what they do to the balance dies out."""
    limit = dwell_s_min(rate, facts.growth) if rate > 0 or facts.growth == 1 else math.inf
    margin = math.inf if math.isinf(facts.dwell_s) else facts.dwell_s - limit
    since = (
        "there was no change before"
        if math.isinf(facts.dwell_s)
        else f"the last change was {facts.dwell_s:.3g} s before"
    )
    sentence = f"{since}, and one that multiplies imbalance by {facts.growth:.3g} takes {limit:.3g} s to die out at {rate:.3g} /s"
    return Condition("dwell", margin >= 0, facts.dwell_s, limit, margin, "s", sentence)


def _tracking(facts: ControllerFacts, rate: float) -> Condition:
    """Claim E: queues stay near an even state that moves."""
    router = facts.router
    limit = ball_radius_s(facts.share, router.spread_s)
    if router.speed_drift_per_s == 0:
        return Condition("tracking", True, 0.0, limit, limit, "s", "replicas' speeds do not drift")
    if rate <= 0 or math.isinf(router.sharpness_per_s):
        behind = math.inf  # least-work routing jumps: it has no Lipschitz constant
    else:
        sensitivity = tracking_sensitivity(facts.load, facts.share, router.sharpness_per_s, router.spread_s)
        behind = tracking_bound(rate, sensitivity, router.speed_drift_per_s)
    sentence = (
        f"speeds that drift by {router.speed_drift_per_s:.3g} /s leave delays within {behind:.3g} s of even, and the region "
        f"allows {limit:.3g} s"
    )
    return Condition("tracking", behind <= limit, behind, limit, limit - behind, "s", sentence)


_BALANCING: tuple[Callable[[ControllerFacts, float], Condition], ...] = (
    _reports,
    _reports_in_region,
    _balance,
    _region,
    _dwell,
    _tracking,
)
