"""`flexpipe daemon`: one node of a cluster, in the foreground."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import platformdirs
import trio

from ..actors.cluster.etcd_client import EtcdSettings
from ..actors.cluster.node_config import ClusterConfig, node_options
from ..actors.config import ConfigError, ServeConfig
from ..node_daemon import Node, NodeSecurity, NodeSetup, Presenter, run_node
from ..preparation import put_on_disk
from ..transport.key_ring import KeyRing, KeyRingError
from .console import err, out, progress, reporter

INSECURE_TIMES = 2
"""So often --insecure has to be said."""


@dataclass(frozen=True, slots=True)
class DaemonFlags:
    """The flags of the command, as they were given."""

    name: str
    bind: str
    join: str | None
    nodes: int
    ports: str
    keys: Path | None
    etcd: EtcdSettings
    cluster: str
    state: Path | None
    gateway: bool
    insecure: int


def daemon_command(model: str, flags: DaemonFlags, config: ServeConfig) -> int:
    """Be a node until told to stop; the exit code. Raises `ConfigError` for what only the user can mend."""
    setup = _setup(model, flags, config)
    with progress() as display:
        on_disk = put_on_disk(model, reporter(display))
    outcome = trio.run(run_node, setup, on_disk, _presenter(setup))
    if outcome.misused:
        raise ConfigError(outcome.reason)
    if outcome.failed:
        err.print(f"the cluster could not be kept up: {outcome.reason}", style="red", highlight=False)
    return int(outcome.failed)


def _setup(model: str, flags: DaemonFlags, config: ServeConfig) -> NodeSetup:
    options = node_options(flags.name, flags.bind, flags.join, flags.ports)
    try:
        keys = KeyRing.load(flags.keys) if flags.keys is not None else None
    except KeyRingError as error:
        raise ConfigError(f"keys: {error}") from error
    if keys is not None and keys.name != options.name:
        raise ConfigError(f"the folder {flags.keys} has the key of {keys.name}, and name is {options.name}")
    state = flags.state or platformdirs.user_state_path("flexpipe") / "cluster" / options.name
    security = NodeSecurity(keys, insecure=flags.insecure >= INSECURE_TIMES)
    cluster = ClusterConfig(flags.cluster, model, flags.nodes, config)
    return NodeSetup(options, cluster, security, _etcd(flags), state, flags.gateway)


def _etcd(flags: DaemonFlags) -> EtcdSettings | None:
    if not flags.etcd.endpoints:
        return None
    if flags.join is not None:
        raise ConfigError("etcd says who leads; leave join out")
    return flags.etcd


def _presenter(setup: NodeSetup) -> Presenter:
    async def present(node: Node) -> None:
        """Say when the cluster serves."""
        out.print(f"node [bold]{setup.options.name}[/] is up at {setup.options.address}", highlight=False)
        line = node.source.line
        while not (status := node.source.status()).ready:
            await line.changed(line.news)
        if node.url:
            out.print(f"[bold]{status.model.name}[/] is ready at [bold]{node.url}/v1[/]", highlight=False)
        else:
            out.print(f"[bold]{status.model.name}[/] is ready", highlight=False)
        out.print(f"logs: {node.log_folder}", highlight=False, soft_wrap=True)

    return present
