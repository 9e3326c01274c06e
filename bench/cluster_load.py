"""Clients of a cluster under test: each asks one prompt again and again at one gateway, and checks every answer's text.

Owns the requests and what became of each. A client whose gateway is gone asks the next one, as a client library does.
It must never know what happens to the cluster meanwhile.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import trio

from ..client import AsyncClient
from ..client_errors import FlexPipeError

SILENCE_S_MAX = 120.0
"""A stream that says nothing for so long is lost."""
ATTEMPTS_MAX = 4
"""Gateways that a client asks, one after the other, before it gives a request up."""


@dataclass(slots=True)
class Waits:
    """How long a client waited for tokens: the end of each wait on trio's clock, and how long it was, in seconds."""

    ends_s: list[float] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)

    def longest_after(self, since_s: float) -> float:
        """The longest wait that ended after ``since_s``."""
        return max((wait for end, wait in zip(self.ends_s, self.waits_s, strict=True) if end >= since_s), default=0.0)


@dataclass(slots=True)
class LoadOutcome:
    """What became of all requests. ``lost`` holds the sentence of each that ended without its text."""

    answered: int = 0
    altered: int = 0
    retried: int = 0
    lost: list[str] = field(default_factory=list)
    waits: Waits = field(default_factory=Waits)
    token_gaps_s: list[float] = field(default_factory=list)

    def as_facts(self) -> dict[str, object]:
        """For JSON."""
        return {
            "answered": self.answered,
            "altered": self.altered,
            "retried": self.retried,
            "lost": len(self.lost),
            "lost_sentences": sorted(set(self.lost))[:5],
        }


class ClusterLoad:
    """Clients of ``gateways``; ``expected`` is filled by `learn` before anything happens."""

    def __init__(self, gateways: Sequence[str], api_key: str, model: str, prompts: Sequence[str], tokens: int) -> None:
        self._gateways = tuple(gateways)
        self._api_key = api_key
        self._model = model
        self._prompts = tuple(prompts)
        self._tokens = tokens
        self.expected: dict[str, str] = {}
        self.outcome = LoadOutcome()

    async def learn(self) -> None:
        """Ask every prompt once, undisturbed."""

        async def ask(client: AsyncClient, prompt: str) -> None:
            self.expected[prompt] = await self._ask(client, prompt, LoadOutcome())

        async with self._clients() as clients, trio.open_nursery() as nursery:
            for prompt in self._prompts:
                nursery.start_soon(ask, clients[0], prompt)

    async def run(self, requests_each: int) -> LoadOutcome:
        """Every client asks so often, one request after the other."""
        self.outcome = LoadOutcome()
        async with self._clients() as clients, trio.open_nursery() as nursery:
            for place, prompt in enumerate(self._prompts):
                nursery.start_soon(self._be_client, clients, place, prompt, requests_each)
        return self.outcome

    async def until(self, answered: int) -> None:
        """Wait until so many requests are answered."""
        while self.outcome.answered < answered:  # noqa: ASYNC110 - a bench may look
            await trio.sleep(0.02)

    @asynccontextmanager
    async def _clients(self) -> AsyncIterator[list[AsyncClient]]:
        """One of the SDK's for each gateway."""
        async with AsyncExitStack() as stack:
            yield [
                await stack.enter_async_context(
                    AsyncClient(url, api_key=self._api_key, model=self._model, silence_s_max=SILENCE_S_MAX)
                )
                for url in self._gateways
            ]

    async def _be_client(self, clients: Sequence[AsyncClient], place: int, prompt: str, requests: int) -> None:
        for _ in range(requests):
            sentence = ""
            for attempt in range(ATTEMPTS_MAX):
                self.outcome.retried += attempt > 0
                try:
                    text = await self._ask(clients[(place + attempt) % len(clients)], prompt, self.outcome)
                except FlexPipeError as error:
                    sentence = str(error)
                else:
                    self.outcome.answered += 1
                    self.outcome.altered += text != self.expected[prompt]
                    break
            else:
                self.outcome.lost.append(sentence)

    async def _ask(self, client: AsyncClient, prompt: str, outcome: LoadOutcome) -> str:
        """One answer's text, its waits noted. Raises `FlexPipeError` where it does not come whole."""
        text, last_s, is_first = "", trio.current_time(), True
        stream = await client.complete(prompt, stream=True, max_tokens=self._tokens, temperature=0, ignore_eos=True)
        async with stream:
            async for part in stream:
                now_s = trio.current_time()
                outcome.waits.ends_s.append(now_s)
                outcome.waits.waits_s.append(now_s - last_s)
                if not is_first:
                    outcome.token_gaps_s.append(now_s - last_s)
                last_s, is_first = now_s, False
                text += part
        return text
