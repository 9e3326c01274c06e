"""Tetris (ATC 2022): serverless functions whose instances share tensors and run-time, packed as tightly as memory allows.

What makes it itself is here: instances are packed onto the fullest devices with room, those of other services included; tensors
that a server has are shared by later instances there, so a second start loads from host memory; instances are used at high
utilisation and kept alive for long. Simplified:

- sharing inside one GPU is left out, since two stages of one model never share a device here; what it saves is memory, which only
  matters where a map is full;
- its batching is the engine's;
- it autoscales by requests in flight (`concurrency`) at a high target: the paper reports 85 % utilisation for it.
"""

from __future__ import annotations

from .concurrency import Autoscaled, Scaling
from .muxserve import fullest_with_room
from .situation import Situation

SCALING = Scaling(target=0.85, keep_alive_s=300.0, drain=True)


def tetris(situation: Situation) -> Autoscaled:
    """The system."""
    return Autoscaled("Tetris", situation, SCALING, fullest_with_room)
