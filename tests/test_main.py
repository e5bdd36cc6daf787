"""The command line: exit codes, one clear line for wrong input, and a quick start."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from clay_lib import __main__ as cli
from clay_lib.runs import profiles

ROOT = Path(__file__).resolve().parents[1]


def test_importing_it_adds_nothing_heavy():
    code = "import sys, clay_lib; before = set(sys.modules); import clay_lib.__main__; print([m for m in ('lightning', 'jupytext', 'papermill', 'nbformat', 'jsonargparse', 'rasterio') if m in set(sys.modules) - before])"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_help_lists_every_command_and_each_can_be_loaded(capsys):
    assert cli.main([]) == 0
    listed = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert f"  {name} " in listed
        with pytest.raises(SystemExit) as ended:
            cli.main([name, "--help"])
        assert ended.value.code == 0 and f"clay {name}" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["check", "--help"])
    assert "Example: clay check scene.tif --sensor" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["walk"], "command: found walk"),
        (["run", "--profile", "nowhere"], "profile: found nowhere"),
        (["run", "--scene", "no.tif", "--sensor", "naip"], "scene: found no.tif"),
        (["run", "--scene", __file__], "sensor: found none"),
        (["run", "--scene", __file__, "--sensor", "sentinel-2"], "sentinel-2-l2a"),
        (["run", "--sensor", "naip"], "scene: found none"),
        (["run", "--pace", "9"], "--pace"),
        (["world", "x.tif", "--size", "many"], "Got value: many"),
        (["world"], "required: out"),
        (["world", f"{__file__}/x.tif", "--size", "8"], "test_main.py"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(argv, said, capsys):
    assert cli.main(argv) == 2
    told = capsys.readouterr()
    assert told.err.startswith("clay: ") and told.err.count("\n") == 1 and said in told.err and told.out == ""


def written():
    """Every command line that README shows on a line of its own, and that a command gives as its example."""
    lines = re.findall(r"^\$? ?(clay \w[^\n#|]*)", (ROOT / "README.md").read_text(), re.M)
    for command in map(cli._command, cli.COMMANDS):
        lines += re.findall(r"Example: (clay .*)", command.__doc__ or "")
    return sorted({line.strip() for line in lines})


@pytest.mark.parametrize("line", written())
def test_every_line_that_is_shown_is_understood(line):
    from jsonargparse import auto_cli, capture_parser

    _, name, *options = shlex.split(line)
    command = cli._command(name)
    parser = capture_parser(lambda: auto_cli(command))
    parser.parse_args(cli._spelt(command, options))


def test_values_that_come_first_and_those_that_begin_with_a_minus():
    embed, search = cli._command("embed"), cli._command("search")
    assert cli._spelt(embed, ["out", "-60.1,-3.2,-60,-3", "2023", "--forecast", "--overlap", "-1"]) == [
        "out", "--area=-60.1,-3.2,-60,-3", "--dates=2023", "--forecast", "true", "--overlap=-1",
    ]  # fmt: skip
    assert cli._spelt(search, ["out", "--like", "-3.4,34.1", "--geojson", "h"]) == [
        "out",
        "--like=-3.4,34.1",
        "--geojson",
        "h",
    ]


def test_a_scene_reaches_the_notebooks_as_a_whole_path(monkeypatch, tmp_path):
    seen = {}
    (tmp_path / "a field.tif").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(profiles, "notebooks_for_scene", lambda profile: ["05"])
    monkeypatch.setattr(profiles, "run_profile", lambda profile, **rest: seen.update(rest) or [])
    assert cli.main(["run", "--scene", "a field.tif", "--sensor", "naip", "--overrides.seed", "4"]) == 0
    assert seen["notebooks"] == ["05"] and seen["out"].name == "demo-scene"
    assert seen["overrides"] == {"scene": str(tmp_path / "a field.tif"), "sensor": "naip", "seed": 4}


def test_a_failed_notebook_is_exit_code_1(tmp_path):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    (folder / "01_bad.py").write_text('# %% tags=["parameters"]\nout: str = ""\n\n# %%\n1 / 0\n')
    (tmp_path / "tiny.yaml").write_text("common: {}\n")
    code = f"""
import sys
from functools import partial
from pathlib import Path
from clay_lib import __main__ as cli
from clay_lib.runs import profiles
profiles.run_profile = partial(profiles.run_profile, folder=Path({str(folder)!r}), out=Path({str(tmp_path / "runs")!r}))
sys.exit(cli.main(["run", "--profile", {str(tmp_path / "tiny.yaml")!r}]))
"""
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert said.returncode == 1, said.stderr
    assert "cell 2 of 2: 1 / 0" in said.stdout and "ZeroDivisionError: division by zero" in said.stdout


def test_a_place_of_the_mini_world_lands_in_a_file_that_reads_as_a_scene(tmp_path, capsys):
    from clay_lib.data.rasters import read_scene

    path = tmp_path / "deep" / "town.tif"
    argv = ["world", str(path), "--land_cover", "50", "--sensor", "modis", "--size", "64", "--when", "2023-02-03T11:00"]
    assert cli.main(argv) == 0
    scene = read_scene(path, "modis")
    assert scene.pixels.shape == (7, 64, 64) and scene.valid.all() and abs(scene.gsd - 500) < 50
    lat, lon = (float(v) for v in capsys.readouterr().out.split(" at ")[1].split(", ")[:2])
    assert abs(scene.lat - lat) < 0.02 and abs(scene.lon - lon) < 0.02
    assert cli.main([*argv[:2], "--land_cover", "45"]) == 2
    assert capsys.readouterr().err.startswith("clay: land_cover: found 45")
