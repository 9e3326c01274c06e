"""Which replica gets the next request."""

import random

import pytest
from flexpipe.policies.dispatch import ReplicaLoad, preference


@pytest.mark.parametrize(
    ("loads", "order"),
    [
        ([ReplicaLoad(0, True, 500), ReplicaLoad(1, True, 20)], (1, 0)),
        ([ReplicaLoad(2, True, 7), ReplicaLoad(1, True, 7), ReplicaLoad(0, True, 8)], (1, 2, 0)),
        ([ReplicaLoad(0, False, 0), ReplicaLoad(1, True, 9_000)], (1, 0)),
        ([ReplicaLoad(0, False, 30), ReplicaLoad(1, False, 20)], (1, 0)),
        ([], ()),
    ],
    ids=["least work", "lowest number on a tie", "one that serves", "none serves", "none at all"],
)
def test_the_replica_with_the_least_work_comes_first(loads, order):
    assert preference(loads) == order


def test_the_order_in_which_replicas_are_named_does_not_matter():
    loads = [ReplicaLoad(number, number % 2 == 0, number % 3) for number in range(9)]
    shuffled = random.Random(1).sample(loads, len(loads))
    assert preference(shuffled) == preference(loads)


def test_requests_of_all_lengths_end_up_spread_by_their_work():
    random_ = random.Random(2)
    work = [0] * 4
    for _ in range(400):
        chosen, *_ = preference(ReplicaLoad(number, True, tokens) for number, tokens in enumerate(work))
        work[chosen] += random_.randrange(1, 2_000)
    assert max(work) - min(work) < 2_000
