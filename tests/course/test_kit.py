"""A kit holds what its notebooks need, reports what is missing, and is not made twice."""

import pytest

from clay_lib import ContractError
from clay_lib.course import kit
from clay_lib.files import read_json
from clay_lib.runs.notebooks import ROOT

pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="a kit is made from a clone of the repository")


def test_unfinished_kit_is_not_checked(tmp_path):
    with pytest.raises(ContractError, match="make kit"):
        kit.kit(str(tmp_path / "none"), check=True)


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
