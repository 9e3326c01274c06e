"""The hand that does harm: waits for the phase that a fault is aimed at, chooses a victim, strikes, and heals what heals.

It counts a fault where it took effect, by the phase in which the world was at that moment.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import trio

from ...actors.coordinator_events import FromWorker, ToWorker
from ...actors.messages import CopyProgress, LoadProgress, StageFailed
from ...transport.memory import MemoryNetwork
from ...transport.memory_wire import Weather
from .actors import WorldEngine, WorldJournal
from .checks import Checks
from .scenario import Aim, Scenario

SILENCE_S = 1.0
"""A partition from this long on may end links, whose limit of silence is 1.5 s."""
STORM = Weather(0.0, 0.15, 0.1, 0.1)
"""The weather of "delay": frames of different links overtake each other by far."""
ECHO_S_MAX = 0.2
"""The second copy of a repeated message may come so much later, or when the phase in which it counted comes again."""
LOOK_S = 0.0005
APPEARS_LOOKS_MAX = 100
"""A worker that was asked for is there soon; so often, so far apart, is it looked for."""
SLOWNESS = 25.0
"""How much slower a "slow" worker is."""


class Victims(Protocol):
    """The world as the hand needs it."""

    network: MemoryNetwork
    journal: WorldJournal

    @property
    def engines(self) -> dict[int, WorldEngine]:
        """The engines of workers, by worker."""
        ...

    def phase(self) -> str:
        """One of `scenario.PHASES`."""
        ...

    def routes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The workers of the route that serves (or served), and of the one that is being made (the same where none is)."""
        ...

    def living(self) -> list[int]:
        """The workers whose processes live, in order."""
        ...

    def kill(self, worker: int) -> None:
        """Kill a worker as kill -9 does."""
        ...

    def crash_coordinator(self) -> None:
        """End the coordinator; another one starts a little later."""
        ...

    def crash_daemon(self) -> None:
        """End the whole daemon: coordinator, pool, scheduler; another one starts a little later."""
        ...

    def send_a_client_away(self, choice: float) -> bool:
        """Let some client leave; False where none is there."""
        ...

    def note(self, fault: str, phase: str, target: str) -> None:
        """For the log."""
        ...


