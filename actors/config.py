"""The settings of one server. One name each: flag (--kv-memory), environment (FLEXPIPE_KV_MEMORY), TOML key (kv-memory)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB|TiB)?")
_UNITS = {None: 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
PACE_MAX = 100.0
"""A beat of the autopilot lasts a hundredth of a second then."""
DTYPES = ("float32", "bfloat16", "float16")


class ConfigError(Exception):
    """A setting is wrong; the sentence names it."""


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """How to serve one model.

    Attributes:
        stages: Number of stages; the cut points are chosen for the least bottleneck.
        partition: Decoder layers per stage, as 12,10,8, or atom ranges, as 0:15,15:33,33:62; chooses stages too.
        devices: Where stages run, as cpu:4, cuda:0,cuda:1, or cpu:4x2GiB,cpu:2x512MiB, which states how much memory weights
            and KV pages may take on each; by default GPUs where there are enough, else CPU workers.
        host: Address to listen on. Beyond loopback an API key is required.
        port: TCP port to listen on; 0 takes a free one.
        api_key: Key that clients must send; none by default.
        threads: Threads per CPU stage; by default the cores shared evenly.
        dtype: Number format of weights and KV pages: float32, bfloat16 or float16.
        deterministic: Make a request's tokens independent of its neighbours in the batch, on every device.
        context: Longest prompt + output in tokens; by default the model's own.
        kv_memory: Memory for KV pages over all stages, as 2GiB; by default a tenth of the host's, or of the devices'.
        running: Most requests that hold KV pages at once.
        queue: Most requests that wait; more are refused with 429.
        step_tokens: Most tokens in one step; longer prompts are prefilled in chunks.
        drain: Seconds that requests under way may take to finish when the server stops.
        log_dir: Folder for JSON logs; by default one per run in the user's state folder.
        auto: Watch the load and change stages and replicas by itself.
        dry_run: With auto: decide and write down, but change nothing.
        policy: With auto: how shapes are weighed, fluid (ours) or paper (FlexPipe's equations).
        pace: With auto: divides all of its times; 10 decides in 12 seconds what it else would in 2 minutes.
        changes_per_hour: With auto: most changes within any hour; pace multiplies it.
    """

    stages: int | None = None
    partition: str | None = None
    devices: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    threads: int | None = None
    dtype: str = "float32"
    deterministic: bool = False
    context: int | None = None
    kv_memory: str | None = None
    running: int = 128
    queue: int = 256
    step_tokens: int = 512
    drain: float = 30.0
    log_dir: Path | None = None
    auto: bool = False
    dry_run: bool = False
    policy: Literal["fluid", "paper"] = "fluid"
    pace: float = 1.0
    changes_per_hour: int = 12

    def __post_init__(self) -> None:
        """Refuse impossible settings, by name."""
        for name, least in (
            ("stages", 1),
            ("threads", 1),
            ("context", 2),
            ("running", 1),
            ("queue", 1),
            ("step_tokens", 1),
            ("changes_per_hour", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name.replace('_', '-')} is {value}; it must be at least {least}")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}; it must be between 0 and 65535")
        if not self.drain >= 0:
            raise ConfigError(f"drain is {self.drain}; it must be a number of seconds, 0 or more")
        if not 0.1 <= self.pace <= PACE_MAX:
            raise ConfigError(f"pace is {self.pace}; it must be between 0.1 and {PACE_MAX:g}")
        if self.dry_run and not self.auto:
            raise ConfigError("dry-run is about the decisions of auto; give auto, too")
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype is {self.dtype!r}; choose one of {', '.join(DTYPES)}")
        if self.stages is not None and self.partition is not None:
            raise ConfigError("stages and partition say the same thing; give one of them")
        if self.api_key is None and self.host not in ("127.0.0.1", "::1", "localhost"):
            raise ConfigError(
                f"host {self.host} is beyond loopback; set api-key (or FLEXPIPE_API_KEY) so that not everyone gets in"
            )
        parse_size(self.kv_memory or "1")


def parse_size(text: str) -> int:
    """Bytes in "512MiB", "2GiB" or plain "1048576"."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{text!r} is no size; write it as 512MiB or 2GiB")
    return int(float(match.group(1)) * _UNITS[match.group(2)])
