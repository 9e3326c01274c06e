"""One pipeline simulated step by step and stage by stage, with the product's own batching: what the macro core is held against."""

import heapq
from collections import deque
from dataclasses import dataclass

from flexpipe.policies.batching import Candidate, choose_batch

BLOCK = 16


@dataclass
class Row:
    number: int
    arrival_s: float
    prompt: int
    output: int
    missing: int = 0
    made: int = 0
    in_step: bool = False
    first_s: float = 0.0
    end_s: float = 0.0

    @property
    def context(self):
        return self.prompt + self.made - self.missing


class StepLevelPipeline:
    """Stages are FIFO; a step begins whenever the first stage is free, some request is in none, and fewer than S are under way."""

    def __init__(self, model, stages, running_max, kv_tokens, hop_s=0.0, hop_token_s=0.0):
        self.model, self.stages, self.running_max, self.kv_tokens = model, stages, running_max, kv_tokens
        self.hop_s, self.hop_token_s = hop_s / max(stages - 1, 1), hop_token_s / max(stages - 1, 1)
        self.table = model.times.table()[0]

    def run(self, arrivals, prompts, outputs):
        rows = [Row(n, *each) for n, each in enumerate(zip(arrivals, prompts, outputs, strict=True))]
        events = [(row.arrival_s, row.number, "arrives", row) for row in rows]
        heapq.heapify(events)
        waiting, running, under_way, free_s, order = deque(), [], 0, [0.0] * self.stages, len(rows)
        while events:
            now_s, _, kind, what = heapq.heappop(events)
            if kind == "arrives":
                waiting.append(what)
            elif kind == "returns":
                under_way -= 1
                for row, share in what:
                    self._advance(row, share, now_s)
                running = [row for row in running if not row.end_s]
            while waiting and self._fits(waiting[0], running):
                row = waiting.popleft()
                row.missing = row.prompt
                running.append(row)
            candidates = [row for row in running if not row.in_step]
            if not candidates or under_way >= self.stages or free_s[0] > now_s + 1e-12:
                continue
            decoding = sum(row.missing == 1 for row in running)
            shares = choose_batch(
                [Candidate(row.number, row.missing) for row in candidates],
                decoding,
                len(running) - decoding,
                self.stages,
                self.model.limits,
            )
            step = [(rows[share.request], share.tokens) for share in shares]
            for row, _ in step:
                row.in_step = True
            under_way += 1
            end_s = self._through(step, now_s, free_s)
            order += 2
            heapq.heappush(events, (free_s[0], order, "stage-free", None))
            heapq.heappush(events, (end_s, order + 1, "returns", step))
        return rows

    def _fits(self, row, running):
        held = sum(each.context + each.missing for each in running)
        return len(running) < self.running_max and held + row.prompt + BLOCK * (len(running) + 1) <= self.kv_tokens

    def _through(self, step, now_s, free_s):
        tokens = sum(share for _, share in step)
        context = sum(row.context for row, _ in step if row.missing == 1)
        seconds = self.table[tokens] + self.model.times.context_s * context
        seconds += sum(self.model.times.square_s * row.prompt * share for row, share in step if row.made == 0)
        each = seconds * self.model.times.depth_factor(self.stages) / self.stages
        at_s = now_s
        for stage in range(self.stages):
            at_s = max(at_s, free_s[stage]) + each
            free_s[stage] = at_s
            if stage + 1 < self.stages:
                at_s += self.hop_s + self.hop_token_s * tokens
        return at_s

    def _advance(self, row, share, now_s):
        row.in_step = False
        row.missing -= share
        if row.missing == 0:
            row.made += 1
            row.missing = 1
            row.first_s = row.first_s or now_s
            if row.made == row.output:
                row.end_s = now_s
