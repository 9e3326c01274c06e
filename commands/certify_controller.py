"""`flexpipe certify controller`: the certificate of a serving configuration, condition by condition."""

from __future__ import annotations

import json
import math
from typing import Any

from rich.table import Table

from ..policies.certificate.serving_certificate import Certificate, certify
from ..policies.certificate.serving_facts import ControllerFacts
from .console import out


def controller_command(facts: ControllerFacts, *, as_json: bool) -> int:
    """Print the certificate of ``facts``; 1 where a condition fails. Raises `CertificateError` where they are none."""
    certificate = certify(facts)
    if as_json:
        print(json.dumps(_certificate_facts(certificate)))
    else:
        _show_certificate(certificate)
    return 0 if certificate.holds else 1


def _show_certificate(certificate: Certificate) -> None:
    table = Table(box=None, header_style="bold", padding=(0, 1), pad_edge=False)
    for column in ("condition", "", "margin"):
        table.add_column(column)
    table.add_column("in words", overflow="fold")
    for condition in certificate.conditions:
        verdict = "[green]holds[/]" if condition.holds else "[red]fails[/]"
        margin = (
            "any" if math.isinf(condition.margin) and condition.holds else f"{condition.margin:+.3g} {condition.unit}"
        )
        table.add_row(condition.name, verdict, margin, condition.sentence)
    out.print(table)
    facts = certificate.facts
    if facts.balances:
        rates = f"{certificate.rate_per_s:.3g} /s, and at {certificate.net_rate_per_s:.3g} /s across changes of shape"
        _say(f"Load {facts.load:.0%}; queues even out at {rates}.")
    else:
        _say("Nothing is to be balanced: there is one replica, or no work arrives.")
    refusal = certificate.refusal()
    if refusal is not None:
        _say(f"[red]A change of shape would be refused[/] ({refusal.condition}).")
    elif certificate.holds:
        _say("[green]The certificate holds.[/]")
    else:
        _say("The certificate does not hold; changes of shape would be let through.")


def _certificate_facts(certificate: Certificate) -> dict[str, Any]:
    refusal = certificate.refusal()
    return {
        "holds": certificate.holds,
        "refused": None if refusal is None else refusal.condition,
        "load": certificate.facts.load,
        "rate_per_s": _finite(certificate.rate_per_s),
        "net_rate_per_s": _finite(certificate.net_rate_per_s),
        "phase_margin_deg": certificate.phase_margin_deg,
        "conditions": [
            {
                "name": condition.name,
                "holds": condition.holds,
                "value": _finite(condition.value),
                "limit": _finite(condition.limit),
                "margin": _finite(condition.margin),
                "unit": condition.unit,
                "sentence": condition.sentence,
            }
            for condition in certificate.conditions
        ],
    }


def _finite(value: float) -> float | None:
    """None for what is without limit, which JSON cannot say."""
    return value if math.isfinite(value) else None


def _say(text: str) -> None:
    out.print(text, highlight=False, soft_wrap=True)
