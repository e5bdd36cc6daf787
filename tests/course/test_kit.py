"""A kit holds what its notebooks need, reports what is missing, and is not made twice."""

import os
import re
import subprocess
import sys
import zipfile

import pytest

from clay_lib.course import kit
from clay_lib.files import read_json
from clay_lib.runs.notebooks import ROOT

pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="a kit is made from a clone of the repository")


def test_pip_finds_the_wheels_of_a_kit_in_a_folder_with_spaces(tmp_path):
    home = tmp_path / "USB stick"
    (home / "wheels").mkdir(parents=True)
    with zipfile.ZipFile(home / "wheels" / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        wheel.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("tiny-1.0.dist-info/RECORD", "")
    command = re.search("PIP_NO_INDEX.*make lab", kit.KIT_PAGE)[0]
    pip = command.replace("make lab", f"{sys.executable} -m pip download -q -d found tiny")
    done = subprocess.run(pip, shell=True, cwd=home, env=os.environ | {"PIP_CONFIG_FILE": os.devnull}, timeout=60)
    assert done.returncode == 0 and (home / "found" / "tiny-1.0-py3-none-any.whl").is_file()


@pytest.mark.slow
def test_kit_holds_what_its_notebooks_need_and_resumes(tmp_path, capsys):
    home = tmp_path / "clay"
    options = dict(profile="smoke", only="03")
    assert kit.kit(str(home), **options) == 0
    assert "1 notebooks to run" in capsys.readouterr().out
    cached = sorted((home / "data" / "cache").glob("world-*.npz"))
    assert cached and read_json(home / "papermill_runs/smoke/03_mask_patches/metrics.json")
    for name in ("KIT.md", "wheels.txt", "gallery/index.html", "data/weights/clay-mini.safetensors", "Makefile"):
        assert (home / name).is_file(), name
    assert kit.sizes(home)["in all"] > kit.sizes(home)["cached chips"] > 0
    assert kit.kit(str(home), **options) == 0
    assert "0 files copied, 0 notebooks to run" in capsys.readouterr().out

    assert kit.kit(str(home), **options, check=True) == 0
    assert "nothing was missing" in capsys.readouterr().out
    cached[0].unlink()
    assert kit.kit(str(home), **options, check=True) == 1
    assert f"missing: {cached[0].name}" in capsys.readouterr().out
    assert read_json(home / "papermill_runs/smoke/03_mask_patches/run.json")["ok"]
