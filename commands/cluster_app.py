"""The commands of clusters on the command line: their flags and help. What they do is in `daemon` and `nodes`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..actors.cluster.node_config import DEFAULT_PORTS
from ..actors.config import ServeConfig
from .bench_app import DEFAULT_MODEL
from .flags import DEFAULT_URL, ApiKey, AsJson, Settings, Url


def daemon(
    model: str = DEFAULT_MODEL,
    /,
    *,
    name: str,
    bind: str,
    join: str | None = None,
    nodes: int = 1,
    ports: str = DEFAULT_PORTS,
    keys: Path | None = None,
    etcd: tuple[str, ...] = (),
    etcd_ca: Path | None = None,
    etcd_cert: Path | None = None,
    etcd_key: Path | None = None,
    etcd_user: str = "",
    etcd_password: str = "",
    cluster: str = "flexpipe",
    state: Path | None = None,
    gateway: bool = True,
    insecure: Annotated[int, Parameter(count=True)] = 0,
    config: Path | None = None,  # noqa: ARG001 - read by `named_file`
    settings: Settings = ServeConfig(),  # noqa: B008 - frozen value
) -> int:
    """Be one node of a cluster that serves a model together.

    For example:

        flexpipe daemon smollm2 --name n1 --bind tcp://127.0.0.1:7700 --stages 2 --nodes 2
        flexpipe daemon smollm2 --name n2 --bind tcp://127.0.0.1:7701 --join tcp://127.0.0.1:7700 --ports 7910-8009 --port 8001

    All of this but the model may also stand in the file of --config, with the same names. Each node needs the same model.

    Args:
        model: A known name (smollm2), a Hugging Face folder, a .gguf file, or a hub id (owner/name).
        name: The node's name: small letters, digits and dashes.
        bind: Where the other nodes reach this one.
        join: The node that leads; without it this one does.
        nodes: How many nodes to wait for before the first plan is made.
        ports: Ports for the links between the workers of this node and those of others.
        keys: Folder with this node's key and the keys of the nodes that it lets in (flexpipe keys).
        etcd: Where etcd is, as http://127.0.0.1:2379; may be given several times. Then every node may lead, one at a time.
        etcd_ca: Certificate of the authority that etcd's own is signed by; the system's list without it.
        etcd_cert: Certificate that is shown to etcd, where it asks for one; with etcd-key.
        etcd_key: The private key of etcd-cert.
        etcd_user: User of etcd, where it has users.
        etcd_password: That user's password; better FLEXPIPE_ETCD_PASSWORD than a flag that everybody on the host can see.
        cluster: The cluster's name in etcd.
        state: Folder where a node that leads without etcd keeps its decisions; by default one in the user's state folder.
        gateway: Serve the API at --host and --port, too.
        insecure: Give it twice to let links beyond loopback be read and made by everybody.
        config: A TOML file with any of these settings.
        settings: The server's settings; devices are this node's.
    """
    from ..actors.cluster.etcd_client import EtcdSettings
    from .daemon import INSECURE_TIMES, DaemonFlags, daemon_command

    store = EtcdSettings(
        etcd, etcd_user, etcd_password, etcd_ca, etcd_cert, etcd_key, insecure=insecure >= INSECURE_TIMES
    )
    flags = DaemonFlags(name, bind, join, nodes, ports, keys, store, cluster, state, gateway, insecure)
    return daemon_command(model, flags, settings)


def nodes(*, url: Url = DEFAULT_URL, api_key: ApiKey = None, json: AsJson = False) -> int:
    """Show the nodes of the cluster: which leads, what each has, and what it runs.

    For example:

        flexpipe nodes
        flexpipe nodes --json | jq '.[].node'
    """
    from .nodes import nodes_command

    return nodes_command(url, api_key, as_json=json)


def drain(node: str, /, *, timeout: float = 600.0, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> int:
    """Move every stage off a node while requests run, then let its daemon stop.

    For example:

        flexpipe drain n2

    Args:
        node: Name of the node.
        timeout: Seconds to wait until it has left; what was begun goes on.
        url: Address of any node's gateway.
        api_key: Key of that server, if it wants one.
    """
    from .nodes import drain_command

    return drain_command(node, url, api_key, timeout)
