"""FlexPipe as the paper has it: granularity and instances by its Eq. 4, 5, 11 and 12 (`control.granularity_paper`).

The equations' constants, which the paper does not give, are the policy's defaults. It is held back by the same controller,
limits and guard as ours, since the paper's own loop has none that it states, and placed and warmed as ours. Simplified: several
granularities at once, which the paper allows, are not; see also `controlled`.
"""

from __future__ import annotations

from ...policies.control.granularity_paper import PaperPolicy
from .controlled import Controlled, ControlSettings, usual_guard
from .situation import Situation


def paper(situation: Situation) -> Controlled:
    """The system."""
    settings = ControlSettings(PaperPolicy(), guard=usual_guard())
    return Controlled("FlexPipe (paper)", situation, lambda _model: settings)
