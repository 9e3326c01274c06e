"""The autopilot's demo: the bursts of a code assistant, and nobody at the wheel.

Four minutes of a real trace are played four times as fast on one large device and three fragments. The pipeline begins as one
stage; the autopilot splits it over the fragments when a burst comes, and merges it again when that has passed. It prints what was
decided in words, and compares every answer with what an idle server says to the same prompt. Run it with `make demo-auto`.
"""

import sys
from collections import Counter
from dataclasses import dataclass

import trio
from flexpipe.actors.config import ServeConfig
from flexpipe.client import AsyncClient
from flexpipe.client_errors import FlexPipeError
from flexpipe.commands.console import err, out
from flexpipe.commands.serve import prepared_model, with_server
from flexpipe.sim.arrival_trace import AZURE_CODE, ArrivalTrace, bundled

MODEL = "smollm2"
CONFIG = ServeConfig(
    auto=True, devices="cpu:1x2GiB,cpu:3x512MiB", threads=1, pace=20.0, queue=2048, deterministic=True, port=0
)
"""One device that holds the model alone, and three fragments that do not; the autopilot lives twenty times as fast."""
WINDOW_S, SPEED = (2000.0, 2240.0), 4.0
"""What is played of the trace: silence, a burst of a minute, silence, another, silence; in a quarter of that time."""
INPUTS, OUTPUTS = 128, 4
"""Prompts of a 128th of their tokens, answers of a quarter: two cores are no cluster."""
SUBJECTS = ("harbour", "lighthouse", "railway", "orchard", "observatory", "market", "glacier", "library")
PROMPT_STEP_WORDS = 8
"""Prompts differ in their subject and in whole steps of length, so that each comes several times."""
REPORT_S = 5.0
SHRINK_S_MAX = 120.0
REFERENCES_AT_ONCE = 4


@dataclass
class Answer:
    """One request's way."""

    prompt: str
    tokens: int
    text: str | None = None
    failure: str = ""


