"""Profiles: all notebooks in order, headless, with the parameter values for such a run."""

from __future__ import annotations

import re
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveInt, register_type

from clay_lib.errors import ContractError
from clay_lib.files import find_weights, read_json
from clay_lib.runs.gallery import write_gallery
from clay_lib.runs.notebooks import NOTEBOOKS, RUNS, RunResult, list_notebooks, read_script, run_notebook
from clay_lib.runs.parameters import check_parameters, read_parameters
from clay_lib.sensors import SENSORS

T = TypeVar("T")


class Value:
    """Any value, as it stands in the file: jsonargparse would read the text "3" as a number for typing.Any."""


register_type(Value, lambda v: v, lambda v: v, type_check=lambda value, kind: True, fail_already_registered=False)


@dataclass(frozen=True)
class Profile:
    """Parameter values for a headless run, from papermill_runs/profiles/NAME.yaml."""

    threads: PositiveInt | None = None  # of torch and BLAS; None: all cores
    minutes: dict[str, float] = field(default_factory=dict)  # notebook: expected duration
    common: dict[str, Value] = field(default_factory=dict)  # for every notebook that has the parameter
    notebooks: dict[str, dict[str, Value]] = field(default_factory=dict)  # for one notebook
    name: str = ""

    def values(self, notebook: str, annotations: Mapping[str, object]) -> dict[str, object]:
        """The values for one notebook. annotations: its parameters by name."""
        common = {name: value for name, value in self.common.items() if name in annotations}
        return common | self.notebooks.get(notebook, {})


class _Yaml(yaml.SafeLoader):
    """YAML 1.2: `1e-3` is a number, `010` ten, `no` and dates are text. Repeated keys and numbers that are not finite
    are refused; YAML itself would keep the last of two keys."""

    yaml_implicit_resolvers = {}  # those of YAML 1.1 go; CORE follows

    def compose_mapping_node(self, anchor):
        node, keys = super().compose_mapping_node(anchor), set()
        for key, _ in node.value:
            if (key.tag, str(key.value)) in keys:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} a second time", problem_mark=key.start_mark)
            keys.add((key.tag, str(key.value)))
        return node

    def construct_number(self, node):
        try:
            return int(node.value, 0 if node.value[:2] in ("0o", "0x") else 10)
        except ValueError:
            if node.value.lower().lstrip("+-") in (".inf", ".nan"):
                raise yaml.MarkedYAMLError(
                    problem="a number that is not finite", problem_mark=node.start_mark
                ) from None
            return float(node.value)


CORE = {  # of YAML 1.2: the pattern of a tag's values, and their first characters
    "null": (r"(~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    "merge": (r"<<$", ["<"]),
    "bool": (r"(true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    "float": (
        r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|0o[0-7]+|0x[0-9a-fA-F]+|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$",
        list("-+.0123456789"),
    ),
}
for _tag, (_pattern, _first) in CORE.items():
    _Yaml.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)
_Yaml.add_constructor("tag:yaml.org,2002:float", _Yaml.construct_number)


def read_mapping(path: Path, where: str) -> object:
    """A YAML file's content. ContractError, whose message begins with `where`, for bad YAML and repeated keys."""
    try:
        with open(path, encoding="utf-8") as file:
            return yaml.load(file, _Yaml)  # a safe loader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        cause = "a wrong indent, a missing quote, or a repeated key"
        raise ContractError(where, " ".join(str(error).split()), "keys with values, in YAML", cause) from None


def parse_config(kind: type[T], content: object, where: str) -> T:
    """A dataclass from a mapping, checked by jsonargparse. where: the beginning of an error's message."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind)
    keys = [name for name in kind.__dataclass_fields__ if name != "name"]
    if not isinstance(content, Mapping) or set(content) - set(keys):
        found = sorted(set(content) - set(keys), key=str) if isinstance(content, Mapping) else content
        raise ContractError(f"{where}: keys", found, f"some of {keys}", "an empty file, or a misspelled key")
    try:
        config = parser.parse_object({key: value for key, value in content.items() if value is not None})
    except ArgumentError as error:
        cause = "a missing key, a wrong indent or dash, or a text in place of a number"
        raise ContractError(where, _reason(error), "the keys and types of papermill_runs/README.md", cause) from None
    return kind(**vars(parser.instantiate(config)))


def _reason(error: Exception) -> str:
    """jsonargparse's message in one line, without its class paths and the types that a Union tried in vain."""
    text = re.sub(r"Problem with given class_path '[^']*': |Parser key |typing\.", "", " ".join(str(error).split()))
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    key, _, tried = text.partition(": Does not validate against any of the Union subtypes")
    if not tried:
        return text
    reasons, _, rest = tried.partition(" Given value type: ")
    reasons = [reason for reason in reasons.split(" - ")[1:] if "NoneType" not in reason]
    value = rest.partition("Given value: ")[2]
    return f"{key}: {'; '.join(reasons)}" + ("" if value.startswith("Namespace") else f", given {value}")


