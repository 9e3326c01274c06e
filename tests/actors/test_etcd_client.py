"""The client of etcd: endpoints that fail, answers that get lost, logins, certificates, and peers that are no etcd."""

import base64
import json
import os
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trio
from candidates import commit, planned
from certificates import Certificates
from flexpipe.actors.cluster import etcd_client
from flexpipe.actors.cluster.cluster_store import (
    AlreadyLedError,
    Candidate,
    LeadershipLostError,
    StoreRefusedError,
    StoreUnavailableError,
    check_name,
)
from flexpipe.actors.cluster.etcd_client import EtcdClient, EtcdSettings
from flexpipe.actors.cluster.etcd_messages import Nothing, Put, Range, RangeAnswer
from flexpipe.actors.cluster.etcd_store import EtcdKeys, EtcdStore
from flexpipe.actors.journal import EPOCHS_KEPT_MAX, JournalError, JournalRecord, fold
from key_rings import free_port
from lossy_proxy import lossy_proxy
from real_etcd import require_etcd, running_etcd

N1 = Candidate("n1", "tcp://n1@127.0.0.1:1")


@pytest.fixture(scope="module")
def etcd(tmp_path_factory):
    with running_etcd(tmp_path_factory.mktemp("etcd")) as (member,):
        yield member


def port(member):
    return urlsplit(member.endpoint).port


@asynccontextmanager
async def proxied(etcd):
    async with lossy_proxy(port(etcd)) as proxy:
        yield proxy


def kept(member, prefix):
    """All keys that begin with ``prefix``, as etcd itself says."""
    key, end = (base64.b64encode(part).decode() for part in (prefix, prefix[:-1] + bytes([prefix[-1] + 1])))
    body = json.dumps({"key": key, "range_end": end, "keys_only": True}).encode()
    return [base64.b64decode(kv["key"]).decode() for kv in member.ask("kv/range", body).get("kvs", [])]


async def test_an_endpoint_that_is_not_there_gives_way_to_the_next(etcd):
    settings = EtcdSettings((f"http://127.0.0.1:{free_port()}", etcd.endpoint))
    async with EtcdClient.open(settings) as client:
        await client.call("kv/put", Put(b"failover", b"1"), Nothing)
        assert client.endpoint == etcd.endpoint
        found = await client.call("kv/range", Range(b"failover"), RangeAnswer)
        assert found.first.value == b"1"


async def test_where_nobody_answers_each_endpoint_is_named(etcd):
    async with EtcdClient.open(EtcdSettings((f"http://127.0.0.1:{free_port()}",) * 2)) as client:
        with pytest.raises(StoreUnavailableError, match=r"cannot be reached: .*; http.* cannot be reached"):
            await client.call("kv/range", Range(b"a"), RangeAnswer)


async def test_a_call_that_is_cancelled_leaves_a_client_that_works(etcd):
    async with EtcdClient.open(EtcdSettings((etcd.endpoint,))) as client:
        for steps in range(30):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(client.call, "kv/range", Range(b"a"), RangeAnswer)
                    for _ in range(steps):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
        assert (await client.call("kv/range", Range(b"none"), RangeAnswer)).first is None


async def test_a_record_whose_answer_is_lost_is_written_once(etcd):
    async with proxied(etcd) as proxy, EtcdStore.open(EtcdSettings((proxy.endpoint,)), "lost-record") as store:
        claim = await store.claim(N1)
        async with claim.journal("p") as journal:
            proxy.lose, proxy.losses = b"/v3/kv/txn", 2
            await journal.write(planned(1))
            await journal.write(commit(1))
            assert proxy.lost == 2
            assert await journal.read() == fold([planned(1), commit(1)])
        assert len(kept(etcd, b"/flexpipe/lost-record/journal/p/record/")) == 2
        await claim.resign()


@pytest.mark.parametrize("call", [b"/v3/lease/grant", b"/v3/kv/txn"])
async def test_a_claim_whose_answer_is_lost_is_found_to_be_ones_own_at_the_next_endpoint(etcd, call):
    cluster = f"lost-claim-{len(call)}"
    async with (
        proxied(etcd) as proxy,
        EtcdStore.open(EtcdSettings((proxy.endpoint, etcd.endpoint)), cluster) as store,
    ):
        proxy.lose, proxy.losses = call, 1
        claim = await store.claim(N1)
        assert proxy.lost == 1
        await claim.keep_alive()
        with pytest.raises(AlreadyLedError):
            await store.claim(Candidate("n2", "tcp://n2@127.0.0.1:2"))
        await claim.resign()


async def test_a_claim_whose_only_answer_was_lost_when_it_was_made_anew_is_ones_own(etcd):
    async with proxied(etcd) as proxy, EtcdStore.open(EtcdSettings((proxy.endpoint,)), "lost-reclaim") as store:
        claim = await store.claim(N1)
        revoke(etcd, claim)
        proxy.lose, proxy.losses = b"/v3/kv/txn", 1
        with pytest.raises(StoreUnavailableError):
            await claim.reclaim()
        await claim.reclaim()
        await claim.keep_alive()
        async with claim.journal("p") as journal:
            await journal.write(planned(1))
        await claim.resign()


