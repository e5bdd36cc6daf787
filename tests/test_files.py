"""Atomic file writes, on disk and on object stores, and locks."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from clay_lib import ContractError
from clay_lib import __main__ as cli
from clay_lib.figures.style import save
from clay_lib.files import PARTIAL, PartBuffer, atomic_write, filesystem, locked, make_folder, put, remove_leftovers


def test_failed_write_keeps_the_previous_file(tmp_path):
    path = atomic_write(tmp_path / "new" / "a.txt", lambda p: p.write_text("old"))

    def fail(partial):
        partial.write_text("ha")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        atomic_write(path, fail)
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"] and path.read_text() == "old"


def test_a_full_disk_is_named_whatever_the_library_says(tmp_path, monkeypatch):
    def fail(partial):
        raise RuntimeError("[enforce fail at inline_container.cc:862]")

    with pytest.raises(RuntimeError, match="enforce fail"):
        atomic_write(tmp_path / "a.ckpt", fail)
    monkeypatch.setattr("clay_lib.files.shutil.disk_usage", lambda path: SimpleNamespace(free=4096))
    with pytest.raises(OSError, match=r"\[Errno 28\].*a.ckpt"):
        atomic_write(tmp_path / "a.ckpt", fail)


def test_a_file_or_folder_in_the_way_of_an_output_is_named(tmp_path, capsys):
    file = atomic_write(tmp_path / "a.txt", lambda p: p.write_text("kept"))
    for write in (lambda: make_folder(file / "b" / "c"), lambda: make_folder(file), lambda: save(None, file / "b.png")):
        with pytest.raises(ContractError, match=r"a\.txt, which is a file; expected a folder"):
            write()
    assert cli.main(["world", str(tmp_path), "--size", "16"]) == 2  # as every command that writes
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"clay: out: found {tmp_path}, which is a folder; expected the name of a file")
    assert file.read_text() == "kept" and make_folder(tmp_path / "x" / "y").is_dir()


def test_killed_write_leaves_no_file(tmp_path):
    code = (
        "import os, signal; from clay_lib.files import atomic_write\n"
        f"atomic_write({str(tmp_path / 'a.bin')!r}, lambda p: (p.write_bytes(b'x' * 9), os.kill(os.getpid(), {signal.SIGKILL:d})))"
    )
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == -signal.SIGKILL
    assert not (tmp_path / "a.bin").exists()
    (tmp_path / f"{PARTIAL}{os.getppid()}-b.bin").write_text("another process is at work on it")
    (tmp_path / f"{PARTIAL}999999999-c.zarr" / "0").mkdir(parents=True)
    assert len([*tmp_path.iterdir()]) == 3
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{PARTIAL}{os.getppid()}-b.bin"]


@pytest.mark.parametrize("hard_links", [True, False])
def test_existing_file_is_kept_without_overwrite(hard_links, tmp_path, monkeypatch):
    if not hard_links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError("no hard links")))
    for url in (str(tmp_path), "memory://files"):
        fs, root = filesystem(url)
        path = f"{root}/a/b.txt"
        assert put(fs, path, b"1", overwrite=False) and not put(fs, path, b"2", overwrite=False)
        assert fs.cat_file(path) == b"1" and put(fs, path, b"3") and fs.cat_file(path) == b"3"
        fs.rm(f"{root}/a", recursive=True)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ContractError, match="protocol"):
        filesystem("nonsense://bucket")


def test_part_is_published_by_rows_or_age():
    parts = []
    buffer = PartBuffer(parts.append, rows=3, seconds=60)
    buffer.add(1, 2)
    assert parts == []
    buffer.add(3, 4)
    buffer.add(5)
    buffer.flush()
    buffer.flush()
    assert parts == [[1, 2, 3, 4], [5]]
    buffer.seconds = -1
    buffer.add(6)
    assert parts[-1] == [6]


def test_second_process_is_refused_until_the_first_dies(tmp_path):
    code = f"from clay_lib.files import locked\nwith locked({str(tmp_path / 'l')!r}, 'sweep'): print('held', flush=True); input()"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    holder = subprocess.Popen([sys.executable, "-c", code], env=environment, **pipes)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ContractError, match="sweep: found another process at work"), locked(tmp_path / "l", "sweep"):
        pass
    holder.kill()
    holder.communicate()
    with locked(tmp_path / "l", "sweep", wait=True):
        pass
