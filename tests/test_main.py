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
HEAVY = ("torch", "lightning", "jupytext", "papermill", "nbformat", "jsonargparse", "rasterio")


def test_importing_the_command_line_loads_nothing_heavy():
    code = f"import sys, clay_lib.__main__; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_lists_every_command_and_each_can_be_loaded(capsys):
    assert cli.main([]) == 0
    listed = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert f"  {name} " in listed
        with pytest.raises(SystemExit) as ended:
            cli.main([*name.split(), "--help"])
        text = capsys.readouterr().out
        assert ended.value.code == 0 and f"clay {name}" in text
        assert name != "check" or "Example: clay check scene.tif --sensor" in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["serach"], "command: found serach"),
        (["run", "--profile", "nowhere"], "profile: found nowhere"),
        (["run", "--scene", "no.tif", "--sensor", "naip"], "scene: found no.tif"),
        (["run", "--scene", __file__], "sensor: found none"),
        (["run", "--scene", __file__, "--sensor", "sentinel-2"], "sentinel-2-l2a"),
        (["run", "--sensor", "naip"], "scene: found none"),
        (["run", "--pace", "9"], "--pace"),
        (["run", "--profil", "smoke"], "perhaps profile"),
        (["world", "x.tif", "--size", "many"], "Got value: many"),
        (["world"], "required: out"),
        (["world", f"{__file__}/x.tif", "--size", "8"], "test_main.py"),
    ],
)
def test_wrong_input_gives_one_line_and_exit_code_2(argv, message, capsys):
    assert cli.main(argv) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("clay: ") and printed.err.count("\n") == 1
    assert message in printed.err and printed.out == ""


def documented_lines():
    """Every command line that a README shows on a line of its own, and that a command gives as its example."""
    lines = []
    for readme in [*ROOT.glob("*.md"), *ROOT.glob("*/README.md")]:
        lines += re.findall(r"^\$? ?(clay [a-z][^\n#|]*)", readme.read_text(), re.M)
    for command in map(cli.command_of, cli.COMMANDS):
        lines += re.findall(r"Example: (clay .*)", command.__doc__ or "")
    return sorted({line.strip() for line in lines})


@pytest.mark.parametrize("line", documented_lines())
def test_documented_commands_are_parsed(line):
    from jsonargparse import auto_parser

    _, name, *options = shlex.split(line.replace("sweep export", "'sweep export'"))
    command = cli.command_of(name)
    auto_parser(command).parse_args(cli.normalize_options(command, options))


def test_leading_values_flags_and_negative_numbers():
    normalize = cli.normalize_options
    embed, search, sweep = map(cli.command_of, ("embed", "search", "sweep"))
    assert normalize(embed, ["out", "-60.1,-3.2,-60,-3", "2023", "--forecast", "--overlap", "-1"]) == [
        "out", "--area=-60.1,-3.2,-60,-3", "--dates=2023", "--forecast=true", "--overlap=-1",
    ]  # fmt: skip
    assert normalize(search, ["out", "--like", "-3.4,34.1", "--k=3"]) == ["out", "--like=-3.4,34.1", "--k=3"]
    assert normalize(sweep, ["a.yaml", "--dry-run"]) == ["--file=a.yaml", "--dry_run=true"]


def test_scene_reaches_the_notebooks_as_an_absolute_path(monkeypatch, tmp_path):
    options = {}
    (tmp_path / "a field.tif").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(profiles, "notebooks_for_scene", lambda profile: ["05"])
    monkeypatch.setattr(profiles, "run_profile", lambda profile, **kwargs: options.update(kwargs) or [])
    assert cli.main(["run", "--scene", "a field.tif", "--sensor", "naip", "--overrides.seed", "4"]) == 0
    assert options["notebooks"] == ["05"] and options["out"].name == "demo-scene"
    assert options["overrides"] == {"scene": str(tmp_path / "a field.tif"), "sensor": "naip", "seed": 4}


def test_failed_notebook_gives_exit_code_1(tmp_path):
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
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "cell 2 of 2: 1 / 0" in done.stdout and "ZeroDivisionError: division by zero" in done.stdout


def test_mini_world_file_reads_as_a_scene(tmp_path, capsys):
    from clay_lib.data.scenes import read_scene

    path = tmp_path / "deep" / "town.tif"
    argv = ["world", str(path), "--land_cover", "50", "--sensor", "modis", "--size", "64", "--when", "2023-02-03T11:00"]
    assert cli.main(argv) == 0
    scene = read_scene(path, "modis")
    assert scene.pixels.shape == (7, 64, 64) and scene.valid.all() and abs(scene.gsd - 500) < 50
    lat, lon = (float(v) for v in capsys.readouterr().out.split(" at ")[1].split(", ")[:2])
    assert abs(scene.lat - lat) < 0.02 and abs(scene.lon - lon) < 0.02
    assert cli.main([*argv[:2], "--land_cover", "45"]) == 2
    assert capsys.readouterr().err.startswith("clay: land_cover: found 45")
