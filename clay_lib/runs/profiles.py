"""One notebook, headless: the only way that demo, tests and sweeps run one.

The percent script is the source, so outputs kept beside it can never be stale. A run leaves in its folder
    NN_name.ipynb        the executed notebook, saved after every cell
    NN_name/             the notebook's own `out`: metrics.json and pictures
    NN_name/run.json     what happened, as a RunResult, and with which code on which machine; written last and whole
    NN_name/log.txt      everything it printed, line by line, so that a dead run can be read
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from clay_lib.checkpoint import find_weights
from clay_lib.errors import ContractError
from clay_lib.files import read_json, read_yaml
from clay_lib.runs import gallery
from clay_lib.runs.notebooks import (
    NOTEBOOKS,
    RUNS,
    RunResult,
    check_parameters,
    list_notebooks,
    read_parameters,
    read_script,
    run_notebook,
)


def read_profile(profile: str | Path) -> dict:
    """A profile by name (papermill_runs/profiles/NAME.yaml) or path: {threads, minutes, common, notebooks}."""
    path = Path(profile) if str(profile).endswith((".yaml", ".yml")) else RUNS / "profiles" / f"{profile}.yaml"
    if not path.is_file():
        names = sorted(p.stem for p in (RUNS / "profiles").glob("*.yaml"))
        raise ContractError("profile", str(profile), f"one of {names} or a path to a .yaml file", "a misspelt name")
    try:
        told = read_yaml(path) or {}
        known = {key: told.pop(key, None) for key in ("threads", "minutes", "common", "notebooks")}
        if told or not all(
            isinstance(value, dict) for key, value in known.items() if value is not None and key != "threads"
        ):
            raise ValueError(f"keys {sorted(told)}" if told else "a text or a list where a mapping belongs")
    except (yaml.YAMLError, ValueError, AttributeError) as error:
        raise ContractError(
            "profile",
            f"{path.name}: {' '.join(str(error).split())}",
            "threads, minutes, common and notebooks",
            "a misspelt key or a wrong indent",
        ) from None
    return {key: value if key == "threads" else value or {} for key, value in known.items()} | {"name": path.stem}


def run_profile(
    profile: str | Path,
    *,
    notebooks: Sequence[str] | None = None,
    overrides: Mapping[str, object] | None = None,
    out: Path | None = None,
    folder: Path = NOTEBOOKS,
    timeout: float | None = None,
    keep_going: bool = False,
) -> list[RunResult]:
    """Run notebooks in walk order with a profile's values, print a line for each, and write the gallery.

    notebooks: their names or the beginnings of them ("04"); None: all. overrides: values for every notebook that
    has such a parameter (at least one must). Everything is checked before the first one starts. Stops at the
    first failure unless keep_going; what was done is kept either way.
    """
    told = read_profile(profile)
    out = Path(out or RUNS / told["name"])
    scripts = choose(notebooks, folder)
    kinds = {script.stem: read_parameters(read_script(script)) for script in list_notebooks(folder)}
    for field in ("notebooks", "minutes"):
        for name in set(told[field]) - set(kinds):
            raise ContractError(
                f"profile {told['name']!r}: {field}", name, f"one of {sorted(kinds)}", "a misspelt or renamed notebook"
            )
    for name in overrides or {}:
        if not any(name in kinds[script.stem] for script in scripts):
            check_parameters(kinds[scripts[0].stem], {name: None}, " or ".join(s.stem for s in scripts))
    plan = {}
    for script in scripts:
        own = kinds[script.stem]
        shared = {k: v for k, v in {**told["common"]}.items() if k in own}
        plan[script] = {
            **shared,
            **told["notebooks"].get(script.stem, {}),
            **{k: v for k, v in (overrides or {}).items() if k in own},
        }
        check_parameters(own, plan[script], script.stem)

    print(_forecast(told, scripts, out), flush=True)
    results = []
    for script, values in plan.items():
        result = run_notebook(script, out, values, timeout=timeout, threads=told["threads"])
        results.append(result)
        print(
            f"{result.name:<28} {'ok' if result.ok else 'FAILED':<7}{result.seconds:7.1f} s {result.peak_mb:7.0f} MB",
            flush=True,
        )
        if not result.ok:
            print(f"  in {result.failed_cell or 'no cell'}\n  {result.error}\n  see {result.notebook}", flush=True)
            if not keep_going:
                break
    page = gallery.write_gallery(out, title=told["name"])
    print(
        f"{sum(r.ok for r in results)} of {len(plan)} notebooks done in {sum(r.seconds for r in results) / 60:.1f} min, peak {max(r.peak_mb for r in results):.0f} MB. Open {page}"
    )
    return results


def choose(names: Sequence[str] | None, folder: Path = NOTEBOOKS) -> list[Path]:
    """The scripts whose name begins with one of the given names, in walk order; None: all."""
    scripts = list_notebooks(folder)
    for name in names or []:
        if not any(s.stem.startswith(name) for s in scripts):
            raise ContractError("notebook", name, f"one of {[s.stem for s in scripts]}", "a misspelt name")
    chosen = [s for s in scripts if names is None or s.stem.startswith(tuple(names))]
    if not chosen:
        raise ContractError(
            "notebooks",
            f"none in {folder}",
            "scripts named NN_verb_object.py",
            "the wrong folder, or the package is installed without its repository",
        )
    return chosen


def scene_walk(profile: str | Path, folder: Path = NOTEBOOKS) -> list[str]:
    """The notebooks that take a scene of one's own, and before them the training if the profile's weights are missing."""
    weights = find_weights(read_profile(profile)["common"].get("weights", "clay-mini.safetensors"))
    scripts = list_notebooks(folder)
    takes = [s.stem for s in scripts if {"scene", "sensor"} <= set(read_parameters(read_script(s)))]
    if not takes:
        raise ContractError(
            "scene", f"no notebook in {folder} that takes one", "parameters scene and sensor", "the wrong folder"
        )
    return [s.stem for s in scripts if "_train_" in s.stem and not weights.is_file()] + takes


def _forecast(told: dict, scripts: Sequence[Path], out: Path) -> str:
    """How long it will take: measured by the last run where there is one, else stated in the profile."""
    minutes = []
    for script in scripts:
        last = read_json(out / script.stem / "run.json")
        minutes.append(last["seconds"] / 60 if last.get("ok") else told["minutes"].get(script.stem))
    known = [m for m in minutes if m is not None]
    about = f"about {sum(known):.1f} min" + (
        f" and {len(minutes) - len(known)} not yet measured" if len(known) < len(minutes) else ""
    )
    return f"profile {told['name']}: {len(scripts)} notebooks, {about if known else 'duration not yet measured'}"
