"""A daemon's flags: what is refused, each in one sentence that names it."""

import pytest
from flexpipe.actors.cluster.node_config import DEFAULT_PORTS, ClusterConfig, node_options
from flexpipe.actors.config import ConfigError, ServeConfig

BIND = "tcp://10.0.0.1:7700"


def test_a_node_is_found_under_its_name_and_address():
    options = node_options("n1", BIND, "tcp://n2@10.0.0.2:7700", DEFAULT_PORTS)
    assert options.address == "tcp://n1@10.0.0.1:7700"
    assert str(options.join) == "tcp://n2@10.0.0.2:7700"
    assert (options.first_port, options.last_port) == (7710, 7909)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": "N1"}, "name is 'N1'; use 1 to 63 small letters"),
        ({"name": ""}, "name is ''"),
        ({"name": "n" * 64}, "name is"),
        ({"bind": "10.0.0.1:7700"}, "bind: address '10.0.0.1:7700' has no scheme"),
        ({"bind": "tcp://10.0.0.1"}, "bind: address .* with a port"),
        ({"bind": "ipc:///run/x"}, "bind is ipc:///run/x; nodes meet at tcp://host:port"),
        ({"bind": "tcp://0.0.0.0:7700"}, "bind is tcp://0.0.0.0:7700; name one address"),
        ({"bind": "tcp://10.0.0.1:7710"}, "port 7710 of bind lies in ports 7710-7909"),
        ({"join": "nowhere"}, "join: address 'nowhere' has no scheme"),
        ({"ports": "7710"}, "ports is '7710'; write a range"),
        ({"ports": "9-7"}, "ports is '9-7'"),
        ({"ports": "7710-7712"}, "a range of 8 ports or more"),
        ({"ports": "65530-65540"}, "ports is '65530-65540'"),
    ],
)
def test_a_flag_that_cannot_be_is_refused_by_name(changes, sentence):
    flags = {"name": "n1", "bind": BIND, "join": None, "ports": DEFAULT_PORTS}
    with pytest.raises(ConfigError, match=sentence):
        node_options(**{**flags, **changes})


@pytest.mark.parametrize(
    ("nodes", "serve", "sentence"),
    [
        (0, ServeConfig(), "nodes is 0; it must be at least 1"),
        (1, ServeConfig(auto=True), "auto is for flexpipe serve"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused_by_name(nodes, serve, sentence):
    with pytest.raises(ConfigError, match=sentence):
        ClusterConfig("flexpipe", "smollm2", nodes, serve)
