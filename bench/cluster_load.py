"""Clients of a cluster under test: each asks one prompt again and again at one gateway, and checks every answer's text.

Owns the requests and what became of each. A client whose gateway is gone asks the next one, as a client library does.
It must never know what happens to the cluster meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import httpx
import trio

from ..client_errors import FlexPipeError, error_of_answer
from ..client_events import TextReader
from ..client_streams import AsyncEventStream, connection_errors

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

    def __init__(
        self, gateways: Sequence[str], headers: Mapping[str, str], model: str, prompts: Sequence[str], tokens: int
    ) -> None:
        self._gateways = tuple(gateways)
        self._headers = dict(headers)
        self._model = model
        self._prompts = tuple(prompts)
        self._tokens = tokens
        self.expected: dict[str, str] = {}
        self.outcome = LoadOutcome()

    async def learn(self) -> None:
        """Ask every prompt once, undisturbed."""
        async with self._client() as http:
            for prompt in self._prompts:
                self.expected[prompt] = await self._ask(http, self._gateways[0], prompt, LoadOutcome())

    async def run(self, requests_each: int) -> LoadOutcome:
        """Every client asks so often, one request after the other."""
        self.outcome = LoadOutcome()
        async with self._client() as http, trio.open_nursery() as nursery:
            for place, prompt in enumerate(self._prompts):
                nursery.start_soon(self._be_client, http, place, prompt, requests_each)
        return self.outcome

    async def until(self, answered: int) -> None:
        """Wait until so many requests are answered."""
        while self.outcome.answered < answered:  # noqa: ASYNC110 - a bench may look
            await trio.sleep(0.02)

    def _client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=len(self._prompts) + 1)
        return httpx.AsyncClient(timeout=httpx.Timeout(SILENCE_S_MAX), headers=self._headers, limits=limits)

    async def _be_client(self, http: httpx.AsyncClient, place: int, prompt: str, requests: int) -> None:
        for _ in range(requests):
            sentence = ""
            for attempt in range(ATTEMPTS_MAX):
                gateway = self._gateways[(place + attempt) % len(self._gateways)]
                self.outcome.retried += attempt > 0
                try:
                    text = await self._ask(http, gateway, prompt, self.outcome)
                except FlexPipeError as error:
                    sentence = str(error)
                else:
                    self.outcome.answered += 1
                    self.outcome.altered += text != self.expected[prompt]
                    break
            else:
                self.outcome.lost.append(sentence)

    async def _ask(self, http: httpx.AsyncClient, gateway: str, prompt: str, outcome: LoadOutcome) -> str:
        """One answer's text, its waits noted. Raises `FlexPipeError` where it does not come whole."""
        body = {
            "model": self._model,
            "prompt": prompt,
            "max_tokens": self._tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
        text, last_s, is_first = "", trio.current_time(), True
        with connection_errors():
            request = http.build_request("POST", f"{gateway}/v1/completions", json=body)
            response = await http.send(request, stream=True)
            if not response.is_success:
                await response.aread()
                raise error_of_answer(response.status_code, response.content, None, None)
            async with AsyncEventStream(response, TextReader()) as events:
                async for part in events:
                    now_s = trio.current_time()
                    outcome.waits.ends_s.append(now_s)
                    outcome.waits.waits_s.append(now_s - last_s)
                    if not is_first:
                        outcome.token_gaps_s.append(now_s - last_s)
                    last_s, is_first = now_s, False
                    text += part
        return text
