"""Places of links that cross nodes: which port, which key, and that none is used twice at a time."""

import itertools

import pytest
from flexpipe.actors.cluster.link_places import ClusterPlaces, NodePlace, PortLedger
from flexpipe.actors.link_place import LinkPlace
from flexpipe.actors.route import RouteError
from flexpipe.transport.address import parse_address
from flexpipe.transport.interface import SEAL_BYTES


class Cluster:
    def __init__(self, ports=4):
        self.nodes = {name: NodePlace(f"10.0.0.{name[1:]}", 7710, 7709 + ports) for name in ("n1", "n2")}
        self.ledger = PortLedger(lambda: self.nodes)
        self._seals = itertools.count(1)

    def places(self, prefix="1-0"):
        return ClusterPlaces(prefix, self.ledger, lambda: next(self._seals).to_bytes(SEAL_BYTES, "big"))


def test_workers_of_one_node_meet_by_name_without_a_seal():
    assert Cluster().places().place(3, "activations-1", "n1/cpu:0", "n1/cpu:1") == LinkPlace(
        "here://1-0-3-activations-1"
    )


def test_workers_of_two_nodes_meet_at_a_port_of_the_one_that_binds_under_a_key_of_their_own():
    places = Cluster().places()
    first = places.place(1, "activations-1", "n2/cpu:0", "n1/cpu:0")
    second = places.place(1, "activations-2", "n1/cpu:0", "n2/cpu:0")
    assert (first.address, second.address) == ("tcp://10.0.0.2:7710", "tcp://10.0.0.1:7710")
    assert len(first.seal) == SEAL_BYTES
    assert first.seal != second.seal


def test_a_port_is_free_again_once_its_epoch_is_over_and_comes_last():
    places = Cluster(ports=3).places()

    def port(epoch):
        return parse_address(places.place(epoch, "x", "n2/cpu:0", "n1/cpu:0").address).port

    places.begin(1, ())
    assert port(1) == 7710
    places.begin(2, {1})
    assert (port(2), port(2)) == (7711, 7712)
    places.begin(3, {2})
    assert port(3) == 7710
    with pytest.raises(RouteError, match=r"n2 has no free port in 7710-7712; start its daemon with a wider --ports"):
        port(3)


def test_pipelines_share_the_ports_of_a_node():
    cluster = Cluster(ports=1)
    one, other = cluster.places("1-0"), cluster.places("1-1")
    one.place(1, "x", "n2/cpu:0", "n1/cpu:0")
    with pytest.raises(RouteError, match="no free port"):
        other.place(1, "x", "n2/cpu:0", "n1/cpu:0")
    one.close()
    assert other.place(1, "x", "n2/cpu:0", "n1/cpu:0").address == "tcp://10.0.0.2:7710"


def test_a_node_that_left_binds_nothing():
    cluster = Cluster()
    del cluster.nodes["n2"]
    with pytest.raises(RouteError, match="node n2 is not here"):
        cluster.places().place(1, "x", "n2/cpu:0", "n1/cpu:0")


def test_an_ipv6_host_stands_in_brackets():
    cluster = Cluster()
    cluster.nodes["n2"] = NodePlace("fd00::2", 7710, 7711)
    place = cluster.places().place(1, "x", "n2/cpu:0", "n1/cpu:0")
    assert parse_address(place.address).host == "fd00::2"