def revoke(etcd, claim):
    """Let the lease run out, at once."""
    etcd.ask("lease/revoke", json.dumps({"ID": str(claim._lease)}).encode())


async def test_a_claim_that_lapsed_is_not_made_anew_once_somebody_else_led(etcd):
    async with EtcdStore.open(EtcdSettings((etcd.endpoint,)), "lapsed") as store:
        first = await store.claim(N1)
        revoke(etcd, first)
        second = await store.claim(Candidate("n2", "tcp://n2@127.0.0.1:2"))
        await second.resign()  # nobody leads now, but somebody did
        with pytest.raises(LeadershipLostError, match="ran out"):
            await first.keep_alive()
        with pytest.raises(LeadershipLostError, match="somebody else led since"):
            await first.reclaim()
        async with first.journal("p") as journal:
            with pytest.raises(JournalError, match="n1 does not lead in term"):
                await journal.write(planned(1))


async def test_a_record_that_is_written_again_writes_nothing(etcd):
    async with EtcdStore.open(EtcdSettings((etcd.endpoint,)), "again") as store:
        claim = await store.claim(N1)
        async with claim.journal("p") as journal:
            await journal.write(planned(1))
            await journal.write(JournalRecord("aborted", 1))
            before = written_last(etcd, b"/flexpipe/again/journal/p/head")
            await journal.write(JournalRecord("aborted", 1))
            await journal.write(planned(1))
            assert written_last(etcd, b"/flexpipe/again/journal/p/head") == before
        await claim.resign()


def written_last(member, key):
    """The revision at which ``key`` was."""
    (found,) = member.ask("kv/range", json.dumps({"key": base64.b64encode(key).decode()}).encode())["kvs"]
    return found["mod_revision"]


async def test_records_of_old_epochs_are_dropped_and_no_state_with_them(etcd, monkeypatch):
    monkeypatch.setattr("flexpipe.actors.cluster.etcd_journal.EPOCHS_KEPT_MAX", 4)
    records = [planned(1), commit(1), JournalRecord("released", 1)]
    records += [record for epoch in range(2, 15) for record in (planned(epoch), JournalRecord("aborted", epoch))]
    async with EtcdStore.open(EtcdSettings((etcd.endpoint,)), "bounded") as store:
        claim = await store.claim(N1)
        async with claim.journal("p") as journal:
            for record in records:
                await journal.write(record)
            assert await journal.read() == fold(records)
        await claim.resign()
    names = kept(etcd, b"/flexpipe/bounded/journal/p/record/")
    assert {int(name.split("/")[-2]) for name in names} == {11, 12, 13, 14}
    assert EPOCHS_KEPT_MAX == 1000


async def test_a_journal_of_another_version_is_refused_by_name(etcd):
    async with EtcdStore.open(EtcdSettings((etcd.endpoint,)), "format") as store:
        claim = await store.claim(N1)
        for value in (b'{"state": {}, "format": 9}', b"no json"):
            key = base64.b64encode(b"/flexpipe/format/journal/p/head").decode()
            etcd.ask("kv/put", json.dumps({"key": key, "value": base64.b64encode(value).decode()}).encode())
            async with claim.journal("p") as journal:
                with pytest.raises(
                    JournalError, match=r"the journal at /flexpipe/format/journal/p/ .*(version|format)"
                ):
                    await journal.read()
        await claim.resign()


# --- who may ask ------------------------------------------------------------------------------------------------------


def set_passwords(member):
    """One root, and a user that may touch the keys of one cluster only."""
    prefix = EtcdKeys.of("guarded").prefix
    key, end = (base64.b64encode(part).decode() for part in (prefix, prefix[:-1] + b"0"))
    for path, body in (
        ("auth/user/add", {"name": "root", "password": "of-root"}),
        ("auth/user/grant", {"user": "root", "role": "root"}),
        ("auth/user/add", {"name": "flexpipe", "password": "of-flexpipe"}),
        ("auth/role/add", {"name": "flexpipe"}),
        ("auth/role/grant", {"name": "flexpipe", "perm": {"permType": "READWRITE", "key": key, "range_end": end}}),
        ("auth/user/grant", {"user": "flexpipe", "role": "flexpipe"}),
        ("auth/enable", {}),
    ):
        member.ask(path, json.dumps(body).encode())


async def test_a_login_lets_in_and_is_made_again_when_its_token_is_forgotten(tmp_path):
    with running_etcd(tmp_path) as (member,):
        member.ask("auth/role/add", b'{"name": "root"}')
        set_passwords(member)
        settings = EtcdSettings((member.endpoint,), "flexpipe", "of-flexpipe")
        async with EtcdStore.open(settings, "guarded") as store:
            claim = await store.claim(N1)
            async with claim.journal("p") as journal:
                await journal.write(planned(1))
                member.kill()  # tokens are kept in its memory only
                member.start()
                await journal.write(commit(1))
                await claim.keep_alive()
                assert await journal.read() == fold([planned(1), commit(1)])
            await claim.resign()
        async with EtcdStore.open(settings, "another") as store:
            with pytest.raises(StoreRefusedError, match="permission denied"):
                await store.claim(N1)
        for wrong in (EtcdSettings((member.endpoint,), "flexpipe", "guessed"), EtcdSettings((member.endpoint,))):
            async with EtcdStore.open(wrong, "guarded") as store:
                with pytest.raises(StoreRefusedError, match="user") as refused:
                    await store.claim(N1)
                assert "guessed" not in f"{refused.value} {wrong}"


