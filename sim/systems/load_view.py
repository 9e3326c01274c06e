"""What a simulated system learns of one model's load: `control.signals` fed from a `View`, as a daemon's load meter feeds them.

Owns the unit of work (decoded tokens; a prompt's token weighs less, since a prefill computes many at once), the guess at how much a
request will make, and what was served. An arriving request's own output is never looked at.
"""

from __future__ import annotations

from ...policies.control.observation import Observation
from ...policies.control.signals import Signals
from ..cluster.system import ReplicaView, View

OUTPUT_TOKENS_AT_FIRST = 128.0
"""What a request is taken to make while none has ended yet: `actors.load_meter`'s."""
OUTPUT_SMOOTHING = 0.05
"""Weight of the last request's output in the expected one; likewise."""


class LoadView:
    """The load of model ``model``. `see` each view once."""

    def __init__(self, model: int, prompt_weight: float, output_tokens: float | None = None) -> None:
        self.served_tokens = 0.0
        self.signals = Signals()
        self._model = model
        self._prompt_weight = prompt_weight
        self._output_tokens = output_tokens
        self._served: dict[int, float] = {}

    def see(self, view: View, full_rows: int, kv_tokens: int) -> None:
        """Feed what has come and gone since the view before, and how full the replicas are.

        ``full_rows`` requests saturate the replicas, those that start included, and ``kv_tokens`` is their KV room: what runs
        beyond full rows only makes steps slower, and counts as waiting.
        """
        replicas = view.of(self._model)
        self._see_arrivals(view)
        self._see_ends(view)
        self._see_service(replicas)
        waiting = sum(replica.waiting for replica in replicas) + view.unplaced[self._model]
        running = sum(replica.running for replica in replicas)
        used = sum(replica.kv_used for replica in replicas)
        self.signals.sample(
            view.now_s, waiting + max(0, running - full_rows), running, used / max(kv_tokens, 1), full_rows
        )

    def observe(self, now_s: float) -> Observation:
        """All signals now."""
        return self.signals.observe(now_s)

    def _see_arrivals(self, view: View) -> None:
        arrived = view.arrived[self._model]
        expected = OUTPUT_TOKENS_AT_FIRST if self._output_tokens is None else self._output_tokens
        work = arrived.input_tokens * self._prompt_weight + expected
        for at_s, tokens in zip(arrived.at_s.tolist(), work.tolist(), strict=True):
            self.signals.arrived(at_s, tokens)

    def _see_ends(self, view: View) -> None:
        finished = view.finished[self._model]
        for at_s, service_s, outputs in zip(
            finished.at_s.tolist(), finished.service_s.tolist(), finished.output_tokens.tolist(), strict=True
        ):
            self.signals.finished(at_s, service_s)
            known = outputs if self._output_tokens is None else self._output_tokens
            self._output_tokens = known + OUTPUT_SMOOTHING * (outputs - known)

    def _see_service(self, replicas: tuple[ReplicaView, ...]) -> None:
        before, self._served = self._served, {}
        for replica in replicas:
            served = replica.served_tokens + self._prompt_weight * replica.prompt_tokens
            self._served[replica.number] = served
            self.served_tokens += max(0.0, served - before.get(replica.number, 0.0))
