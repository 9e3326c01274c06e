"""Who keeps what: against brute force, the shapes of change by example, and refusals."""

from itertools import pairwise, product

import pytest
from flexpipe.policies.reassignment import (
    Devices,
    DeviceTakenError,
    HeldStage,
    SameShapeError,
    TooFewDevicesError,
    UncoveredError,
    UnknownDeviceError,
    WantedStage,
    reassign,
)
from hypothesis import given, settings
from hypothesis import strategies as st

CPUS = Devices(tuple(f"cpu:{number}" for number in range(64)))


def held(*cuts, first_worker=0):
    """A pipeline cut at ``cuts``, the last of which is its end; worker w on cpu:w."""
    return tuple(
        HeldStage(worker, first, end, f"cpu:{worker}")
        for worker, (first, end) in enumerate(pairwise((0, *cuts)), start=first_worker)
    )


def wanted(*cuts, on=()):
    """Stages cut at ``cuts``; ``on`` says (place, device)."""
    return tuple(
        WantedStage(first, end, dict(on).get(place)) for place, (first, end) in enumerate(pairwise((0, *cuts)))
    )


def shape(stages):
    return [(stage.worker, stage.first_atom, stage.end_atom, stage.device) for stage in stages]


def change(present, stages, atom_bytes=None, devices=CPUS, next_worker=10):
    return reassign(present, stages, atom_bytes or [1] * present[-1].end_atom, devices, next_worker)


def kept_bytes(present, stages, atom_bytes):
    home = {atom: stage.worker for stage in present for atom in stage.atoms}
    return sum(atom_bytes[atom] for stage in stages for atom in stage.atoms if home[atom] == stage.worker)


def most_kept(present, stages, atom_bytes):
    """The most bytes that can stay, over every way to give wanted stages different workers, or new ones."""
    workers = [None, *(stage.worker for stage in present)]
    fixed = {stage.device: stage.worker for stage in present}
    best = 0
    for choice in product(workers, repeat=len(stages)):
        taken = [worker for worker in choice if worker is not None]
        if len(set(taken)) != len(taken):
            continue
        if any(s.device is not None and fixed.get(s.device) != w for s, w in zip(stages, choice, strict=True)):
            continue
        given_out = [
            HeldStage(-1 if w is None else w, s.first_atom, s.end_atom, "") for s, w in zip(stages, choice, strict=True)
        ]
        best = max(best, kept_bytes(present, given_out, atom_bytes))
    return best


@st.composite
def changes(draw):
    atoms = draw(st.integers(1, 10))
    some_cuts = st.sets(st.integers(1, atoms - 1), max_size=4).map(sorted) if atoms > 1 else st.just([])
    present = held(*draw(some_cuts), atoms)
    stages = wanted(*draw(some_cuts), atoms)
    if draw(st.booleans()):
        device = draw(st.sampled_from([*(stage.device for stage in present), "cpu:20"]))
        stages = wanted(*(stage.end_atom for stage in stages), on=[(draw(st.integers(0, len(stages) - 1)), device)])
    atom_bytes = draw(st.lists(st.integers(0, 5), min_size=atoms, max_size=atoms))
    return present, stages, atom_bytes


@given(changes())
@settings(max_examples=300, deadline=None)
def test_no_other_assignment_keeps_more_bytes_where_they_are(case):
    present, stages, atom_bytes = case
    try:
        found = change(present, stages, atom_bytes)
    except SameShapeError:
        assert [(s.first_atom, s.end_atom) for s in stages] == [(s.first_atom, s.end_atom) for s in present]
        return
    assert kept_bytes(present, found, atom_bytes) == most_kept(present, stages, atom_bytes)
    assert [(s.first_atom, s.end_atom) for s in found] == [(s.first_atom, s.end_atom) for s in stages]
    assert all(s.device in (None, f.device) for s, f in zip(stages, found, strict=True))
    assert len({s.worker for s in found}) == len({s.device for s in found}) == len(found)
    device_of = {s.worker: s.device for s in present}
    assert all(device_of.get(s.worker, s.device) == s.device for s in found)
    assert not {s.device for s in found if s.worker not in device_of} & set(device_of.values())
    assert sorted(s.worker for s in found if s.worker not in device_of) == list(
        range(10, 10 + sum(s.worker not in device_of for s in found))
    )


