"""Folders of keys for tests: nodes that know each other, and ports that are free."""

import socket

from flexpipe.transport.key_ring import KeyRing, allow, make_ring


def key_rings(folder, *names):
    """The rings of nodes that all allow each other, under ``folder``/NAME."""
    rings = [make_ring(folder / name, name) for name in names]
    for ring in rings:
        for other in rings:
            allow(ring.folder, other.name, other.public)
    return [KeyRing.load(ring.folder) for ring in rings]


def free_port():
    """A TCP port of this host that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
