"""The command line: `clay COMMAND` or `python -m clay_lib COMMAND`. Options come from the typed functions.

A new command is one line in COMMANDS and a typed function with a docstring; its module is imported only when asked for.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import re
import sys
import warnings
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

from clay_lib.errors import ContractError

COMMANDS = {  # name: (module:function, what it does)
    "run": ("clay_lib.__main__:run", "run the notebooks with a profile's values and write the gallery"),
    "embed": ("clay_lib.areas.area:embed", "embed an area: vectors of its tiles, a raster of its patches"),
    "check": ("clay_lib.data.check:check", "tell whether a scene holds what its sensor's files hold"),
    "world": ("clay_lib.__main__:world", "write one chip of the mini-world as a GeoTIFF"),
    "chips": ("clay_lib.runs.prepare:chips", "write a store of chips, of the mini-world or from scenes"),
    "bench": ("clay_lib.runs.bench:bench", "time the model, a training step, chip stores and loading on this machine"),
    "train": (
        "clay_lib.runs.pretrain:train",
        "train a model by a configuration; the same command goes on after a kill",
    ),
    "targets": ("clay_lib.runs.prepare:targets", "compute a teacher's targets for the chips of a store, once"),
    "transfer": (
        "clay_lib.evaluation.transfer:transfer",
        "probe frozen weights on real labeled images, beside baselines",
    ),
    "results": (
        "clay_lib.evaluation.results:results",
        "measure weights beside baselines and write the page of results",
    ),
    "export": ("clay_lib.heads.export:export", "write the encoder for other runtimes, as ONNX or torch.export"),
    "convert": ("clay_lib.checkpoint:convert", "write a checkpoint's encoder or whole model as safetensors"),
    "exercises": (
        "clay_lib.course.exercises:exercises",
        "write notebooks/exercises from the solved exercises of the notebooks",
    ),
    "search": ("clay_lib.areas.search:search_command", "find places that look like one, among embedded ones"),
    "sweep": (
        "clay_lib.runs.sweep:sweep",
        "run a notebook over many parameters; the same command goes on after a kill",
    ),
    "archive": ("clay_lib.areas.local:archive", "write and serve an archive of the mini-world, for work offline"),
    "gallery": ("clay_lib.runs.gallery:write_site", "write the walk as a static site that opens without a network"),
    "kit": ("clay_lib.course.kit:kit", "write a folder with all that a workshop without a network needs"),
    "pair": ("clay_lib.__main__:pair", "give notebooks/*.ipynb the outputs of the last demo run"),
}

RENAMED = {"bench-chips": "bench chips", "bench-load": "bench load", "plan": "bench plan"}


def run(
    profile: str = "demo", *, only: str = "", scene: str = "", sensor: str = "", overrides: dict[str, Any] | None = None
) -> int:
    """Run the notebooks headless; results and index.html land in papermill_runs/PROFILE.

    Example: clay run smoke --only 01,04

    Args:
        profile: a name in papermill_runs/profiles, or a path to a YAML file
        only: notebooks by number or name, separated by commas, such as 01,04
        scene: a GeoTIFF of your own, or a folder of single-band files: only the notebooks that take one run on it;
            results then land in papermill_runs/PROFILE-scene
        sensor: the sensor that took the scene, such as sentinel-2-l2a
        overrides: further parameters for every notebook that has them
    """
    from clay_lib.runs import profiles

    names = [name for name in only.split(",") if name] or None
    overrides = dict(overrides or {})
    if scene or sensor:
        overrides |= _own_scene(scene, sensor)
        names = names or profiles.notebooks_for_scene(profile)
    out = profiles.RUNS / f"{profiles.read_profile(profile).name}-scene" if scene else None  # other results stay
    results = profiles.run_profile(profile, notebooks=names, overrides=overrides, out=out)
    return 0 if all(result.ok for result in results) else 1


def _own_scene(scene: str, sensor: str) -> dict[str, str]:
    from clay_lib.sensors import SENSORS

    path = Path(scene).expanduser().resolve()
    if not scene or not path.exists():
        raise ContractError(
            "scene",
            scene or "none",
            "a GeoTIFF file, or a folder of single-band files",
            "a misspelt path" if scene else "a sensor was named without a scene",
        )
    if not sensor:
        raise ContractError("sensor", "none", f"one of {list(SENSORS)}", "a scene was named without its sensor")
    return {"scene": str(path), "sensor": SENSORS[sensor].name}


def world(
    out: str,
    *,
    land_cover: int = 40,
    index: int = 0,
    split: str = "test",
    sensor: str = "sentinel-2-l2a",
    when: str = "2023-06-10T10:30",
    size: int = 256,
    cloud_cover: float = 0.0,
    seed: int = 0,
) -> int:
    """Write what a sensor sees of a place in the mini-world: a GeoTIFF in the sensor's native numbers.

    Example: clay world data/cache/field.tif --sensor landsat-c2l2-sr --land_cover 40

    Args:
        out: the file to write, such as data/cache/field.tif
        land_cover: WorldCover code of the place's middle, such as 10 (trees), 40 (crops), 50 (town)
        index: which of the places of this class
        split: train, val or test
        sensor: one of the registered sensors
        when: local solar time
        size: pixels a side
        cloud_cover: share under clouds, 0 to 1
        seed: the Earth's
    """
    from clay_lib.data.rasters import write_raster
    from clay_lib.sensors import SENSORS
    from clay_lib.world.earth import MiniWorld

    earth = MiniWorld(seed)
    chip = earth.observe(earth.place(land_cover, index, split), sensor, when, size, cloud_cover)
    names = SENSORS[sensor].band_names
    path = write_raster(out, chip.pixels, crs=chip.crs, transform=chip.transform, descriptions=names)
    shape = " x ".join(map(str, chip.pixels.shape))
    print(f"{path}: {shape} at {chip.lat:.4f}, {chip.lon:.4f}, {chip.crs}, {chip.when:%Y-%m-%d %H:%M}")
    return 0


def pair(run: str = "papermill_runs/demo") -> int:
    """Write the .ipynb beside each script, with the outputs of a finished run.

    Args:
        run: the folder that holds the executed notebooks
    """
    from clay_lib.runs.gallery import pair_notebooks

    for path in pair_notebooks(Path(run)):
        print(f"{path.name}  {path.stat().st_size / 1000:.0f} kB")
    return 0


def _spelt(command, options: list[str]) -> list[str]:
    """What jsonargparse takes: `--dry_run` for `--dry-run`, `--check true` for `--check` alone, a name for each value
    that comes first and has a default, and `--like=-3.4,34.1` for `--like -3.4,34.1`, which is no option."""
    given = list(inspect.signature(command).parameters.values())
    leading = [*takewhile(_is_value, options)]
    places = [p for p in given if p.kind is p.POSITIONAL_OR_KEYWORD]
    named = [v if p.default is p.empty else f"--{p.name}={v}" for p, v in zip(places, leading, strict=False)]
    options = [*named, *leading[len(named) :], *options[len(leading) :]]
    flags = {f"--{p.name}" for p in given if p.annotation in (bool, "bool")}
    if any(p.kind is p.VAR_KEYWORD for p in given):  # options of another function, which jsonargparse finds
        flags |= {f"--{name}" for name, value in _defaults(command).items() if isinstance(value, bool)}
    filled: list[str] = []
    for option, after in pairwise([*options, "--"]):
        name, *value = option.split("=", 1)
        name = f"--{name[2:].replace('-', '_')}" if name.startswith("--") else name
        if option.startswith("-") and _is_value(option) and filled and re.fullmatch(r"--\w+", filled[-1]):
            filled[-1] += f"={option}"
            continue
        filled.append("=".join([name, *value]))
        filled += ["true"] if option != "--" and name in flags and not value and after.startswith("--") else []
    return filled


def _is_value(text: str) -> bool:
    """Whether it is no option: south and west begin with a minus."""
    return not text.startswith("-") or re.match(r"-[\d.]", text) is not None


def _command(name: str):
    module, function = COMMANDS[name][0].split(":")
    own = module == "clay_lib.__main__"  # which is not to be imported twice under `python -m`
    return globals()[function] if own else getattr(importlib.import_module(module), function)


def _call(name: str, options: list[str]) -> int | None:
    from argparse import ArgumentError

    from jsonargparse import auto_cli

    command = _command(name)
    try:
        return auto_cli(
            command,
            args=_spelt(command, options),
            prog=f"clay {name}",
            epilog=next((line.strip() for line in command.__doc__.splitlines() if "Example: " in line), None),
            exit_on_error=False,
            allow_abbrev=False,
        )
    except ArgumentError as error:
        raise ContractError(
            f"clay {name}",
            " ".join(options) or "no options",
            _nearest(command, str(error)) or f"what `clay {name} --help` tells",
            " ".join(str(error).split()),
        ) from None


def _nearest(command, message: str) -> str | None:
    """The option that an unknown one, named in jsonargparse's message, was probably meant to be."""
    if not re.search("not accept|unrecognized", message):
        return None
    words = re.findall(r"'([\w.]+)'|--([\w.]+)", message)
    wrong = ".".join(a or b for a, b in words[-2 if "Group" in message else -1 :])
    near = difflib.get_close_matches(wrong, [*_defaults(command)], 1)
    return f"perhaps {near[0]}" if near else None


