"""A folder of keys: what is made, read, refused, and read again."""

import pytest
from flexpipe.transport.key_ring import KeyRing, KeyRingError, allow, make_ring, read_key, revoke


def test_a_new_ring_has_a_private_secret_and_lets_itself_in(tmp_path):
    ring = make_ring(tmp_path / "keys", "n1")
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "keys" / "n1.key").stat().st_mode & 0o777 == 0o600
    read = KeyRing.load(tmp_path / "keys")
    assert (read.name, read.secret, read.public) == ("n1", ring.secret, ring.public)
    assert dict(read.allowed) == {"n1": ring.public}


def test_no_text_of_a_ring_shows_its_secret(tmp_path):
    ring = make_ring(tmp_path, "n1")
    assert ring.secret.decode() not in repr(ring)
    assert ring.secret.decode() not in str(vars(ring).keys())


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_secret_that_others_can_reach_is_refused(tmp_path, mode):
    make_ring(tmp_path, "n1")
    (tmp_path / "n1.key").chmod(mode)
    with pytest.raises(KeyRingError, match="chmod 600"):
        KeyRing.load(tmp_path)


def test_a_folder_has_exactly_one_secret(tmp_path):
    with pytest.raises(KeyRingError, match=r"holds no NAME\.key: flexpipe keys init"):
        KeyRing.load(tmp_path)
    make_ring(tmp_path, "n1")
    with pytest.raises(KeyRingError, match="is there already"):
        make_ring(tmp_path, "n2")
    (tmp_path / "n2.key").write_bytes((tmp_path / "n1.key").read_bytes())
    with pytest.raises(KeyRingError, match=r"holds n1\.key, n2\.key"):
        KeyRing.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 41, b"\xff" * 40, b"a" * 39 + b'"', b"x" * 10_000])
def test_what_is_no_key_is_refused_and_nothing_of_it_is_shown(tmp_path, content):
    make_ring(tmp_path, "n1")
    bad = tmp_path / "allowed" / "n2.pub"
    bad.write_bytes(content)
    with pytest.raises(KeyRingError, match=r"n2\.pub holds no key"):
        KeyRing.load(tmp_path)


def test_keys_are_read_again_once_they_change(tmp_path):
    ring, other = make_ring(tmp_path / "1", "n1"), make_ring(tmp_path / "2", "n2")
    assert not ring.refresh()
    allow(ring.folder, "n2", other.public)
    assert ring.refresh()
    assert not ring.refresh()
    assert ring.node_of(other.public) == "n2"
    revoke(ring.folder, "n2")
    assert ring.refresh()
    assert ring.node_of(other.public) is None


def test_a_new_key_of_a_node_replaces_its_old_one(tmp_path):
    ring, old, new = (make_ring(tmp_path / each, "n1") for each in "abc")
    allow(ring.folder, "n2", old.public)
    allow(ring.folder, "n2", new.public)
    ring.refresh()
    assert (ring.node_of(old.public), ring.node_of(new.public)) == (None, "n2")


def test_what_cannot_be_read_any_more_is_not_allowed(tmp_path):
    ring, other = make_ring(tmp_path / "1", "n1"), make_ring(tmp_path / "2", "n2")
    allow(ring.folder, "n2", other.public)
    ring.refresh()
    (ring.folder / "allowed" / "n2.pub").write_bytes(b"damaged on disk")
    ring.refresh()
    assert dict(ring.allowed) == {"n1": ring.public}
    (ring.folder / "allowed").rename(ring.folder / "gone")
    ring.refresh()
    assert dict(ring.allowed) == {}


def test_of_a_key_that_two_nodes_claim_neither_is_allowed(tmp_path):
    ring, other = make_ring(tmp_path / "1", "n1"), make_ring(tmp_path / "2", "n2")
    allow(ring.folder, "n2", other.public)
    with pytest.raises(KeyRingError, match="belongs to node n2 already"):
        allow(ring.folder, "n3", other.public)
    (ring.folder / "allowed" / "n3.pub").write_bytes(other.public)
    ring.refresh()
    assert dict(ring.allowed) == {"n1": ring.public}


@pytest.mark.parametrize("name", ["", "N2", "../n2", "n2/x", "n" * 64, "n_2", "n2\n"])
def test_what_is_no_name_is_refused(tmp_path, name):
    ring = make_ring(tmp_path / "1", "n1")
    with pytest.raises(KeyRingError, match="is no name of a node"):
        allow(ring.folder, name, ring.public)
    with pytest.raises(KeyRingError, match="is no name of a node"):
        revoke(ring.folder, name)
    with pytest.raises(KeyRingError, match="is no name of a node"):
        make_ring(tmp_path / "2", name)
    assert list((ring.folder / "allowed").iterdir()) == [ring.folder / "allowed" / "n1.pub"]


def test_revoking_a_stranger_says_who_is_known(tmp_path):
    make_ring(tmp_path, "n1")
    with pytest.raises(KeyRingError, match=r"n2 is not among those allowed \(n1\)"):
        revoke(tmp_path, "n2")


def test_a_key_file_that_is_not_there_is_a_sentence(tmp_path):
    with pytest.raises(KeyRingError, match="cannot be read: No such file"):
        read_key(tmp_path / "n2.pub")
