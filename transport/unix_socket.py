"""Listening on a Unix socket file that is really free, readable by its owner only. Knows no protocol."""

from __future__ import annotations

import errno
import socket
import stat
from pathlib import Path

from .address import AddressError, IpcAddress

BACKLOG = 64
"""How many may knock at once."""


def new_unix_socket(kind: socket.SocketKind) -> socket.socket:
    """A non-blocking Unix socket (SOCK_STREAM or SOCK_SEQPACKET)."""
    unix_socket = socket.socket(socket.AF_UNIX, kind)
    unix_socket.setblocking(False)
    return unix_socket


def listen_unix(address: IpcAddress, kind: socket.SocketKind) -> socket.socket:
    """A listening socket at ``address``; removing its file is the caller's affair.

    The file of a process that is gone is taken over. Raises `AddressError` where somebody listens there, or where the file
    is something else or cannot be made.
    """
    path = Path(address.path)
    listener = new_unix_socket(kind)
    try:
        if path.is_socket() and not _is_listened_on(path, kind):
            path.unlink()
        listener.bind(address.path)
        path.chmod(stat.S_IRUSR | stat.S_IWUSR)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise AddressError(f"{address} cannot be bound: {error.strerror}") from error
    return listener


def _is_listened_on(path: Path, kind: socket.SocketKind) -> bool:
    with new_unix_socket(kind) as probe:
        return probe.connect_ex(str(path)) != errno.ECONNREFUSED
