"""ServerlessLLM (OSDI 2024): checkpoints near the GPUs, loaded fast; replicas by demand; running requests migrate by their tokens.

What makes it itself is here: weights stay in the host memory of every server that has had them, so that a second start there
loads at host speed; a replica that goes hands its requests over as tokens, and their KV is computed anew where they go on; new
replicas prefer servers that hold the weights. Simplified:

- its loader's own format (3.6 to 8.2 times as fast from SSD) is not modelled apart: a cold start is everybody's cold start;
- migration's rounds are one recomputation;
- it autoscales by requests in flight (`concurrency`), since its scheduler places single requests and has no rule of its own
  for how many replicas there should be;
- one depth, the least with room: the paper runs it with DeepSpeed's static parallelism.
"""

from __future__ import annotations

from .concurrency import Autoscaled, Scaling
from .placing import planned
from .situation import Situation

SCALING = Scaling(target=0.7, keep_alive_s=60.0, drain=False)


def serverlessllm(situation: Situation) -> Autoscaled:
    """The system; the product's placement, which knows warm nodes, stands for its start-up-time-aware scheduler."""
    return Autoscaled("ServerlessLLM", situation, SCALING, planned)