def _defaults(command) -> dict[str, Any]:
    """{option: its default} of a command."""
    from jsonargparse import auto_cli, capture_parser

    return dict(capture_parser(lambda: auto_cli(command, args=[])).get_defaults().items())


def main(argv: list[str] | None = None) -> int:
    """0: done. 1: a notebook failed. 2: wrong input, told in one line on stderr."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        lines = "".join(f"  {name:<12}{what}\n" for name, (_, what) in COMMANDS.items())
        print(f"usage: clay COMMAND [options]\n\n{lines}\nclay COMMAND --help tells its options.")
        return 0
    located = warnings.formatwarning
    warnings.formatwarning = lambda message, *_: f"clay: warning: {message}\n"  # the line is no line of the caller's
    try:
        if argv[0] in RENAMED:
            raise ContractError("command", argv[0], f"clay {RENAMED[argv[0]]}", "one command prints all timings now")
        if argv[0] not in COMMANDS:
            raise ContractError("command", argv[0], f"one of {list(COMMANDS)}", "a misspelt name")
        return _call(argv[0], argv[1:]) or 0
    except ContractError as error:
        print(f"clay: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("clay: interrupted; what was done is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as head, had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"clay: {error}", file=sys.stderr)
        return 2
    finally:
        warnings.formatwarning = located


if __name__ == "__main__":
    sys.exit(main())
