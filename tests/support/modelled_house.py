"""Everything around a coordinator machine as plain values: disk, workers, scheduler, pool, timers. Each moves when it is told to.

What a coordinator must never do, whatever the order of events, is asserted where it would happen.
"""

from collections import deque
from itertools import pairwise

import flexpipe.actors.coordinator_events as c
from flexpipe.actors.change import ChangePhase
from flexpipe.actors.coordinator_machine import CoordinatorMachine
from flexpipe.actors.journal import NOTHING, follow
from flexpipe.actors.link_place import NamedPlaces
from flexpipe.actors.messages import (
    Abort,
    Aborted,
    Confirm,
    CopyTotals,
    Cut,
    Loaded,
    Open,
    Prepare,
    Prepared,
    Release,
    Released,
    Switched,
)
from flexpipe.actors.pipeline_spec import CoordinatorLimits, PipelineSpec
from flexpipe.actors.route import StagePlacement
from flexpipe.runtime.interface import EngineSpec, StageFacts

LAYERS = 6
LAYERS_OF = tuple((atom // 2,) if atom % 2 == 0 else () for atom in range(2 * LAYERS))
FREE_BYTES = 1 << 20


def placements(cuts, workers):
    """Stages cut at ``cuts`` (atoms) at ``workers``."""
    edges = [0, *cuts, len(LAYERS_OF)]
    return tuple(
        StagePlacement(worker, first, end, f"cpu:{worker}", 1)
        for worker, (first, end) in zip(workers, pairwise(edges), strict=True)
    )


class House:
    """``machine`` and what surrounds it. `start` brings its first epoch up to serving."""

    def __init__(self, cuts=(6,), limits=None):
        self.spec = PipelineSpec(EngineSpec(), placements(cuts, range(len(cuts) + 1)), LAYERS_OF, 64, 512)
        self.limits = limits or CoordinatorLimits()
        self.journal = NOTHING
        self.records = []
        self.writing = deque()
        self.inbox = {}  # living worker -> what it was told and has not answered
        self.coming = []  # workers that were spawned and did not say hello
        self.coming_at_most = 0
        self.going = []  # workers that were retired and are not gone
        self.rooms = deque()
        self.room = (0, 1)  # requests beyond, blocks of the largest
        self.replan = lambda wanted, _next_worker: wanted  # stages for a recovery; () where there are no devices
        self.scheduler_epoch = -1
        self.timers = []
        self.done = []  # every instruction
        self.ended = {}
        self._ever = set()
        self._prepared = {}
        self._switched = {}
        self.crossed = set()
        self.restart()

    def restart(self):
        """A new coordinator over what is on disk and who lives; timers die with the old one."""
        self.machine = CoordinatorMachine(self.spec, self.limits, NamedPlaces("memory://{epoch}-{link}"))
        self.writing.clear()
        self.rooms.clear()
        self.timers.clear()
        self.begun = None

    # --- events ---

    def handle(self, event):
        """Apply an event and carry out what comes of it."""
        instructions = self.machine.handle(event)
        for instruction in instructions:
            self.done.append(instruction)
            self._perform(instruction)
        return instructions

    def start(self):
        alive = tuple(worker for worker in self.inbox if worker not in self.going)
        return self.handle(c.Start(self.journal, alive, self.scheduler_epoch, tuple(self.going)))

    def served(self):
        """Start, and settle."""
        self.start()
        self.settle()
        return self

    def refactor(self, cuts, workers, strategy="precopy", **options):
        options = {"based_on": self.machine.epoch, "allow_preempt": False} | options
        return self.handle(c.Refactor(stages=placements(cuts, workers), strategy=strategy, **options))

    def write(self, error=""):
        """The disk is done with the oldest record, or fails."""
        record = self.writing[0]
        if error:
            self.writing.popleft()
        else:
            self.write_unheard()
        return self.handle(c.Journaled(record, error))

    def write_unheard(self):
        """The oldest record reaches the disk, and whoever wrote it never hears of it."""
        record = self.writing.popleft()
        self.journal = follow(self.journal, record)
        self.records.append((record.kind, record.epoch))

    def hello(self, worker):
        self.coming.remove(worker)
        return self.handle(c.WorkerUp(worker))

    def answer(self, worker):
        """The worker answers what it was told first, as a real one does; the answer, None where there is none."""
        message = self.inbox[worker].popleft()
        answer = self._answer(worker, message)
        if answer is not None:
            self.say(answer)
        return answer

    def say(self, answer):
        """An answer arrives."""
        for kind, heard in ((Prepared, self._prepared), (Switched, self._switched)):
            if isinstance(answer, kind):
                heard.setdefault(answer.epoch, set()).add(answer.worker)
        return self.handle(c.WorkerSaid(answer))

    def know_room(self):
        asked = self.rooms.popleft()
        return self.handle(c.RoomKnown(asked.epoch, b"", *self.room))

    def kill(self, worker):
        """A worker dies, whether it was to go or not."""
        del self.inbox[worker]
        self.coming = [other for other in self.coming if other != worker]
        self.going = [other for other in self.going if other != worker]
        return self.handle(c.WorkerGone(worker, "its process ended (signal 9)"))

    def fire(self, name):
        """The latest timer of a name runs out."""
        timer = next(timer for timer in reversed(self.timers) if timer.timer == name)
        self.timers.remove(timer)
        instructions = self.handle(c.TimerFired(timer.timer, timer.epoch))
        match instructions:
            case [c.AskStages(epoch, wanted, next_worker)]:
                stages = self.replan(wanted, next_worker)
                return self.handle(c.StagesKnown(epoch, stages, "" if stages else "no device is free"))
        return instructions

    # --- driving ---

    def moves(self):
        """What may happen next by itself, faults and timers aside."""
        moves = []
        if self.writing:
            moves.append(self.write)
        if self.rooms:
            moves.append(self.know_room)
        moves.extend(lambda w=worker: self.hello(w) for worker in self.coming)
        up = [worker for worker, told in self.inbox.items() if told and worker not in self.coming]
        moves.extend(lambda w=worker: self.answer(w) for worker in up)
        moves.extend(lambda w=worker: self.kill(w) for worker in self.going)
        return moves

    def settle(self):
        """Let everything happen that happens by itself."""
        while moves := self.moves():
            moves[0]()

    def advance_to(self, phase):
        """Let things happen until the change is in ``phase``."""
        while self.machine.change.phase is not phase:
            self.moves()[0]()

    # --- carrying out ---

    def _perform(self, instruction):
        match instruction:
            case c.SpawnWorker(placement):
                assert placement.worker not in self._ever, "a worker's number was used twice"
                self._ever.add(placement.worker)
                self.inbox[placement.worker] = deque()
                self.coming.append(placement.worker)
                self.coming_at_most = max(self.coming_at_most, len(self.coming))
            case c.TellWorker(worker, message):
                self._tell(worker, message)
            case c.RetireWorker(worker):
                assert worker in self.inbox
                self.going.append(worker)
            case c.WriteJournal(record):
                self._write(record)
            case c.AskRoom():
                self.rooms.append(instruction)
            case c.BringUp(route):
                assert self.scheduler_epoch < 0 or self.scheduler_epoch == route.epoch
                self._cut(route, ())
            case c.SwitchOver(route, leaving):
                assert self.scheduler_epoch >= 0
                self._cut(route, leaving)
            case c.Interrupt() | c.TakeDown():
                self.scheduler_epoch = -1
            case c.SetTimer():
                self.timers.append(instruction)
            case c.Begun(epoch):
                assert self.begun in (None, epoch), "two changes at once"
                self.begun = epoch
            case c.Ended(epoch):
                assert self.begun == epoch, "a change ended that had not begun, or twice"
                self.begun = None
                self.ended[epoch] = instruction

    def _tell(self, worker, message):
        committed = self.journal.committed
        if isinstance(message, Abort):
            assert committed is None or message.epoch > committed.epoch, "what was decided was aborted"
        if isinstance(message, Release):
            change = self.machine.change
            assert change.phase is ChangePhase.RELEASING
            heard = self._switched.get(message.epoch, set())
            assert set(change.route.workers) <= heard, "released before all were past the cut"
        if worker in self.inbox:
            self.inbox[worker].append(message)

    def _write(self, record):
        if record.kind == "planned":
            written = (self.journal.highest_epoch, *(earlier.epoch for earlier in self.writing))
            assert record.epoch > max(written), "epochs ascend"
        if record.kind == "commit":
            plan = self.journal.undecided
            assert plan is not None
            assert plan.epoch == record.epoch, "a decision without a plan on disk"
            assert set(plan.workers) <= self._prepared.get(record.epoch, set()), "decided before all had voted"
        self.writing.append(record)

    def _cut(self, route, leaving):
        assert self.journal.committed is not None
        assert self.journal.committed.route == route, "cut over before the decision was on disk"
        if self.scheduler_epoch != route.epoch:  # told again: nothing
            assert route.epoch > self.scheduler_epoch
            self.scheduler_epoch = route.epoch
            for worker in (*route.workers, *leaving):
                if worker in self.inbox:
                    self.inbox[worker].append(Cut(route.epoch, 0, b"", abandon=False))

    def _answer(self, worker, message):
        match message:
            case Prepare(epoch, _, first, end):
                return Loaded(epoch, worker, facts(first, end))
            case Open(epoch):
                return Prepared(epoch, worker, 0)
            case Cut(epoch):
                self.crossed.add((worker, epoch))
                return Switched(epoch, worker, 0, CopyTotals())
            case Confirm(epoch):
                return Switched(epoch, worker, 0, CopyTotals()) if (worker, epoch) in self.crossed else None
            case Release(epoch):
                return Released(epoch, worker, 0)
            case Abort(epoch):
                return Aborted(epoch, worker)


def facts(first, end, free=FREE_BYTES):
    """What a worker says of atoms ``[first, end)``."""
    layers = tuple(layer for atom in range(first, end) for layer in LAYERS_OF[atom])
    return StageFacts(
        weight_bytes=end - first,
        kv_bytes_per_block=128 * len(layers),
        memory_free_bytes=free,
        layers=layers,
        page_bytes=(128,) * len(layers),
        blocks_held=(0,) * len(layers),
        page_layout="modelled",
        backend="modelled",
    )
