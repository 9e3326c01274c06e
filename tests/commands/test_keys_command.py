"""`flexpipe keys`: what it prints, what it refuses, and that no secret shows."""

import json

import pytest
from flexpipe.cli import app
from flexpipe.transport.key_ring import KeyRing, KeyRingError


def run(capsys, *arguments):
    """What a command prints, as JSON; its exit code is 0."""
    with pytest.raises(SystemExit) as ended:
        app(["keys", *arguments, "--json"])
    assert ended.value.code == 0
    return json.loads(capsys.readouterr().out)


def test_two_nodes_get_to_know_each_other_and_part_again(capsys, tmp_path):
    one, two = str(tmp_path / "1"), str(tmp_path / "2")
    first = run(capsys, "init", "n1", "--folder", one)
    run(capsys, "init", "n2", "--folder", two)
    run(capsys, "add", "n1", first["public_key"], "--folder", two)
    added = run(capsys, "add", "n2", f"{two}/allowed/n2.pub", "--folder", one)
    listed = run(capsys, "list", "--folder", one)
    assert listed == first | {"allowed": {"n1": first["public_key"], "n2": added["public_key"]}}
    run(capsys, "revoke", "n2", "--folder", one)
    assert run(capsys, "list", "--folder", one)["allowed"] == {"n1": first["public_key"]}


def test_people_see_public_keys_whole_and_never_a_secret(capsys, tmp_path):
    for arguments in (["init", "n1"], ["list"]):
        with pytest.raises(SystemExit):
            app(["keys", *arguments, "--folder", str(tmp_path)])
        printed = capsys.readouterr().out
        ring = KeyRing.load(tmp_path)
        assert ring.public.decode() in printed
        assert ring.secret.decode() not in printed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["add", "n2", "not a key"], "is no public key for n2"),
        (["add", "N2", "x"], "is no name of a node"),
        (["add", "n2", "missing.pub"], "cannot be read"),
        (["revoke", "n2"], "is not among those allowed"),
        (["init", "n2"], "is there already"),
    ],
)
def test_a_mistake_is_a_sentence(arguments, sentence, capsys, tmp_path):
    run(capsys, "init", "n1", "--folder", str(tmp_path))
    with pytest.raises(KeyRingError, match=sentence):
        app(["keys", *arguments, "--folder", str(tmp_path)])


def test_without_keys_a_list_says_how_to_make_some(tmp_path):
    with pytest.raises(KeyRingError, match="flexpipe keys init NAME"):
        app(["keys", "list", "--folder", str(tmp_path)])