@pytest.mark.parametrize(
    ("present", "stages", "after"),
    [
        (held(30), wanted(15, 30), [(0, 0, 15, "cpu:0"), (10, 15, 30, "cpu:1")]),
        (held(30), wanted(10, 30), [(10, 0, 10, "cpu:1"), (0, 10, 30, "cpu:0")]),
        (held(10, 30), wanted(30), [(1, 0, 30, "cpu:1")]),
        (held(10, 30), wanted(12, 30), [(0, 0, 12, "cpu:0"), (1, 12, 30, "cpu:1")]),
        (held(10, 30), wanted(10, 30, on=[(1, "cpu:7")]), [(0, 0, 10, "cpu:0"), (10, 10, 30, "cpu:7")]),
        (held(10, 30), wanted(10, 30, on=[(0, "cpu:1")]), [(1, 0, 10, "cpu:1"), (10, 10, 30, "cpu:2")]),
        (
            held(10, 20, 30),
            wanted(5, 10, 25, 30),
            [(0, 0, 5, "cpu:0"), (10, 5, 10, "cpu:3"), (1, 10, 25, "cpu:1"), (2, 25, 30, "cpu:2")],
        ),
    ],
    ids=["split", "split off the smaller part", "merge", "shift", "move", "move onto another", "split and shift"],
)
def test_a_change_leaves_the_most_where_it_is(present, stages, after):
    assert shape(change(present, stages)) == after


def test_a_chain_of_changes_never_uses_a_worker_again():
    stages, next_worker, seen = held(12), 1, {0}
    for cuts in [(6, 12), (3, 6, 9, 12), (1, 3, 4, 6, 7, 9, 10, 12), (4, 8, 12), (12,), (2, 4, 6, 8, 12)]:
        before = {stage.worker for stage in stages}
        stages = reassign(stages, wanted(*cuts), [1] * 12, CPUS, next_worker)
        new = {stage.worker for stage in stages} - before
        assert not new & seen
        seen |= new
        next_worker = max(seen) + 1
    assert len(stages) == 5


def test_a_worker_that_keeps_nothing_takes_a_stage_where_no_device_is_free():
    present = held(10, 20, 30)
    only_these = Devices(("cpu:0", "cpu:1", "cpu:2"))
    assert shape(change(present, wanted(1, 2, 30), devices=only_these)) == [
        (0, 0, 1, "cpu:0"),
        (2, 1, 2, "cpu:2"),
        (1, 2, 30, "cpu:1"),
    ]


def test_devices_of_workers_that_leave_are_not_free_yet():
    devices = Devices(("cpu:0", "cpu:1", "cpu:2", "cpu:3"), taken=frozenset({"cpu:1"}))
    assert shape(change(held(10), wanted(5, 10), devices=devices))[1][3] == "cpu:2"
    with pytest.raises(DeviceTakenError, match="cpu:1 is still in use by a worker that is leaving"):
        change(held(10), wanted(5, 10, on=[(1, "cpu:1")]), devices=devices)


def test_a_device_that_is_not_offered_is_used_where_it_is_named():
    devices = Devices(("cpu:0", "cpu:1"), by_name=("cuda:0",))
    assert shape(change(held(10), wanted(5, 10), devices=devices))[1][3] == "cpu:1"
    assert shape(change(held(10), wanted(5, 10, on=[(1, "cuda:0")]), devices=devices))[1][3] == "cuda:0"


@pytest.mark.parametrize(
    ("stages", "devices", "error", "sentence"),
    [
        (wanted(4, 8), CPUS, SameShapeError, "the pipeline already has this shape"),
        (wanted(4, 8, on=[(0, "cpu:0")]), CPUS, SameShapeError, "the pipeline already has this shape"),
        (wanted(4, 7), CPUS, UncoveredError, "the stages would hold 7 atoms; the model has 8"),
        (wanted(4, 9), CPUS, UncoveredError, "the stages would hold 9 atoms; the model has 8"),
        ((WantedStage(0, 4), WantedStage(5, 8)), CPUS, UncoveredError, "stage 1 .* has to begin at atom 4"),
        ((WantedStage(0, 4), WantedStage(4, 4)), CPUS, UncoveredError, "stage 1 .* to hold one at least"),
        ((), CPUS, UncoveredError, "the stages would hold 0 atoms"),
        (wanted(8, on=[(0, "cpu:64")]), CPUS, UnknownDeviceError, r"no device cpu:64 here; there are cpu:0, .* cpu:63"),
        (wanted(8, on=[(0, "cuda:0")]), CPUS, UnknownDeviceError, "no device cuda:0 here"),
        (wanted(4, 8, on=[(0, "cpu:5"), (1, "cpu:5")]), CPUS, DeviceTakenError, "cpu:5 would hold two stages"),
        (
            wanted(2, 4, 6, 8),
            Devices(("cpu:0", "cpu:1", "cpu:2")),
            TooFewDevicesError,
            "4 stages need 4 devices, 1 more than are here: cpu:0, cpu:1, cpu:2; ask for fewer stages",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(stages, devices, error, sentence):
    with pytest.raises(error, match=sentence):
        change(held(4, 8), stages, devices=devices)
