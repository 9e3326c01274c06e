"""What the maker of a system is given: the models and the map, a past to learn from, and for an oracle the future.

Owns the words between the catalogue of systems and whoever runs them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ...policies.cluster.cluster_map import ClusterMap
from ..cluster.metrics import Deadlines
from ..cluster.served_model import ServedModel
from ..cluster.startup import StartupModel
from ..cluster.system import Arrived, System
from .model_shapes import ModelFacts


@dataclass(frozen=True, slots=True)
class Situation:
    """``facts`` are profiles of each model, ``deadlines`` what its requests are promised, ``startup`` how weights come.

    ``history`` [models] is a load of the same kind from before time 0. ``future`` [models] is the load of the run itself: for
    the oracle and nobody else.
    """

    models: tuple[ServedModel, ...]
    cluster: ClusterMap
    facts: tuple[ModelFacts, ...]
    deadlines: tuple[Deadlines, ...]
    startup: StartupModel
    history: tuple[Arrived, ...]
    future: tuple[Arrived, ...]

    def work(self, load: Arrived, model: int) -> NDArray[np.float64]:
        """[n] what each request weighs, in decoded tokens."""
        weighed = load.input_tokens * self.facts[model].prompt_weight + load.output_tokens
        return np.asarray(weighed, np.float64)

    def mean_work(self, model: int) -> float:
        """Work per second of the history, from its first request to its last."""
        load = self.history[model]
        if len(load.at_s) < 2:
            return 0.0
        return float(self.work(load, model).sum() / max(load.at_s[-1] - load.at_s[0], 1e-9))

    def mean_outputs(self, model: int) -> float | None:
        """Tokens that a request of the history made."""
        outputs = self.history[model].output_tokens
        return float(outputs.mean()) if len(outputs) else None

    def alone(self, model: int) -> Situation:
        """The same with that model only."""
        return replace(
            self,
            models=(self.models[model],),
            facts=(self.facts[model],),
            deadlines=(self.deadlines[model],),
            history=(self.history[model],),
            future=(self.future[model],),
        )


Maker = Callable[[Situation], System]
"""Makes a system for one run."""