async def test_over_tls_both_ends_show_who_they_are(tmp_path):
    require_etcd()
    files = Certificates(tmp_path)
    endpoint, peer = f"https://127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}"
    command = [
        *("etcd", "--data-dir", str(tmp_path / "data"), "--listen-peer-urls", peer, "--logger", "zap"),
        *("--listen-client-urls", endpoint, "--advertise-client-urls", endpoint),
        *("--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}"),
        *("--cert-file", str(files.cert), "--key-file", str(files.key)),
        *("--trusted-ca-file", str(files.ca), "--client-cert-auth"),
    ]
    known = EtcdSettings((endpoint,), ca_file=files.ca, cert_file=files.cert, key_file=files.key)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(trio.run_process, command, capture_stderr=True, deliver_cancel=killed))
        async with EtcdClient.open(known) as client:
            await answered(client)
            await client.call("kv/put", Put(b"a", b"1"), Nothing)
        for stranger in (EtcdSettings((endpoint,), ca_file=files.ca), EtcdSettings((endpoint,))):
            async with EtcdClient.open(stranger) as client:
                with pytest.raises(StoreUnavailableError, match="cannot be reached"):
                    await client.call("kv/range", Range(b"a"), RangeAnswer)
        nursery.cancel_scope.cancel()


async def killed(process):
    process.kill()


async def answered(client):
    with trio.fail_after(20.0):
        while True:
            try:
                return await client.call("kv/range", Range(b"a"), RangeAnswer)
            except StoreUnavailableError:
                await trio.sleep(0.02)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (EtcdSettings(()), "no etcd endpoint is named"),
        (EtcdSettings(("10.0.0.1:2379",)), "is no etcd endpoint: write https://HOST:PORT"),
        (EtcdSettings(("ftp://10.0.0.1:2379",)), "is no etcd endpoint"),
        (EtcdSettings(("https://me:secret@10.0.0.1:2379",)), "is no etcd endpoint"),
        (EtcdSettings(("http://10.0.0.1:2379",)), "in the clear: use https"),
        (EtcdSettings(("https://10.0.0.1:2379",), ca_file=Path("/nowhere")), "certificates for etcd cannot be read"),
        (EtcdSettings(("https://10.0.0.1:2379",), cert_file=Path("a")), "needs its key"),
    ],
)
async def test_settings_that_cannot_be_are_refused_in_one_sentence(settings, sentence):
    with pytest.raises(StoreRefusedError, match=sentence) as refused:
        async with EtcdClient.open(settings):
            pass
    assert "secret" not in str(refused.value)


async def test_plain_http_beyond_loopback_is_for_those_who_say_so():
    async with EtcdClient.open(EtcdSettings(("http://10.0.0.1:2379",), insecure=True)) as client:
        assert client.endpoint == "http://10.0.0.1:2379"


@pytest.mark.parametrize("name", ["", "/", "Capital", "-first", "a" * 64])
def test_a_clusters_name_that_can_be_no_key_is_refused(name):
    with pytest.raises(StoreRefusedError, match="is no name for a cluster"):
        check_name("cluster", name)


# --- peers that are no etcd -------------------------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
ODD = {
    "not http": b"SSH-2.0-OpenSSH_9.2\r\n",
    "no json": HEAD + b"Content-Length: 5\r\n\r\nhello",
    "another json": HEAD + b"Content-Length: 2\r\n\r\n[]",
    "wrong types": HEAD + b'Content-Length: 25\r\n\r\n{"kvs": [{"value": 1.5}]}',
    "cut short": HEAD + b"Content-Length: 500\r\n\r\n{",
    "nothing": b"",
    "an error page": b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\nsoon",
    "noise": os.urandom(2000),
    "too much": HEAD + b"Content-Length: 100000\r\n\r\n" + b"x" * 100_000,
    "redirect": b"HTTP/1.1 307 Go\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("name", ODD)
async def test_a_peer_that_is_no_etcd_is_one_that_does_not_answer(name, monkeypatch):
    monkeypatch.setattr(etcd_client, "ANSWER_BYTES_MAX", 50_000)

    async def serve(stream):
        async with stream:
            await stream.receive_some(65536)
            with suppress(trio.BrokenResourceError):
                await stream.send_all(ODD[name])

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        endpoint = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        async with EtcdStore.open(EtcdSettings((endpoint,)), "c") as store:
            with pytest.raises(StoreUnavailableError):
                await store.claim(N1)
            with pytest.raises(StoreUnavailableError):
                await store.watch(lambda record: None)
        nursery.cancel_scope.cancel()
