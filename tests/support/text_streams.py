"""Several streamed completions at once, each read by a thread of its own as a client would, through the openai client."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import openai


class Answer:
    """What one request has got so far, by choice."""

    def __init__(self):
        self.texts = {}
        self.logprobs = {}
        self.finish = {}
        self.chunks = 0

    def add(self, chunk):
        self.chunks += 1
        for choice in chunk.choices:
            self.texts[choice.index] = self.texts.get(choice.index, "") + choice.text
            if choice.logprobs is not None:
                pairs = zip(choice.logprobs.tokens, choice.logprobs.token_logprobs, strict=True)
                self.logprobs.setdefault(choice.index, []).extend(pairs)
            if choice.finish_reason:
                self.finish[choice.index] = choice.finish_reason


class TextStreams:
    """One stream for each of ``requests`` (keyword arguments of `completions.create`)."""

    def __init__(self, url, requests, pool):
        self._client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
        self._changed = threading.Condition()
        self._answers = [Answer() for _ in requests]
        self._readers = [
            pool.submit(self._read, request, answer) for request, answer in zip(requests, self._answers, strict=True)
        ]

    def _read(self, request, answer):
        body = {"model": "tiny", "temperature": 0, "stream": True, "extra_body": {"ignore_eos": True}} | request
        try:
            for chunk in self._client.completions.create(**body):
                with self._changed:
                    answer.add(chunk)
                    self._changed.notify_all()
        finally:
            with self._changed:
                self._changed.notify_all()

    def wait_flowing(self, chunks=8):
        """Wait until each has had so many more chunks, or has ended."""
        wanted = [answer.chunks + chunks for answer in self._answers]
        with self._changed:
            self._changed.wait_for(
                lambda: all(
                    answer.chunks >= least or reader.done()
                    for answer, reader, least in zip(self._answers, self._readers, wanted, strict=True)
                )
            )

    def flowing(self):
        """How many have not ended."""
        return sum(not reader.done() for reader in self._readers)

    def answers(self):
        """The answers, once all have ended. Raises what the first of them that failed raised."""
        for reader in self._readers:
            reader.result()
        return self._answers

    def texts(self):
        """The texts, once all have ended."""
        return [answer.texts[0] for answer in self.answers()]

    def close(self):
        self._client.close()


@contextmanager
def text_streams(url, requests):
    """Begin the streams; they are waited for at the end."""
    with ThreadPoolExecutor(len(requests)) as pool:
        streams = TextStreams(url, requests, pool)
        try:
            yield streams
        finally:
            streams.close()
