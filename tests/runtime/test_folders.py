"""Nobody's files are replaced, and what is replaced is there at every moment."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from chameleon_jax.errors import FileError
from chameleon_jax.runtime import distributed, folders
from chameleon_jax.runtime.files import new_file, write_text
from chameleon_jax.runtime.folders import Kind, check_file, check_folder, new_folder, recover
from chameleon_jax.runtime.locks import only_writer

NOTES = Kind("notes", lambda folder: (folder / "mark").is_file(), ("mark", "pages/*"))
LETTER = Kind("a letter", lambda path: path.read_bytes().startswith(b"Dear"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_notes(folder: Path, text: str) -> None:
    (folder / "pages").mkdir(parents=True, exist_ok=True)
    (folder / "mark").write_text(text)
    (folder / "pages" / "1").write_text(text)


def replace_notes(path: Path, text: str) -> None:
    with new_folder(path, NOTES) as tmp:
        write_notes(tmp, text)


@pytest.fixture
def without_swap(monkeypatch):
    """As on systems that cannot exchange two folders in one step: without a C library that has `renameat2`."""

    def no_library(*arguments, **options):
        raise OSError("no C library")

    monkeypatch.setattr(ctypes, "CDLL", no_library)


@pytest.fixture(params=["swap", "two renames"])
def either_way(request):
    if request.param != "swap":
        request.getfixturevalue("without_swap")


# ----------------------------------------------------------------------------------------------------------------------
# What may be replaced
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("either_way")
def test_older_folder_of_the_same_kind_is_replaced(tmp_path):
    write_notes(tmp_path / "notes", "old")
    (tmp_path / "notes" / "pages" / "2").write_text("old")
    replace_notes(tmp_path / "notes", "new")
    assert contents(tmp_path) == {"notes/mark": b"new", "notes/pages/1": b"new"}
    assert os.listdir(tmp_path) == ["notes"]


def test_empty_folder_is_filled(tmp_path):
    (tmp_path / "notes").mkdir()
    replace_notes(tmp_path / "notes", "new")
    assert contents(tmp_path) == {"notes/mark": b"new", "notes/pages/1": b"new"}


@pytest.mark.parametrize("stranger", ["thesis.txt", "pages.txt", "deep/below", "pages/../.hidden"])
@pytest.mark.parametrize("marked", [False, True])
def test_folder_with_anything_else_is_refused_by_name_and_stays(tmp_path, marked, stranger):
    folder = tmp_path / "notes"
    if marked:
        write_notes(folder, "old")
    (folder / stranger).parent.mkdir(parents=True, exist_ok=True)
    (folder / stranger).write_text("three years of work")
    before = contents(tmp_path)
    with pytest.raises(
        FileError, match=r"notes: is there already; .*it holds '.*'; only an empty .* that holds notes and nothing else"
    ):
        replace_notes(folder, "new")
    assert contents(tmp_path) == before
    assert os.listdir(tmp_path) == ["notes"]


def test_links_inside_a_folder_are_somebodys(tmp_path):
    """Removing a link loses what it says, even if not what it leads to."""
    write_notes(tmp_path / "notes", "old")
    (tmp_path / "notes" / "elsewhere").symlink_to("/")
    with pytest.raises(FileError, match="it holds 'elsewhere'"):
        replace_notes(tmp_path / "notes", "new")


def test_without_a_kind_only_nothing_is_replaced(tmp_path):
    write_notes(tmp_path / "notes", "old")
    with (
        pytest.raises(FileError, match="it holds 'mark'; only an empty folder is replaced"),
        new_folder(tmp_path / "notes"),
    ):
        pass


@pytest.mark.parametrize("given", [".", "missing/..", "../notes", "{absolute}", "..", "/"])
def test_current_folder_and_those_around_it_are_refused_even_if_empty(tmp_path, monkeypatch, given):
    (tmp_path / "notes").mkdir()
    monkeypatch.chdir(tmp_path / "notes")
    with pytest.raises(FileError, match="is the current folder or contains it"):
        replace_notes(Path(given.format(absolute=tmp_path / "notes")), "new")
    assert os.listdir(tmp_path) == ["notes"]


def test_mount_point_is_refused():
    with pytest.raises(FileError, match="is a mount point"):
        check_folder("/proc", Kind("anything", lambda folder: True, ("*",)))


def test_file_where_a_folder_is_meant_and_the_other_way_round(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileError, match=r"file: is there already; .*it is a file"):
        check_folder(tmp_path / "file", NOTES)
    with pytest.raises(FileError, match="folder: is a folder; expected the name of a file"):
        check_file(tmp_path / "folder", LETTER)
    with pytest.raises(FileError, match="folder: is not a regular file"), new_file(tmp_path / "folder") as tmp:
        tmp.write_text("new")
    with pytest.raises(FileError, match=r"file/below: cannot be written: .*file is a file"):
        check_folder(tmp_path / "file" / "below", NOTES)
    assert contents(tmp_path) == {"file": b"mine"}
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@pytest.mark.parametrize(("content", "refused"), [(b"", False), (b"Dear all", False), (b"thesis", True)])
def test_only_a_file_of_the_same_kind_is_replaced(tmp_path, content, refused):
    (tmp_path / "letter").write_bytes(content)
    if refused:
        with pytest.raises(FileError, match=r"letter: is there already; .*only a letter is replaced"):
            check_file(tmp_path / "letter", LETTER)
    else:
        check_file(tmp_path / "letter", LETTER)


def test_devices_and_pipes_are_never_replaced_by_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileError, match="pipe: is there already"):
        check_file(tmp_path / "pipe", LETTER)
    with pytest.raises(FileError, match="pipe: is not a regular file"), new_file(tmp_path / "pipe") as tmp:
        tmp.write_text("new")


def test_folder_that_became_somebodys_during_the_work_stays_and_the_result_is_kept(tmp_path):
    folder = tmp_path / "notes"

    def work():
        with new_folder(folder, NOTES) as tmp:
            write_notes(tmp, "new")
            folder.mkdir()
            (folder / "thesis.txt").write_text("three years of work")

    with pytest.raises(FileError, match=r"it holds 'thesis.txt'.*was kept as .*notes-finished$"):
        work()
    assert contents(tmp_path) == {
        "notes/thesis.txt": b"three years of work", "notes-finished/mark": b"new", "notes-finished/pages/1": b"new",
    }  # fmt: skip


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_rename_that_fails_loses_neither_old_nor_new(tmp_path, monkeypatch, without_swap, failing):
    write_notes(tmp_path / "notes", "old")
    calls, rename = [], os.rename

    def broken(source, target):
        calls.append(target)
        if len(calls) == failing:
            raise PermissionError(1, "Operation not permitted")
        rename(source, target)

    monkeypatch.setattr(os, "rename", broken)
    with pytest.raises(FileError, match=r"Operation not permitted. The finished output was kept as .*notes-finished"):
        replace_notes(tmp_path / "notes", "new")
    assert {path.name for path in tmp_path.iterdir()} == {"notes", "notes-finished"}
    assert (tmp_path / "notes" / "mark").read_text() == "old"
    assert (tmp_path / "notes-finished" / "mark").read_text() == "new"


@pytest.mark.parametrize(("number", "kept"), [(errno.EINVAL, "new"), (errno.ENOSPC, "old")])
def test_file_system_that_cannot_flush_is_used_and_one_that_fails_to_is_not_trusted(
    tmp_path, monkeypatch, number, kept
):
    write_notes(tmp_path / "notes", "old")

    def refuse(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with contextlib.nullcontext() if kept == "new" else pytest.raises(FileError, match="No space left"):
        replace_notes(tmp_path / "notes", "new")
    assert contents(tmp_path) == {"notes/mark": kept.encode(), "notes/pages/1": kept.encode()}


# ----------------------------------------------------------------------------------------------------------------------
# Links
# ----------------------------------------------------------------------------------------------------------------------


def test_link_is_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "notes").symlink_to(tmp_path / "disk" / "notes")  # does not exist yet; its parent does
    for text in ("first", "second"):
        replace_notes(tmp_path / "notes", text)
        assert (tmp_path / "notes").is_symlink()
        assert (tmp_path / "disk" / "notes" / "mark").read_text() == text
        assert os.listdir(tmp_path / "disk") == ["notes"]


def test_link_to_a_file_is_followed(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"


def test_link_to_nowhere_is_refused(tmp_path):
    (tmp_path / "unmounted").symlink_to(tmp_path / "disk" / "notes")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("unmounted", "loop"):
        with pytest.raises(FileError, match=f"{name}: is a link to .*where nothing can be written"):
            replace_notes(tmp_path / name, "new")
    assert sorted(os.listdir(tmp_path)) == ["loop", "unmounted"]


# ----------------------------------------------------------------------------------------------------------------------
# One writer at a time, and what killed ones leave
# ----------------------------------------------------------------------------------------------------------------------


def test_folders_made_above_a_failed_one_go_again(tmp_path):
    with pytest.raises(ValueError, match="a mistake"), new_folder(tmp_path / "a" / "b" / "notes", NOTES):
        raise ValueError("a mistake")
    assert os.listdir(tmp_path) == []


def test_second_writer_is_refused_with_the_name_of_the_first(tmp_path):
    with new_folder(tmp_path / "notes", NOTES) as tmp:
        write_notes(tmp, "first")
        with pytest.raises(FileError, match=rf"notes: is being written by process {os.getpid()} on '.*' since 2"):
            replace_notes(tmp_path / "notes", "second")
    assert contents(tmp_path) == {"notes/mark": b"first", "notes/pages/1": b"first"}


def test_lock_of_a_killed_process_holds_nobody_up(tmp_path):
    program = (
        "import os, signal, sys; from pathlib import Path; from chameleon_jax.runtime.locks import only_writer\n"
        "with only_writer(Path(sys.argv[1]), 'it'): os.kill(os.getpid(), signal.SIGKILL)"
    )
    lock = tmp_path / "lock"
    killed = subprocess.run([sys.executable, "-c", program, str(lock)], check=False)
    assert killed.returncode == -9
    assert json.loads(lock.read_text())["process"] > 0
    with only_writer(lock, "it"):
        assert json.loads(lock.read_text())["process"] == os.getpid()
    assert not lock.exists()


def test_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, capsys):
    import fcntl

    def refuse(*arguments):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    replace_notes(tmp_path / "notes", "new")
    assert "has no locks" in capsys.readouterr().err
    assert contents(tmp_path) == {"notes/mark": b"new", "notes/pages/1": b"new"}


def test_unfinished_file_of_a_living_process_is_left_alone(tmp_path):
    with new_file(tmp_path / "letter") as tmp:
        tmp.write_text("unfinished")
        other = tmp_path / ".letter.999999.part"
        tmp.rename(other)  # the same, as another process sees it
        write_text(tmp_path / "letter", "second")
        assert other.read_text() == "unfinished"
        other.rename(tmp)
    assert contents(tmp_path) == {"letter": b"unfinished"}
    other.write_text("of a dead process")
    (tmp_path / ".letter.part").write_text("somebody's")
    write_text(tmp_path / "letter", "third")
    assert contents(tmp_path) == {"letter": b"third", ".letter.part": b"somebody's"}


def test_processes_of_a_run_all_hear_why_the_first_could_not_begin(tmp_path, monkeypatch):
    """Two processes, one after the other: what the first tells is what the second hears."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").touch()
    told = []
    monkeypatch.setattr(distributed.jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed, "gather_texts", lambda text: told.append(text) or [told[0], text])
    for first in (True, False):
        monkeypatch.setattr(distributed, "is_first", lambda first=first: first)
        heard = pytest.raises(FileError, match=r"notes: is there already; .*it holds 'thesis.txt'")
        with heard, folders.new_shared_folder(tmp_path / "notes", NOTES):
            pytest.fail("went on")


KILLED = ["nothing", "complete", "replaced", "complete and replaced"]


@pytest.mark.parametrize("left", KILLED)
def test_reader_finds_what_a_killed_process_was_putting_in_place(tmp_path, left):
    if "complete" in left:
        write_notes(tmp_path / ".notes.complete.part", "new")
    if "replaced" in left:
        write_notes(tmp_path / ".notes.replaced.part", "old")
    recover(tmp_path / "notes")
    if left == "nothing":
        assert os.listdir(tmp_path) == []
    else:
        assert (tmp_path / "notes" / "mark").read_text() == ("new" if "complete" in left else "old")
    replace_notes(tmp_path / "notes", "newer")
    assert contents(tmp_path) == {"notes/mark": b"newer", "notes/pages/1": b"newer"}
    assert os.listdir(tmp_path) == ["notes"]
