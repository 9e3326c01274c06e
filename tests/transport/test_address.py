"""Addresses: canonical text and back, and a sentence for each way to get one wrong."""

import pytest
from flexpipe.transport.address import (
    IPC_PATH_BYTES_MAX,
    AddressError,
    IpcAddress,
    MemoryAddress,
    TcpAddress,
    parse_address,
)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("ipc:///run/x", IpcAddress("/run/x")),
        ("tcp://127.0.0.1:7700", TcpAddress("127.0.0.1", 7700)),
        ("tcp://[::1]:7700", TcpAddress("::1", 7700)),
        ("tcp://node-3.rack:65535", TcpAddress("node-3.rack", 65535)),
        ("tcp://n2@10.0.0.2:7700", TcpAddress("10.0.0.2", 7700, "n2")),
        ("tcp://n-3@[::1]:7700", TcpAddress("::1", 7700, "n-3")),
        ("memory://stage/0", MemoryAddress("stage/0")),
        ("ipc:///" + "x" * (IPC_PATH_BYTES_MAX - 1), IpcAddress("/" + "x" * (IPC_PATH_BYTES_MAX - 1))),
    ],
)
def test_an_address_reads_and_writes_the_same_text(text, address):
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "has no scheme"),
        ("/run/x", "has no scheme"),
        ("http://x:1", "unknown scheme 'http'"),
        ("ipc://relative", "absolute path"),
        ("ipc://", "absolute path"),
        ("ipc:///run/", "absolute path"),
        ("ipc:///a\0b", "NUL"),
        ("ipc:///" + "x" * IPC_PATH_BYTES_MAX, "is 108 bytes long, a Unix socket takes at most 107"),
        ("ipc:///" + "\N{GREEK SMALL LETTER PI}" * 60, "is 121 bytes long"),
        ("tcp://host", "port in 1..65535"),
        ("tcp://host:0", "port in 1..65535"),
        ("tcp://host:65536", "not tcp://host:port"),
        ("tcp://host:x", "not tcp://host:port"),
        ("tcp://:80", "not tcp://host:port"),
        ("tcp://host:80/path", "not tcp://host:port"),
        ("tcp://n2:secret@host:80", "not tcp://host:port"),
        ("tcp://@host:80", "names the node ''"),
        ("tcp://N2@host:80", "names the node 'N2'"),
        (f"tcp://{'n' * 64}@host:80", "1 to 63 of them"),
        ("tcp://[::1:80", "not tcp://host:port"),
        ("memory://", "has no name"),
    ],
)
def test_a_wrong_address_is_refused_with_what_to_mend(text, sentence):
    with pytest.raises(AddressError, match=sentence):
        parse_address(text)


@pytest.mark.parametrize(
    ("host", "is_loopback"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False)]
)
def test_only_this_host_is_loopback(host, is_loopback):
    assert TcpAddress(host, 1).is_loopback is is_loopback
