"""The arguments of `flexpipe keys init | add | revoke | list`; nothing heavy is imported before one of them runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

AsJson = Annotated[bool, Parameter(negative="", help="Print facts as JSON, for machines.")]
Folder = Annotated[Path | None, Parameter(help="Folder of this node's keys; ~/.config/flexpipe/keys unless given.")]

keys = App(name="keys", help="Make this node's keys, and say which nodes may connect to it.", config=[])


@keys.command
def init(name: str, /, *, folder: Folder = None, json: AsJson = False) -> int:
    """Draw a key pair for this node. The secret stays in its file; the public key is printed, for the other nodes.

    For example:

        flexpipe keys init n1
        flexpipe keys init n1 --folder /etc/flexpipe/keys

    Args:
        name: This node's name: small letters, digits and dashes.
        folder: Folder of this node's keys.
        json: Print facts as JSON, for machines.
    """
    from .keys import init_command

    return init_command(name, folder, as_json=json)


@keys.command
def add(name: str, key: str, /, *, folder: Folder = None, json: AsJson = False) -> int:
    """Let another node connect to this one, and this one to it. A daemon that runs notices by itself.

    For example:

        flexpipe keys add n2 n2.pub
        flexpipe keys add n2 'rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7'

    Args:
        name: The other node's name.
        key: Its public key, or a file NAME.pub that holds it.
        folder: Folder of this node's keys.
        json: Print facts as JSON, for machines.
    """
    from .keys import add_command

    return add_command(name, key, folder, as_json=json)


@keys.command
def revoke(name: str, /, *, folder: Folder = None, json: AsJson = False) -> int:
    """Let a node connect no more. A daemon that runs ends its links with that node by itself, within a second.

    For example:

        flexpipe keys revoke n2

    Args:
        name: The node's name.
        folder: Folder of this node's keys.
        json: Print facts as JSON, for machines.
    """
    from .keys import revoke_command

    return revoke_command(name, folder, as_json=json)


@keys.command(name="list")
def list_keys(*, folder: Folder = None, json: AsJson = False) -> int:
    """Show who this node is and which nodes may connect, with their public keys.

    Args:
        folder: Folder of this node's keys.
        json: Print facts as JSON, for machines.
    """
    from .keys import list_command

    return list_command(folder, as_json=json)
