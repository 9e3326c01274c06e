"""Hosts on one machine: they reach each other, except where a cable is cut."""

import socket
import subprocess
import sys

import pytest
from flexpipe.bench.namespaces import NamespaceError, host_network, missing
from flexpipe.bench.virtual_switch import Shape

ECHO = """
import socket, sys
server = socket.create_server((sys.argv[1], 5001))
print("listening", flush=True)
while True:
    connection, _ = server.accept()
    connection.sendall(connection.recv(16))
    connection.close()
"""
REFUSED_AFTER_S = 0.3

pytestmark = pytest.mark.skipif(missing() != "", reason=missing())


def echoes(address):
    try:
        with socket.create_connection((address, 5001), timeout=REFUSED_AFTER_S) as connection:
            connection.sendall(b"hello")
            return connection.recv(16) == b"hello"
    except TimeoutError:
        return False


@pytest.fixture
def echo_host():
    with host_network(["one", "two"], Shape(delay_s=0.001)) as network:
        host = network.hosts[1]
        command = host.command([sys.executable, "-c", ECHO, host.address])
        with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
            assert server.stdout.readline() == b"listening\n"
            yield network, host
            server.kill()


def test_a_host_is_reached_until_its_cable_is_cut_and_again_once_it_is_mended(echo_host):
    network, host = echo_host
    assert echoes(host.address)
    network.cut(host)
    assert not echoes(host.address)
    network.mend()
    assert echoes(host.address)


def test_cutting_between_two_hosts_leaves_the_way_to_others(echo_host):
    network, host = echo_host
    network.cut_between((network.hosts[0], host))
    assert echoes(host.address)


def namespaces():
    return subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout


def test_nothing_of_the_network_is_left_behind():
    with host_network(["short-lived"]) as network:
        namespace = network.hosts[0].namespace
        assert namespace in namespaces()
    assert namespace not in namespaces()


def test_a_network_without_hosts_is_refused():
    with pytest.raises(NamespaceError, match="1 to 16 hosts, not 0"), host_network([]):
        pass
