"""A file is whole or is not there."""

import os
import signal
import subprocess
import sys

import pytest

from clay_lib.files import PARTIAL, atomic_write


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = atomic_write(tmp_path / "new" / "a.txt", lambda p: p.write_text("old"))

    def half(partial):
        partial.write_text("ha")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        atomic_write(path, half)
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"] and path.read_text() == "old"


def test_the_unfinished_file_keeps_its_ending_for_writers_that_look_at_it(tmp_path):
    seen = []
    atomic_write(tmp_path / "a.npz", lambda p: (seen.append(p), p.write_bytes(b"1")))
    assert seen[0].suffix == ".npz" and seen[0].name.startswith(PARTIAL) and seen[0].parent == tmp_path


def test_killed_while_writing_the_name_does_not_appear(tmp_path):
    code = (
        "import os, signal; from clay_lib.files import atomic_write\n"
        f"atomic_write({str(tmp_path / 'a.bin')!r}, lambda p: (p.write_bytes(b'x' * 9), os.kill(os.getpid(), {signal.SIGKILL:d})))"
    )
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == -signal.SIGKILL
    assert not (tmp_path / "a.bin").exists()
