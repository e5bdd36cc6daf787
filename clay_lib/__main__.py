"""The command line: `clay COMMAND` or `python -m clay_lib COMMAND`. Options come from the typed functions.

A new command is one line in COMMANDS and a typed function with a docstring; its module is imported only when asked for.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

from clay_lib.contract import ContractError

COMMANDS = {  # name: (module:function, what it does)
    "run": ("clay_lib.__main__:run", "run the notebooks with a profile's values and write the gallery"),
    "pair": ("clay_lib.__main__:pair", "give notebooks/*.ipynb the outputs of the last demo run"),
}


def run(
    profile: str = "demo", *, only: str = "", scene: str = "", sensor: str = "", overrides: dict[str, Any] | None = None
) -> int:
    """Run the notebooks headless; results and index.html land in papermill_runs/PROFILE.

    Args:
        profile: a name in papermill_runs/profiles, or a path to a YAML file
        only: notebooks by number or name, separated by commas, such as 01,04
        scene: a GeoTIFF of your own: only the notebooks that take one are run on it
        sensor: the sensor that took the scene, such as sentinel-2-l2a
        overrides: further parameters for every notebook that has them
    """
    from clay_lib import sweep

    names = [name for name in only.split(",") if name] or None
    overrides = dict(overrides or {})
    if scene or sensor:
        overrides |= _own_scene(scene, sensor)
        names = names or sweep.scene_walk(profile)
    results = sweep.run_profile(profile, notebooks=names, overrides=overrides)
    return 0 if all(result.ok for result in results) else 1


def _own_scene(scene: str, sensor: str) -> dict[str, str]:
    from clay_lib.sensors import SENSORS

    path = Path(scene).expanduser().resolve()
    if not scene or not path.is_file():
        raise ContractError(
            "scene",
            found=scene or "none",
            expected="a GeoTIFF file",
            cause="a misspelt path" if scene else "a sensor was named without a scene",
        )
    if not sensor:
        raise ContractError(
            "sensor", found="none", expected=f"one of {list(SENSORS)}", cause="a scene was named without its sensor"
        )
    return {"scene": str(path), "sensor": SENSORS[sensor].name}


def pair(run: str = "papermill_runs/demo") -> int:
    """Write the .ipynb beside each script, with the outputs of a finished run.

    Args:
        run: the folder that holds the executed notebooks
    """
    from clay_lib import gallery

    for path in gallery.pair_notebooks(Path(run)):
        print(f"{path.name}  {path.stat().st_size / 1000:.0f} kB")
    return 0


def main(argv: list[str] | None = None) -> int:
    """0: done. 1: a notebook failed. 2: wrong input, told in one line on stderr."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        lines = "".join(f"  {name:<10}{what}\n" for name, (_, what) in COMMANDS.items())
        print(f"usage: clay COMMAND [options]\n\n{lines}\nclay COMMAND --help tells its options.")
        return 0
    try:
        if argv[0] not in COMMANDS:
            raise ContractError("command", found=argv[0], expected=f"one of {list(COMMANDS)}", cause="a misspelt name")
        from jsonargparse import auto_cli

        module, function = COMMANDS[argv[0]][0].split(":")
        command = (
            globals().get(function)
            if module == "clay_lib.__main__"
            else getattr(importlib.import_module(module), function)
        )
        return auto_cli(command, args=argv[1:], prog=f"clay {argv[0]}", as_positional=False) or 0
    except ContractError as error:
        print(f"clay: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("clay: interrupted; what was done is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as head, had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
