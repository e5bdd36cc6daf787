"""Profiles: all notebooks in order, headless, with parameter values that are checked before a kernel starts.

papermill only warns of an unknown parameter and never checks types.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import field, replace
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from clay_lib.errors import ContractError
from clay_lib.files import find_weights, read_json, read_yaml, yaml_format
from clay_lib.runs.gallery import write_gallery
from clay_lib.runs.notebooks import NOTEBOOKS, RUNS, RunResult, list_notebooks, read_script, run_notebook
from clay_lib.sensors import SENSORS

T = TypeVar("T")
STRICT = ConfigDict(extra="forbid")
Natural = Annotated[int, Field(strict=True, ge=0)]
Positive = Annotated[int, Field(strict=True, gt=0)]
Duration = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, config=STRICT)
class Profile:
    """Parameter values for a headless run, from papermill_runs/profiles/NAME.yaml."""

    threads: Positive | None = None  # of torch and BLAS; None: all cores
    minutes: dict[str, Duration] = field(default_factory=dict)  # notebook: expected duration
    common: dict[str, Any] = field(default_factory=dict)  # for every notebook that has the parameter
    notebooks: dict[str, dict[str, Any]] = field(default_factory=dict)  # for one notebook
    name: str = ""

    def values(self, notebook: str, annotations: Mapping[str, object]) -> dict[str, object]:
        """The values for one notebook. annotations: its parameters by name."""
        common = {name: value for name, value in self.common.items() if name in annotations}
        return common | self.notebooks.get(notebook, {})


# ---- parameters of notebooks


def read_parameters(notebook) -> dict[str, ast.expr]:
    """Name -> annotation, as a syntax tree, of each literal in the cell tagged `parameters`."""
    return {name: annotation for name, (annotation, _) in _literals(notebook).items()}


def read_defaults(notebook) -> dict[str, object]:
    """Name -> value of each literal in the cell tagged `parameters`."""
    return {name: default for name, (_, default) in _literals(notebook).items()}


def check_parameters(annotations: Mapping[str, ast.expr], values: Mapping[str, object], where: str) -> None:
    """Refuse names that the notebook does not have and values that are not of its types."""
    for name, value in values.items():
        if name not in annotations:
            cause = "a misspelled name, or one meant for another notebook"
            expected = f"one of {sorted(annotations)}"
            raise ContractError(f"parameter {name!r}", f"no such parameter in {where}", expected, cause)
        try:
            convert(value, annotations[name])
        except TypeError:
            cause = "text in a number" if isinstance(value, str) else "a value meant for another parameter"
            cause = "a number that is not finite" if isinstance(value, float) and not math.isfinite(value) else cause
            found, expected = f"{value!r} ({type(value).__name__})", ast.unparse(annotations[name])
            raise ContractError(f"parameter {name!r} of {where}", found, expected, cause) from None


def convert(value: object, annotation: ast.expr) -> object:
    """The value in its canonical form: an int for a float becomes a float, a tuple a list.

    TypeError if it is not of the annotated type. Annotations that are not listed here accept every value.
    """
    match annotation:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            try:
                return convert(value, left)
            except TypeError:
                return convert(value, right)
        case ast.Subscript(value=ast.Name(id="list" | "tuple"), slice=item):
            item = item.elts[0] if isinstance(item, ast.Tuple) else item
            _require(isinstance(value, (list, tuple)))  # YAML knows only lists
            return [convert(v, item) for v in value]
        case ast.Subscript(value=outer):
            return convert(value, outer)
        case ast.Name(id="int"):
            _require(isinstance(value, int) and not isinstance(value, bool))
        case ast.Name(id="float"):
            _require(isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value))
            return float(value)
        case ast.Name(id="str" | "bool" | "dict" as name):
            _require(type(value).__name__ == name)
        case ast.Name(id="list" | "tuple"):
            _require(isinstance(value, (list, tuple)))
        case ast.Constant(value=None) | ast.Name(id="NoneType"):
            _require(value is None)
    return list(value) if isinstance(value, tuple) else value


def _require(fits: bool) -> None:
    if not fits:
        raise TypeError


def _literals(notebook) -> dict[str, tuple[ast.expr, object]]:
    source = next((cell.source for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])), None)
    if source is None:
        cause = 'the tag is missing: # %% tags=["parameters"]'
        raise ContractError("parameters", "no cell tagged `parameters`", "one such cell", cause)
    literals = {}
    for line in ast.parse(source).body:
        target = getattr(line, "target", None) or getattr(line, "targets", [None])[0]
        try:
            default = ast.literal_eval(line.value)
            annotation = getattr(line, "annotation", None) or ast.parse(type(default).__name__, mode="eval").body
            literals[target.id] = (annotation, default)
        except (AttributeError, ValueError, TypeError):
            cause = "a derived value belongs in a later cell"
            raise ContractError("parameters", ast.unparse(line), "name: type = literal", cause) from None
    return literals


# ---- YAML files


class Mistakes:
    """What is wrong with a file, collected and raised as one ContractError with line numbers.

    where: how messages name the file. content: its values; places: the same as ruamel.yaml reads them with their lines.
    """

    def __init__(self, where: str, content: object = None, places: object = None):
        self.where, self.content, self.places = where, content, places
        self.errors: list[tuple[int, ContractError]] = []  # line, 0: of none

    @classmethod
    def of_file(cls, path: Path, where: str) -> Mistakes:
        """For the YAML file at `path`; ContractError if it cannot be read, or has a key twice."""
        return cls(where, read_yaml(path, where), yaml_format(kind="rt").load(path.read_text(encoding="utf-8")))

    def add(self, path: Sequence, field: str, found: object, expected: object, cause: str) -> None:
        """path: the keys and numbers that lead to the place in the file."""
        line = _line(self.places, path)
        where = f"{self.where}, line {line}" if line else self.where
        self.errors.append((line or 0, ContractError(f"{where}: {field}", found, expected, cause)))

    @contextmanager
    def at(self, *path, fatal: bool = False) -> Iterator[None]:
        """Collect a ContractError that is raised in this block; fatal: nothing can be checked after it."""
        try:
            yield
        except ContractError as error:
            self.add(path, error.field, error.found, error.expected, error.cause)
            if fatal:
                self.check()

    def check(self) -> None:
        """Raise what was collected."""
        if len(self.errors) == 1:
            raise self.errors[0][1]
        if self.errors:
            texts = [str(error).removeprefix(self.where) for _, error in sorted(self.errors, key=itemgetter(0))]
            lines = "".join(f"\n  {text.lstrip(', :')}" for text in texts)
            raise ContractError(self.where, f"{len(self.errors)} mistakes", "none", f"each in its line{lines}")


def _line(places, path: Sequence) -> int | None:
    """The line of the innermost key or item of a path that the file has."""
    line = None
    with suppress(AttributeError, LookupError, TypeError):  # merged from an anchor, or missing
        for step in path:
            line, places = places.lc.data[step][0] + 1, places[step]
    return line


def parse_config(kind: type[T], mistakes: Mistakes, **instead) -> T:
    """A dataclass from a file's mapping, checked by pydantic. Mistakes are collected, and what is wrong left out, so
    that the rest can be checked too; instead: values of required keys that are wrong."""
    names, content = [name for name in kind.__dataclass_fields__ if name != "name"], mistakes.content
    if not isinstance(content, Mapping):
        mistakes.add((), "keys", content, f"some of {names}", "an empty file, or a list")
        mistakes.check()
    content = {key: value for key, value in content.items() if value is not None}
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        for wrong in error.errors():
            path, found, expected = wrong["loc"], repr(wrong["input"]), wrong["msg"].removeprefix("Input should be ")
            cause = "a wrong indent or dash, or a text in place of a number"
            if wrong["type"] == "unexpected_keyword_argument":
                found, cause = "no such key", "a misspelled key"
                expected = f"one of {names}" if len(path) == 1 else "a key as in papermill_runs/README.md"
            elif wrong["type"] == "missing":
                found, expected, cause = "nothing", "this key", "a missing key, or one that is misspelled"
            mistakes.add(path, ": ".join(map(str, path)), found, expected, cause)
        wrong = {wrong["loc"][0] for wrong in error.errors()}
        try:
            right = {key: value for key, value in content.items() if key not in wrong}
            return TypeAdapter(kind).validate_python(instead | right)
        except ValidationError:  # a required key is missing
            mistakes.check()
            raise


def read_profile(profile: str | Path) -> Profile:
    """A profile by name, papermill_runs/profiles/NAME.yaml, or by path."""
    path = Path(profile) if str(profile).endswith((".yaml", ".yml")) else RUNS / "profiles" / f"{profile}.yaml"
    if not path.is_file():
        names = sorted(p.stem for p in (RUNS / "profiles").glob("*.yaml"))
        raise ContractError("profile", profile, f"one of {names} or a path to a .yaml file", "a misspelled name")
    mistakes = Mistakes.of_file(path, f"profile {path.name}")
    mistakes.content = mistakes.content or {}
    values = parse_config(Profile, mistakes)
    mistakes.check()
    return replace(values, name=path.stem)


def run_profile(
    profile: str | Path,
    *,
    notebooks: Sequence[str] | None = None,
    overrides: Mapping[str, object] | None = None,
    out: Path | None = None,
    folder: Path = NOTEBOOKS,
    timeout: float | None = None,
) -> list[RunResult]:
    """Run notebooks in order with a profile's values, print a line for each, and write the gallery.

    notebooks: their names or the beginnings of them ("04"); None: all. overrides: values for every notebook that
    has such a parameter (at least one must). Everything is checked before the first one starts. A failure does not
    stop the others.
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
    page = write_gallery(out, title=profile.name)
    failed, minutes = [r.name for r in results if not r.ok], sum(r.seconds for r in results) / 60
    count, peak = f"{len(results) - len(failed)} of {len(results)}", max(r.peak_mb for r in results)
    print(f"{count} notebooks done in {minutes:.1f} min, peak {peak:.0f} MB. Open {page}")
    if failed:
        print(f"FAILED: {', '.join(failed)}")
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
