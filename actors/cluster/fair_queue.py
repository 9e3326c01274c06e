"""How much of the leader's queue one gateway may fill while others are there: values and one rule, no clock.

The rule is the dynamic threshold of shared buffers (Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory
packet switches", 1998): a gateway may have at most ``SHARE`` times as many requests waiting as there are free places. So one that
floods the queue leaves others a third of what was free, and gets no more before that was used; one by itself may use all.
"""

from __future__ import annotations

from collections.abc import Sequence

SHARE = 2
"""Greater shares leave less free, and a flood less room to others."""


def may_wait(waiting: int, others: Sequence[int], queue_requests_max: int) -> bool:
    """Whether a gateway with ``waiting`` requests in the queue may have one more, where ``others`` have so many."""
    return not others or waiting < SHARE * (queue_requests_max - waiting - sum(others))