def prompt_of(number: int, tokens: int) -> str:
    """About ``tokens`` tokens of text, in steps."""
    subject = SUBJECTS[number % len(SUBJECTS)]
    sentence = f"def visit_{subject}(tides, lamps): return the keeper of the {subject} who counts every boat "
    words = sentence.split() * (tokens // 8 + 1)
    return " ".join(words[: max(PROMPT_STEP_WORDS, tokens // PROMPT_STEP_WORDS * PROMPT_STEP_WORDS)])


async def ask(client: AsyncClient, answer: Answer) -> None:
    """One request, greedy; notes what came of it."""
    try:
        completion = await client.complete(answer.prompt, max_tokens=answer.tokens, temperature=0.0, ignore_eos=True)
    except FlexPipeError as error:
        answer.failure = str(error)
    else:
        answer.text = completion.text


async def play(client: AsyncClient, trace: ArrivalTrace) -> list[Answer]:
    """Every request at its time; waits for all answers."""
    answers = [
        Answer(prompt_of(number, int(inputs)), int(outputs))
        for number, (inputs, outputs) in enumerate(zip(trace.input_tokens, trace.output_tokens, strict=True))
    ]
    began_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        for answer, arrival_s in zip(answers, trace.arrival_s, strict=True):
            await trio.sleep_until(began_s + float(arrival_s))
            nursery.start_soon(ask, client, answer)
    return answers


class Watch:
    """Prints the load now and then, and every change of mind when it comes."""

    def __init__(self, client: AsyncClient) -> None:
        self.changes: list[str] = []
        self.stages = [1]
        self._client = client
        self._seen_s = 0.0

    async def run(self) -> None:
        """Look until cancelled."""
        began_s, due_s = trio.current_time(), 0.0
        while True:
            status = await self._client.status()
            stages = sum(stage["replica"] == 0 for stage in status["stages"])
            if stages != self.stages[-1]:
                self.stages.append(stages)
            now_s = trio.current_time() - began_s
            if now_s >= due_s:
                due_s = now_s + REPORT_S
                load = f"{status['running']} running, {status['waiting']} waiting"
                out.print(
                    f"  {now_s:3.0f} s  {stages} {'stage' if stages == 1 else 'stages'}, {load}",
                    style="dim",
                    highlight=False,
                )
            await self._tell_changes(now_s)
            await trio.sleep(0.25)

    async def until_one_stage(self) -> None:
        """Wait until the bursts are forgotten; two minutes are long at this pace."""
        with trio.move_on_after(SHRINK_S_MAX):
            while self.stages[-1] != 1:  # noqa: ASYNC110 - a demo may look
                await trio.sleep(0.25)

    async def _tell_changes(self, now_s: float) -> None:
        for written in await self._client.decisions(last=50):
            if written["time_s"] > self._seen_s and written["decision"]["action"] == "change":
                self._seen_s = written["time_s"]
                self.changes.append(written["words"])
                out.print(
                    f"[bold]{now_s:5.0f} s[/]  {written['words'].splitlines()[0]}", highlight=False, soft_wrap=True
                )


async def references(client: AsyncClient, answers: list[Answer]) -> dict[str, str]:
    """What an idle server says to each prompt, as many tokens as any request asked for."""
    longest: Counter[str] = Counter()
    for answer in answers:
        longest[answer.prompt] = max(longest[answer.prompt], answer.tokens)
    asked = {prompt: Answer(prompt, tokens) for prompt, tokens in longest.items()}
    limit = trio.CapacityLimiter(REFERENCES_AT_ONCE)

    async def one(answer: Answer) -> None:
        async with limit:
            await ask(client, answer)

    async with trio.open_nursery() as nursery:
        for answer in asked.values():
            nursery.start_soon(one, answer)
    return {prompt: answer.text or "" for prompt, answer in asked.items()}


async def run(url: str) -> int:
    """Play, watch, compare; the exit code."""
    trace = bundled(AZURE_CODE).between(*WINDOW_S).faster(SPEED).shorter(INPUTS, OUTPUTS)
    out.print(f"\n[bold]{len(trace)} requests in {trace.arrival_s[-1]:.0f} s, in bursts; nobody at the wheel[/]")
    async with AsyncClient(url) as client:
        async with trio.open_nursery() as nursery:
            watch = Watch(client)
            nursery.start_soon(watch.run)
            answers = await play(client, trace)
            await watch.until_one_stage()
            nursery.cancel_scope.cancel()
        out.print("\n[bold]Why[/], by the last decision of each change (`flexpipe why` tells all of them):")
        for change in watch.changes:
            out.print(change, highlight=False, soft_wrap=True)
        expected = await references(client, answers)
    return verdict(answers, expected, watch)


def verdict(answers: list[Answer], expected: dict[str, str], watch: Watch) -> int:
    """Say how it went; the exit code."""
    failed = [answer.failure for answer in answers if answer.failure]
    wrong = [answer.prompt for answer in answers if answer.text and not expected[answer.prompt].startswith(answer.text)]
    way = "→".join(map(str, watch.stages))
    out.print(f"\n{len(answers)} requests, {len(failed)} lost, {len(wrong)} with another text; stages {way}.")
    if failed or wrong:
        err.print(f"lost: {failed[:3]}; other texts for: {wrong[:3]}", style="red", highlight=False)
        return 1
    if max(watch.stages) == 1 or watch.stages[-1] != 1:
        err.print("the pipeline was to grow under the bursts and to be one stage again after them", style="red")
        return 1
    out.print("[bold green]It grew under the bursts and shrank after them; nothing was lost, every text is right.[/]")
    return 0


def main() -> int:
    """Fetch the model where it is not here yet, serve it, play the trace, stop."""
    return with_server(prepared_model(MODEL, CONFIG), CONFIG, run)


if __name__ == "__main__":
    sys.exit(main())
