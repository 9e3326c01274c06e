"""Completions from daemons' gateways, one after the other or several streams at once."""

import json
import threading

import httpx

PROMPTS = ("The pipeline", "A cache of keys", "When the demand", "Text is more")
TOKENS = 300
END_S_MAX = 120


def completion(url, prompt, tokens=TOKENS):
    body = {"model": "tiny", "prompt": prompt, "max_tokens": tokens, "temperature": 0}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=END_S_MAX)
    answer.raise_for_status()
    return answer.json()["choices"][0]["text"]


class Streams:
    """Several completions at once, from several gateways; ``begun`` once each has some text."""

    def __init__(self, urls):
        self.texts = dict.fromkeys(PROMPTS, "")
        self._begun = {prompt: threading.Event() for prompt in PROMPTS}
        self._threads = [
            threading.Thread(target=self._stream, args=(urls[place % len(urls)], prompt))
            for place, prompt in enumerate(PROMPTS)
        ]
        for thread in self._threads:
            thread.start()

    def _stream(self, url, prompt):
        body = {"model": "tiny", "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=END_S_MAX) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    self.texts[prompt] += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
                    self._begun[prompt].set()

    def wait_begun(self):
        for event in self._begun.values():
            assert event.wait(60)

    def end(self):
        for thread in self._threads:
            thread.join(END_S_MAX)
            assert not thread.is_alive()
        return self.texts
