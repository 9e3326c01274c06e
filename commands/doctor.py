"""`flexpipe doctor`: what this machine has that FlexPipe needs, what is wrong, and what to do about it."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from .console import out, size

Level = Literal["fine", "note", "wrong"]

DISTRIBUTIONS = (
    "torch",
    "transformers",
    "numba",
    "pyzmq",
    "trio",
    "msgspec",
    "hypercorn",
    "starlette",
    "safetensors",
    "tokenizers",
)
OPEN_FILES_MIN = 1024
"""Each HTTP connection is one open file; below this, a few hundred clients would be refused."""
MEMORY_MIN_BYTES = 2 * 2**30
"""The smallest known model with its pages and three stage processes."""
DISK_MIN_BYTES = 2 * 2**30
"""The smallest known model, downloaded and converted."""
PORT = 8000


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's outcome. ``advice`` says what to do; "" where nothing is to be done."""

    check: str
    level: Level
    fact: str
    advice: str = ""


def doctor_command(*, as_json: bool) -> int:
    """Run every check; 1 where something is wrong."""
    findings = [finding for check in CHECKS for finding in check()]
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings]))
    else:
        for finding in findings:
            mark = {"fine": "[green]ok   [/]", "note": "[yellow]note [/]", "wrong": "[red]wrong[/]"}[finding.level]
            out.print(f"{mark} {finding.check}: {finding.fact}", highlight=False, soft_wrap=True)
            if finding.advice:
                out.print(f"      → {finding.advice}", highlight=False, soft_wrap=True)
    return int(any(finding.level == "wrong" for finding in findings))


def _python() -> list[Finding]:
    return [Finding("Python", "fine", ".".join(map(str, sys.version_info[:3])))]


def _distributions() -> list[Finding]:
    missing: list[str] = []
    present: list[str] = []
    for name in DISTRIBUTIONS:
        try:
            present.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    findings = [Finding("packages", "fine", ", ".join(present))]
    if missing:
        findings.append(Finding("packages", "wrong", f"missing: {', '.join(missing)}", "pip install flexpipe-serve"))
    return findings


def _zeromq() -> list[Finding]:
    import zmq

    if not zmq.has("curve"):
        return [Finding("ZeroMQ", "note", f"libzmq {zmq.zmq_version()} without CURVE", "links between nodes need it")]
    return [Finding("ZeroMQ", "fine", f"libzmq {zmq.zmq_version()} with CURVE")]


def _processor() -> list[Finding]:
    cores = len(os.sched_getaffinity(0))
    return [Finding("processor", "fine", f"{cores} of {os.cpu_count()} cores may be used")]


def _memory() -> list[Finding]:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if pages < MEMORY_MIN_BYTES:
        return [Finding("memory", "wrong", size(pages), f"even a small model wants {size(MEMORY_MIN_BYTES)}")]
    return [Finding("memory", "fine", size(pages))]


def _open_files() -> list[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < OPEN_FILES_MIN:
        return [
            Finding("open files", "note", f"{soft} at most", f"ulimit -n {min(hard, 65536)} before `flexpipe serve`")
        ]
    return [Finding("open files", "fine", f"{soft} at most")]


def _shared_memory() -> list[Finding]:
    try:
        os.close(os.memfd_create("flexpipe-doctor"))
    except OSError as error:
        return [Finding("shared memory", "wrong", f"memfd_create fails: {error}", "allow memfd_create in the sandbox")]
    return [Finding("shared memory", "fine", "memfd works")]


def _sockets() -> list[Finding]:
    folder = tempfile.gettempdir()
    if len(folder) > 60:
        return [Finding("sockets", "wrong", f"{folder} is too long for a socket path", "set TMPDIR to a short folder")]
    return [Finding("sockets", "fine", f"Unix sockets under {folder}")]


def _cache() -> list[Finding]:
    from ..runtime.cache_folder import cache_folder

    try:
        folder = cache_folder("models")
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return [
            Finding("cache", "wrong", f"the cache folder cannot be made: {error}", "set FLEXPIPE_CACHE to a folder")
        ]
    if free < DISK_MIN_BYTES:
        return [Finding("cache", "note", f"{size(free)} free in {folder}", "free space or set FLEXPIPE_CACHE")]
    return [Finding("cache", "fine", f"{folder}, {size(free)} free")]


def _models() -> list[Finding]:
    from ..runtime.models.model_cache import converted_folder
    from ..runtime.models.pull import KNOWN_MODELS

    present = [name for name in KNOWN_MODELS if converted_folder(name).is_dir()]
    if not present:
        return [Finding("models", "note", "none in the cache yet", "flexpipe pull smollm2")]
    return [Finding("models", "fine", f"in the cache: {', '.join(present)}")]


def _gpus() -> list[Finding]:
    from ..actors.devices import cuda_devices

    count = cuda_devices()
    if count == 0:
        return [Finding("GPUs", "note", "no NVIDIA driver here; stages run on the processor")]
    return [Finding("GPUs", "fine", f"the driver shows {count}")]


def _port() -> list[Finding]:
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex(("127.0.0.1", PORT)) == 0:
            return [
                Finding(
                    "port", "note", f"something listens on {PORT} already", "flexpipe ps, or serve with --port 8001"
                )
            ]
    return [Finding("port", "fine", f"{PORT} is free")]


CHECKS: tuple[Callable[[], list[Finding]], ...] = (
    _python,
    _distributions,
    _zeromq,
    _processor,
    _memory,
    _open_files,
    _shared_memory,
    _sockets,
    _cache,
    _models,
    _gpus,
    _port,
)
"""In the order in which they are shown."""