class Faults:
    """One history's faults. `run` ends when all have struck or cannot any more."""

    def __init__(self, scenario: Scenario, world: Victims, checks: Checks) -> None:
        self.injected: Counter[tuple[str, str]] = Counter()
        self.last_harm_s = 0.0
        self.silenced = False  # whether somebody fell silent for longer than links bear
        self._world = world
        self._checks = checks
        self._chance = random.Random(f"faults {scenario.seed}")  # noqa: S311 - reproducible on purpose
        self._weather = scenario.weather
        self._pending: list[Aim] = list(scenario.aims)
        self._in_order = len(scenario.aims) > 1 and scenario.aims[1].armed_in in ("abort", "recovery")
        self._under_way = 0
        self._kept: list[tuple[str, Callable[[], None]]] = []  # second copies, for when their phase comes again
        self._losing = 0
        self._repeating = 0
        self._daemon_crashed = False
        self._nursery: trio.Nursery | None = None
        self._strikes: dict[str, Callable[[Aim], Awaitable[None]]] = {
            "crash-old": self._crash,
            "crash-new": self._crash,
            "crash-both": self._crash,
            "hang": self._hang,
            "slow": self._slow,
            "no-memory": self._no_memory,
            "coordinator": self._coordinator,
            "daemon": self._daemon,
            "lose": self._lose,
            "repeat": self._repeat,
            "delay": self._delay,
            "partition": self._partition,
            "partition-one-way": self._partition,
            "disk-full": self._disk_full,
            "corrupt-page": self._corrupt_page,
            "corrupt-frame": self._corrupt_frame,
            "cancel": self._cancel,
        }

    @property
    def quiet(self) -> bool:
        """Whether nothing strikes now."""
        return self._under_way == 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Strike until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    def entered(self, phase: str) -> None:
        """The world entered a phase: what is aimed at it strikes soon."""
        assert self._nursery is not None
        kept, self._kept = self._kept, []
        for kept_in, deliver in kept:
            # Late is worst where the phase comes again, or when all is over.
            if kept_in in (phase, "recovery") or (phase == "serving" and self._chance.random() < 0.5):
                self._repeat_after(self._chance.uniform(0, 0.004), deliver)
            else:
                self._kept.append((kept_in, deliver))
        candidates = self._pending[:1] if self._in_order else list(self._pending)
        for aim in candidates:
            if aim.armed_in == phase:
                self._pending.remove(aim)
                self._under_way += 1
                self._nursery.start_soon(self._strike, aim)

    def pass_on(self, message: ToWorker | FromWorker, deliver: Callable[[], None]) -> None:
        """See `actors.Hand`. Only what is asked for again may be lost."""
        mischief = not isinstance(message, LoadProgress | CopyProgress | StageFailed) and self._chance.random() < 0.6
        if mischief and self._losing:
            self.happened("lose")
            return
        deliver()
        if mischief and self._repeating:
            self.happened("repeat")
            if self._chance.random() < 0.7:
                self._kept.append((self._world.phase(), deliver))
            else:
                self._repeat_after(self._chance.choice((0.0, self._chance.uniform(0, ECHO_S_MAX))), deliver)

    def _repeat_after(self, delay_s: float, deliver: Callable[[], None]) -> None:
        async def later() -> None:
            await trio.sleep(delay_s)
            deliver()

        assert self._nursery is not None
        self._nursery.start_soon(later)

    def happened(self, kind: str, *, severe: bool = False, target: str = "") -> None:
        """See `actors.Hand`."""
        phase = self._world.phase()
        self.injected[phase, kind] += 1
        self.last_harm_s = trio.current_time()
        self._checks.severe |= severe
        self._world.note(kind, phase, target)

    async def _strike(self, aim: Aim) -> None:
        try:
            await trio.sleep(aim.delay_s)
            await self._strikes[aim.kind](aim)
        finally:
            self._under_way -= 1
            self.last_harm_s = trio.current_time()

    # --- victims ---

    def _choose(self, aim: Aim, workers: Sequence[int]) -> int | None:
        living = self._world.living()
        candidates = [worker for worker in living if worker in workers]
        return candidates[int(aim.choice * len(candidates))] if candidates else None

    def _wanted(self, kind: str) -> list[int]:
        old, new = self._world.routes()
        match kind:
            case "crash-old":
                return [worker for worker in old if worker not in new]
            case "crash-new":
                return [worker for worker in new if worker not in old]
            case "crash-both":
                return [worker for worker in old if worker in new]
            case _:
                return [*old, *new]

    def _is_severe(self, worker: int) -> bool:
        """Before anybody can have voted, only the loss of a worker that serves may be felt."""
        old, _ = self._world.routes()
        return worker in old or self._world.phase() not in ("plan", "load")

    # --- strikes ---

    async def _crash(self, aim: Aim) -> None:
        worker = self._choose(aim, self._wanted(aim.kind))
        if worker is not None:
            self.happened(aim.kind, severe=self._is_severe(worker), target=f"worker {worker}")
            self._world.kill(worker)

    async def _hang(self, aim: Aim) -> None:
        worker = self._choose(aim, self._wanted(aim.kind))
        if worker is not None:
            self.happened("hang", severe=self._is_severe(worker), target=f"worker {worker}")
            self.silenced = True
            self._world.network.hang(f"worker-{worker}")

    async def _slow(self, aim: Aim) -> None:
        worker = self._choose(aim, self._wanted(aim.kind))
        if worker is None:
            return
        engine = self._world.engines[worker]
        speed = engine.speed
        self.happened("slow", target=f"worker {worker}")
        engine.speed = speed.slowed(SLOWNESS)
        await trio.sleep(aim.lasts_s)
        engine.speed = speed

    async def _no_memory(self, aim: Aim) -> None:
        if self._daemon_crashed:
            return  # a first start that finds no memory is rightly given up
        old, new = self._world.routes()
        newcomers = [worker for worker in new if worker not in old] or list(new)
        for _ in range(APPEARS_LOOKS_MAX):
            worker = self._choose(aim, newcomers)
            if worker is not None:
                self._world.engines[worker].refuses_memory = True
                return
            await trio.sleep(LOOK_S)

    async def _coordinator(self, aim: Aim) -> None:  # noqa: ARG002 - it has no victim to choose
        self.happened("coordinator")
        self._world.crash_coordinator()

    async def _daemon(self, aim: Aim) -> None:  # noqa: ARG002
        self.happened("daemon", severe=True)
        self._daemon_crashed = True
        self._world.crash_daemon()

    async def _lose(self, aim: Aim) -> None:
        self._losing += 1
        await trio.sleep(aim.lasts_s)
        self._losing -= 1

    async def _repeat(self, aim: Aim) -> None:
        self._repeating += 1
        await trio.sleep(aim.lasts_s)
        self._repeating -= 1
        await trio.sleep(ECHO_S_MAX)

    async def _delay(self, aim: Aim) -> None:
        self.happened("delay")
        self._world.network.weather = STORM
        await trio.sleep(aim.lasts_s)
        self._world.network.weather = self._weather

    async def _partition(self, aim: Aim) -> None:
        names = ["daemon", *(f"worker-{worker}" for worker in self._world.living())]
        if len(names) < 2:
            return
        first, second = self._chance.sample(names, 2)
        self.happened(aim.kind, severe=aim.lasts_s >= SILENCE_S, target=f"{first}, {second}")
        self.silenced |= aim.lasts_s >= SILENCE_S
        network = self._world.network
        ways = [(first, second), (second, first)] if aim.kind == "partition" else [(first, second)]
        for way in ways:
            network.cut(*way)
        await trio.sleep(aim.lasts_s)
        for way in ways:
            network.heal(*way)

    async def _disk_full(self, aim: Aim) -> None:
        self._world.journal.full = True
        await trio.sleep(aim.lasts_s)
        self._world.journal.full = False

    async def _corrupt_page(self, aim: Aim) -> None:
        for worker in self._world.living():
            self._world.engines[worker].damages_pages = 1 + int(aim.choice * 3)

    async def _corrupt_frame(self, aim: Aim) -> None:
        worker = self._choose(aim, self._wanted(aim.kind))
        if worker is None:
            return
        self._checks.garbage = True
        self.happened("corrupt-frame", severe=True, target=f"worker {worker}")
        for name in ("daemon", *(f"worker-{other}" for other in self._world.living())):
            self._world.network.corrupt_next(f"worker-{worker}", name)

    async def _cancel(self, aim: Aim) -> None:
        if self._world.send_a_client_away(aim.choice):
            self.happened("cancel")
