"""A server's folder in shared memory: its own while it lives, swept by the next one where it was killed."""

import fcntl
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from flexpipe.warm_folder import held_bytes, warm_folder

OWNER = (
    "import sys, pathlib; from flexpipe.warm_folder import warm_folder\n"
    "with warm_folder(pathlib.Path(sys.argv[1])) as folder:\n"
    "    print(folder, flush=True)\n"
    "    sys.stdin.read()\n"
)


@pytest.fixture
def owner(tmp_path):
    """Another server that holds a folder below ``tmp_path``."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        process.folder = Path(process.stdout.readline().strip())
        yield process
        process.kill()


def test_a_folder_is_its_user_s_only_and_gone_afterwards(tmp_path):
    with warm_folder(tmp_path) as folder:
        assert stat.S_IMODE(Path(folder).stat().st_mode) == 0o700
        (Path(folder) / "weights").write_bytes(b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_goes_while_the_folder_is_measured_does_not_count(tmp_path):
    (tmp_path / "weights").write_bytes(b"four")
    (tmp_path / "another.partial").symlink_to(tmp_path / "gone")  # listed, and not there when it is looked at
    assert held_bytes(tmp_path) == 4


def test_a_folder_is_locked_while_its_server_lives(owner):
    with (owner.folder / "lock").open() as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_folder_of_a_server_that_lives_is_left_alone(owner, tmp_path):
    with warm_folder(tmp_path) as mine:
        assert owner.folder.exists()
        assert Path(mine) != owner.folder


def test_the_folder_of_a_server_that_was_killed_is_removed_by_the_next(owner, tmp_path):
    (owner.folder / "weights").write_bytes(b"x")
    owner.kill()
    owner.wait()
    assert owner.folder.exists()
    with warm_folder(tmp_path) as mine:
        assert not owner.folder.exists()
        assert list(tmp_path.iterdir()) == [Path(mine)]


def test_a_folder_that_another_server_swept_before_it_was_locked_is_made_anew(tmp_path, monkeypatch):
    flock, swept = fcntl.flock, []

    def sweep_first(lock, operation):
        if operation == fcntl.LOCK_EX and not swept:
            swept.append(Path(lock.name).parent)
            with warm_folder(tmp_path):  # another server starts, and sweeps
                assert not swept[0].exists()
        flock(lock, operation)

    monkeypatch.setattr(fcntl, "flock", sweep_first)
    with warm_folder(tmp_path) as mine:
        assert list(tmp_path.iterdir()) == [Path(mine)] != swept
        with (Path(mine) / "lock").open() as lock, pytest.raises(BlockingIOError):
            flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_what_others_keep_in_shared_memory_is_left_alone(tmp_path):
    for name in ("psm_1234", f"flexpipe-{os.getuid() + 1}-abc"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lock").touch()
    with warm_folder(tmp_path):
        pass
    assert len(list(tmp_path.iterdir())) == 2


def test_without_shared_memory_there_is_no_folder_and_no_error(tmp_path):
    with warm_folder(tmp_path / "missing") as folder:
        assert folder == ""


def test_a_folder_is_gone_after_an_error_too(tmp_path):
    with pytest.raises(KeyError), warm_folder(tmp_path):
        raise KeyError
    assert list(tmp_path.iterdir()) == []
