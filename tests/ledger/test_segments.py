"""A journal's folder belongs to one process at a time."""

from pathlib import Path

from ledger.segments import Folder


def test_a_new_folder_cannot_be_claimed_until_it_is_released(tmp_path: Path) -> None:
    folder = Folder.create(tmp_path / "journal", worker="w0")
    assert Folder.claim(folder.path) is None
    folder.release()
    claimed = Folder.claim(folder.path)
    assert claimed is not None
    assert Folder.claim(folder.path) is None
    claimed.release()


def test_what_is_no_journal_cannot_be_claimed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    assert Folder.claim(tmp_path / "file") is None
    assert Folder.claim(tmp_path / "empty") is None
    assert Folder.claim(tmp_path / "missing") is None


def test_a_removed_journal_leaves_nothing(tmp_path: Path) -> None:
    folder = Folder.create(tmp_path, worker="w0")
    folder.segment(1).write_bytes(b"x")
    folder.segment(2).write_bytes(b"x")
    assert folder.numbers() == [1, 2]
    folder.remove()
    assert list(tmp_path.iterdir()) == []


def test_two_journals_of_one_worker_have_different_names(tmp_path: Path) -> None:
    first, second = (Folder.create(tmp_path, worker="w0") for _ in range(2))
    assert first.path != second.path
    first.release()
    second.release()


def test_nobody_but_the_owner_may_read_a_journal(tmp_path: Path) -> None:
    folder = Folder.create(tmp_path / "journal", worker="w0")
    assert folder.path.stat().st_mode & 0o077 == 0
    assert (folder.path / "lock").stat().st_mode & 0o077 == 0
    folder.release()
