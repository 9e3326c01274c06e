"""`flexpipe keys`: makes, shows and takes away keys. Prints public ones only."""

from __future__ import annotations

import json
from pathlib import Path

import platformdirs

from ..transport.key_ring import ALLOWED, KeyRing, allow, make_ring, read_key, revoke
from .console import out


def init_command(name: str, folder: Path | None, *, as_json: bool) -> int:
    """Make this node's key pair; the exit code. Raises `KeyRingError`."""
    ring = make_ring(_folder(folder), name)
    public = ring.folder / ALLOWED / f"{name}.pub"
    _say(
        as_json,
        {"node": name, "public_key": ring.public.decode(), "folder": str(ring.folder)},
        f"node {name} has its keys in {ring.folder}; its public key is",
        f"  {ring.public.decode()}",
        f"On every other node, with a copy of {public}: flexpipe keys add {name} {public.name}",
    )
    return 0


def add_command(name: str, key: str, folder: Path | None, *, as_json: bool) -> int:
    """Allow a node; ``key`` is its public key or a file that holds it; the exit code. Raises `KeyRingError`."""
    public = read_key(Path(key)) if key.endswith(".pub") else key.encode()
    allow(_folder(folder), name, public)
    _say(as_json, {"node": name, "public_key": public.decode()}, f"node {name} may connect")
    return 0


def revoke_command(name: str, folder: Path | None, *, as_json: bool) -> int:
    """Allow a node no more; the exit code. Raises `KeyRingError`."""
    revoke(_folder(folder), name)
    _say(as_json, {"node": name, "revoked": True}, f"node {name} may connect no more")
    return 0


def list_command(folder: Path | None, *, as_json: bool) -> int:
    """Print this node's name and who may connect; the exit code. Raises `KeyRingError`."""
    ring = KeyRing.load(_folder(folder))
    allowed = {name: key.decode() for name, key in ring.allowed.items()}
    own = [f"node {ring.name}, keys in {ring.folder}", "may connect:"]
    _say(
        as_json,
        {"node": ring.name, "public_key": ring.public.decode(), "folder": str(ring.folder), "allowed": allowed},
        *own,
        *(f"  {name:<16} {key}" for name, key in allowed.items()),
    )
    return 0


def _folder(given: Path | None) -> Path:
    return given if given is not None else platformdirs.user_config_path("flexpipe") / "keys"


def _say(as_json: bool, facts: dict[str, object], *lines: str) -> None:
    if as_json:
        print(json.dumps(facts))
        return
    for line in lines:
        # A key may hold brackets: no markup, no wrapping.
        out.print(line, markup=False, highlight=False, soft_wrap=True)
