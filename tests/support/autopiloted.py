"""A modelled pipeline with an autopilot, as the daemon wires them, in virtual time."""

import io
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio
from flexpipe.actors.autopilot import Autopilot, ShapesNow
from flexpipe.actors.decision_journal import DecisionJournal
from flexpipe.actors.event_log import EventLog
from flexpipe.actors.generation import GenerationRequest
from flexpipe.actors.load_meter import LoadMeter
from flexpipe.autopilot_factory import signal_settings
from flexpipe.policies.control.signals import Signals
from flexpipe.runtime.interface import SamplingParams
from flexpipe.shape_planning import DecodeLoad, Running, ShapePlanner
from flexpipe.sim.modelled_engine import ModelledSpeed, expected_tokens
from modelled_pipeline import MODEL, ModelledPlanner, modelled_replicas

DEVICES = 4
ATOM_S = 0.01
ROWS = 8
PACE = 20.0
OUTPUT_TOKENS = 10


class PlannedAtOnce:
    """`Shapes` without a thread: virtual time would run on meanwhile."""

    def __init__(self, planner):
        self._planner = planner

    async def now(self, routes, live_tokens):
        await trio.lowlevel.checkpoint()
        running = Running(routes, live_tokens)
        present = self._planner.present(running)
        steps = self._planner.steps_at_once(present.stages, present.replicas)
        return ShapesNow(present, self._planner.candidates(running), steps * ROWS)


@dataclass
class Autopiloted:
    """``world`` is `modelled_pipeline.ModelledReplicas`, ``text`` the autopilot's log."""

    world: object
    meter: LoadMeter
    journal: DecisionJournal
    text: io.StringIO

    def logged(self, event):
        return [line for line in map(json.loads, self.text.getvalue().splitlines()) if line["event"] == event]

    @property
    def changes(self):
        return [line for line in self.logged("autopilot_decided") if line["decision"]["action"] == "change"]

    @property
    def stages(self):
        return len(self.world.made[0].pipeline.route.stages)

    async def ask(self, number):
        """One request, whose tokens must be the right ones."""
        prompt = tuple(range(number % 50, number % 50 + 16))
        params = SamplingParams(seed=number, temperature=0.8)
        async with self.meter.open(GenerationRequest(prompt, params, OUTPUT_TOKENS)) as events:
            got = [event.token.token_id async for event in events]
        assert got == expected_tokens(MODEL, prompt, params, OUTPUT_TOKENS)

    async def load(self, requests_per_s, seconds):
        """Ask ``requests_per_s(s)`` times a second, evenly, and wait for all answers."""
        began_s, owed, number = trio.current_time(), 0.0, 0
        async with trio.open_nursery() as nursery:
            for tick in range(round(seconds * 10)):
                await trio.sleep_until(began_s + tick / 10)
                owed += requests_per_s(tick / 10) / 10
                while owed >= 1:
                    owed -= 1
                    nursery.start_soon(self.ask, number)
                    number += 1


@asynccontextmanager
async def autopiloted(settings, **options):
    """Yield an `Autopiloted` of one stage on the first of `DEVICES` devices."""
    planner = ModelledPlanner(f"cpu:{DEVICES}", threads=1, cores=DEVICES, atom_ns=round(ATOM_S * 1e9))
    shapes = ShapePlanner(
        planner.atoms, planner.planner, DecodeLoad(ROWS, 0.1, 4096), [f"cpu:{n}" for n in range(DEVICES)], {}, DEVICES
    )
    speed = ModelledSpeed(step_s_per_atom=ATOM_S)
    async with modelled_replicas(cuts=(), planner=planner, speed=speed, blocks=256, **options) as world:
        await world.wait_ready()
        text = io.StringIO()
        signals = Signals(signal_settings(PACE))
        meter = LoadMeter(world.replicas, signals, 0.1)
        journal = DecisionJournal(EventLog(text, process="daemon"), trio.current_time)
        busy = lambda: world.reshaper.is_busy  # noqa: E731
        autopilot = Autopilot(
            settings, world.replicas, world.reshaper, PlannedAtOnce(shapes), signals, meter, journal, busy
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(autopilot.run)
            yield Autopiloted(world, meter, journal, text)
            nursery.cancel_scope.cancel()
