"""Who this node is and whom it knows: a folder of keys. Owns the files' format; knows no socket and no protocol.

    NAME.key           the node's secret CURVE key, 40 characters of Z85; mode 0600, or it is refused
    allowed/NAME.pub   the public key of a node that may come, this one included

A node's public key is no secret: copy its file from node to node. Taking a file away revokes the key, also in a process that runs.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

import zmq

from .address import NODE_NAME

ALLOWED = "allowed"
KEY_BYTES_MAX = 256
"""More is read of no file; a key has 40 characters."""
_Z85_KEY = re.compile(rb"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")


class KeyRingError(Exception):
    """A folder of keys cannot be used; the sentence says which file and what to do."""


class KeyRing:
    """The keys in ``folder``. ``secret`` and ``public`` are this node's, as 40 characters of Z85."""

    def __init__(self, folder: Path, name: str, secret: bytes) -> None:
        self.folder = folder
        self.name = name
        self.secret = secret
        self.public = zmq.curve_public(secret)
        self._stamp: object = None
        self._allowed: Mapping[str, bytes] = {}

    def __repr__(self) -> str:
        return f"KeyRing({str(self.folder)!r}, {self.name!r})"

    @classmethod
    def load(cls, folder: Path) -> KeyRing:
        """The ring of the one node whose secret key lies in ``folder``. Raises `KeyRingError` for anything amiss."""
        secrets = sorted(folder.glob("*.key"))
        if len(secrets) != 1:
            found = ", ".join(path.name for path in secrets) or "no NAME.key"
            raise KeyRingError(
                f"{folder} must hold the secret key of exactly one node, and holds {found}: flexpipe keys init NAME"
            )
        path = secrets[0]
        _check_name(path)
        _check_private(path)
        ring = cls(folder, path.stem, read_key(path))
        for each in sorted((folder / ALLOWED).glob("*.pub")):
            _check_name(each)
            read_key(each)
        ring.refresh()
        return ring

    @property
    def allowed(self) -> Mapping[str, bytes]:
        """The public keys that may come, by node name, as of the last `refresh`."""
        return self._allowed

    def node_of(self, public: bytes) -> str | None:
        """Whose key it is; None where no node that is allowed has it."""
        return next((name for name, key in self._allowed.items() if key == public), None)

    def refresh(self) -> bool:
        """Read the allowed keys again where their files have changed; whether they have.

        What cannot be read is not allowed, and of a key that two nodes claim neither is.
        """
        files = sorted((self.folder / ALLOWED).glob("*.pub"))
        stamp = [_stamp(path) for path in files]
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        keys = {path.stem: key for path in files if NODE_NAME.fullmatch(path.stem) and (key := _try_key(path))}
        claims = list(keys.values())
        self._allowed = {name: key for name, key in keys.items() if claims.count(key) == 1}
        return True


def read_key(path: Path) -> bytes:
    """The key in a file. Raises `KeyRingError`."""
    try:
        with path.open("rb") as file:
            key = file.read(KEY_BYTES_MAX).strip()
    except OSError as error:
        raise KeyRingError(f"{path} cannot be read: {error.strerror}") from error
    if not _Z85_KEY.fullmatch(key):
        raise KeyRingError(f"{path} holds no key of 40 Z85 characters: make or copy it again")
    return key


def make_ring(folder: Path, name: str) -> KeyRing:
    """Draw a key pair for the node ``name`` and let it in. Raises `KeyRingError` where the folder has a secret key already."""
    if not NODE_NAME.fullmatch(name):
        raise KeyRingError(f"{name!r} is no name of a node: small letters, digits, dots and dashes, 1 to 63 of them")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    present = sorted(folder.glob("*.key"))
    if present:
        raise KeyRingError(
            f"{present[0]} is there already: a folder has one node's secret; use another folder, or remove it"
        )
    public, secret = zmq.curve_keypair()
    descriptor = os.open(folder / f"{name}.key", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secret + b"\n")
    ring = KeyRing(folder, name, secret)
    allow(folder, name, public)
    ring.refresh()
    return ring


def allow(folder: Path, name: str, public: bytes) -> None:
    """Let a node in under its public key; a key that it had before is revoked. Raises `KeyRingError`."""
    if not NODE_NAME.fullmatch(name):
        raise KeyRingError(f"{name!r} is no name of a node: small letters, digits, dots and dashes, 1 to 63 of them")
    if not _Z85_KEY.fullmatch(public):
        raise KeyRingError(f"this is no public key for {name}: 40 Z85 characters, as `flexpipe keys list` shows them")
    for path in (folder / ALLOWED).glob("*.pub"):
        if path.stem != name and _try_key(path) == public:
            raise KeyRingError(f"this key belongs to node {path.stem} already: every node has a pair of its own")
    (folder / ALLOWED).mkdir(mode=0o700, parents=True, exist_ok=True)
    # Whole or not at all: a daemon may be reading.
    new = folder / ALLOWED / f".{name}.new"
    new.write_bytes(public + b"\n")
    new.replace(folder / ALLOWED / f"{name}.pub")


def revoke(folder: Path, name: str) -> None:
    """Let a node in no more. Raises `KeyRingError` where it was not allowed anyway."""
    if not NODE_NAME.fullmatch(name):
        raise KeyRingError(f"{name!r} is no name of a node: small letters, digits, dots and dashes, 1 to 63 of them")
    try:
        (folder / ALLOWED / f"{name}.pub").unlink()
    except FileNotFoundError:
        known = ", ".join(sorted(path.stem for path in (folder / ALLOWED).glob("*.pub"))) or "nobody"
        raise KeyRingError(f"node {name} is not among those allowed ({known})") from None
    except OSError as error:
        raise KeyRingError(f"the key of {name} cannot be removed: {error.strerror}") from error


def _check_name(path: Path) -> None:
    if not NODE_NAME.fullmatch(path.stem):
        raise KeyRingError(f"{path} is named after no node: small letters, digits, dots and dashes, 1 to 63 of them")


def _check_private(path: Path) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise KeyRingError(
            f"{path} is a secret that others can reach (mode {mode:04o}): chmod 600 it, and draw a new one if they did"
        )


def _stamp(path: Path) -> tuple[str, int, int, int] | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    return path.name, facts.st_mtime_ns, facts.st_size, facts.st_ino


def _try_key(path: Path) -> bytes | None:
    try:
        return read_key(path)
    except KeyRingError:
        return None