def read_profile(profile: str | Path) -> Profile:
    """A profile by name, papermill_runs/profiles/NAME.yaml, or by path."""
    path = Path(profile) if str(profile).endswith((".yaml", ".yml")) else RUNS / "profiles" / f"{profile}.yaml"
    if not path.is_file():
        names = sorted(p.stem for p in (RUNS / "profiles").glob("*.yaml"))
        raise ContractError("profile", profile, f"one of {names} or a path to a .yaml file", "a misspelled name")
    where = f"profile {path.name}"
    return replace(parse_config(Profile, read_mapping(path, where) or {}, where), name=path.stem)


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
    """Run notebooks in order with a profile's values, print a line for each, and write the gallery.

    notebooks: their names or the beginnings of them ("04"); None: all. overrides: values for every notebook that
    has such a parameter (at least one must). Everything is checked before the first one starts. Stops at the
    first failure unless keep_going; completed runs are kept either way.
    """
    profile, overrides = read_profile(profile), overrides or {}
    out = Path(out or RUNS / profile.name)
    scripts = choose_notebooks(notebooks, folder)
    annotations = {script.stem: read_parameters(read_script(script)) for script in list_notebooks(folder)}
    for name in {*profile.notebooks, *profile.minutes} - set(annotations):
        expected = f"one of {sorted(annotations)}"
        raise ContractError(f"profile {profile.name!r}", name, expected, "a misspelled or renamed notebook")
    for name in overrides:
        if not any(name in annotations[script.stem] for script in scripts):
            check_parameters(annotations[scripts[0].stem], {name: None}, " or ".join(s.stem for s in scripts))
    values = {}
    for script in scripts:
        own = annotations[script.stem]
        changed = {name: value for name, value in overrides.items() if name in own}
        values[script] = profile.values(script.stem, own) | changed
        check_parameters(own, values[script], script.stem)

    print(_expected_minutes(profile, scripts, out), flush=True)
    results = []
    for script in scripts:
        result = run_notebook(script, out, values[script], timeout=timeout, threads=profile.threads)
        results.append(result)
        state = "ok" if result.ok else "FAILED"
        print(f"{result.name:<28} {state:<7}{result.seconds:7.1f} s {result.peak_mb:7.0f} MB", flush=True)
        if not result.ok:
            print(f"  in {result.failed_cell or 'no cell'}\n  {result.error}\n  see {result.notebook}", flush=True)
            if not keep_going:
                break
    page = write_gallery(out, title=profile.name)
    done, minutes = sum(r.ok for r in results), sum(r.seconds for r in results) / 60
    peak = max(r.peak_mb for r in results)
    print(f"{done} of {len(scripts)} notebooks done in {minutes:.1f} min, peak {peak:.0f} MB. Open {page}")
    return results


def choose_notebooks(names: Sequence[str] | None, folder: Path = NOTEBOOKS) -> list[Path]:
    """The scripts whose name begins with one of the given names, in order; None: all."""
    scripts = list_notebooks(folder)
    for name in names or []:
        if not any(s.stem.startswith(name) for s in scripts):
            raise ContractError("notebook", name, f"one of {[s.stem for s in scripts]}", "a misspelled name")
    chosen = [s for s in scripts if names is None or s.stem.startswith(tuple(names))]
    if not chosen:
        cause = "the wrong folder, or the package is installed without its repository"
        raise ContractError("notebooks", f"none in {folder}", "scripts named NN_verb_object.py", cause)
    return chosen


def notebooks_for_scene(profile: str | Path, folder: Path = NOTEBOOKS) -> list[str]:
    """The notebooks that take a reader's own scene, after the training one if the profile's weights are missing."""
    weights = find_weights(read_profile(profile).common.get("weights", "clay-mini.safetensors"))
    scripts = list_notebooks(folder)
    takes = [s.stem for s in scripts if {"scene", "sensor"} <= set(read_parameters(read_script(s)))]
    if not takes:
        found = f"no notebook in {folder} that takes one"
        raise ContractError("scene", found, "parameters scene and sensor", "the wrong folder")
    return [s.stem for s in scripts if "_train_" in s.stem and not weights.is_file()] + takes


def _expected_minutes(profile: Profile, scripts: Sequence[Path], out: Path) -> str:
    """The duration as measured by the last run, else as the profile states it."""
    minutes = []
    for script in scripts:
        last = read_json(out / script.stem / "run.json")
        minutes.append(last["seconds"] / 60 if last.get("ok") else profile.minutes.get(script.stem))
    known = [m for m in minutes if m is not None]
    unknown = f" and {len(minutes) - len(known)} not yet measured" if len(known) < len(minutes) else ""
    duration = f"about {sum(known):.1f} min{unknown}" if known else "duration not yet measured"
    return f"profile {profile.name}: {len(scripts)} notebooks, {duration}"


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
    names = [name for name in only.split(",") if name] or None
    overrides, out = dict(overrides or {}), None
    if scene or sensor:
        overrides |= _own_scene(scene, sensor)
        names = names or notebooks_for_scene(profile)
        out = RUNS / f"{read_profile(profile).name}-scene"  # other results stay
    results = run_profile(profile, notebooks=names, overrides=overrides, out=out)
    return 0 if all(result.ok for result in results) else 1


def _own_scene(scene: str, sensor: str) -> dict[str, str]:
    path = Path(scene).expanduser().resolve()
    if not scene or not path.exists():
        cause = "a misspelled path" if scene else "a sensor was named without a scene"
        raise ContractError("scene", scene or "none", "a GeoTIFF file, or a folder of single-band files", cause)
    if not sensor:
        raise ContractError("sensor", "none", f"one of {list(SENSORS)}", "a scene was named without its sensor")
    return {"scene": str(path), "sensor": SENSORS[sensor].name}
