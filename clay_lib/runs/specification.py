"""Sweep specifications: YAML files, checked and expanded into runs. papermill_runs/README.md describes the format."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt

from clay_lib.errors import ContractError
from clay_lib.runs.notebooks import NOTEBOOKS, RUNS, list_notebooks, read_script
from clay_lib.runs.parameters import check_parameters, convert, declared_metrics, read_defaults, read_parameters
from clay_lib.runs.profiles import Value, parse_config, read_mapping, read_profile

Settings = list[dict[str, Value]]
Seeds = NonNegativeInt | list[Value] | dict[str, list[Value]]


@dataclass(frozen=True)
class Budget:
    """Limits: runs in all, and minutes after which one start begins no further run."""

    runs: PositiveInt | None = None
    minutes: PositiveFloat | None = None


@dataclass(frozen=True)
class RandomSearch:
    """Random draws: how many, and for each parameter a list or {log|uniform|whole: [LOW, HIGH]}."""

    draws: PositiveInt
    over: dict[str, Value]
    seed: NonNegativeInt = 0


@dataclass(frozen=True)
class Specification:
    """The keys of a sweep's file."""

    notebook: str
    metrics: dict[str, Literal["min", "max"]]  # the first one ranks
    profile: str | None = None  # values to start from
    fixed: dict[str, Value] = field(default_factory=dict)
    grid: dict[str, list[Value]] = field(default_factory=dict)
    list: Settings = field(default_factory=list)
    random: RandomSearch | None = None
    seeds: Seeds | None = None
    budget: Budget = Budget()
    timeout: PositiveFloat | None = None  # seconds a run
    threads: PositiveInt | None = None  # of a kernel


@dataclass(frozen=True)
class Run:
    """One point of a sweep. key: the hash of the notebook's code and all parameters, and its folder's name."""

    key: str
    settings: dict  # what the specification varies, including the seed
    parameters: dict  # all of the notebook's but `out`


@dataclass(frozen=True)
class Sweep:
    """A checked specification. runs: all settings with the first seed, then with the second, so that a partial sweep
    covers all settings."""

    name: str
    script: Path
    source: str  # the script's text: this is what runs, even if the file changes meanwhile
    runs: tuple[Run, ...]
    over_budget: int  # runs left out by the budget
    seed: str | None  # the parameter that takes the seeds
    metrics: dict[str, str]  # name: "min" or "max"; the first one ranks
    minutes: float | None  # budget of one start
    timeout: float | None  # seconds a run
    threads: int | None  # of a kernel; None: the cores, shared among the workers
    expected_minutes: float | None  # of a run, as the profile states it
    specification: dict  # as written

    @property
    def varied(self) -> list[str]:
        """The parameters that differ between runs, without the seed."""
        names = dict.fromkeys(name for run in self.runs for name in run.settings if name != self.seed)
        return [n for n in names if len({json.dumps(run.parameters[n], sort_keys=True) for run in self.runs}) > 1]


def read_sweep(path: str | Path) -> Sweep:
    """The sweep that a YAML file describes; ContractError for anything that is wrong with it."""
    path = Path(path)
    if not path.is_file():
        examples = sorted(p.stem for p in (RUNS / "sweeps").glob("*.yaml"))
        raise ContractError("sweep", path, f"a YAML file, such as those of {examples}", "a misspelled path")
    return make_sweep(read_mapping(path, f"sweep {path.stem!r}"), name=path.stem, folder=path.parent)


def make_sweep(content: Mapping, *, name: str, folder: Path = NOTEBOOKS) -> Sweep:
    """The same from a mapping, as a notebook may hold it. folder: where a relative path to the notebook begins."""
    profiles = {p.stem for p in (RUNS / "profiles").glob("*.yaml")}
    if not re.fullmatch(r"[\w][\w.-]*", name) or name in profiles | {"profiles", "sweeps", "lab", "pretrain"}:
        expected = "letters, digits, - and _; no profile's name"
        raise ContractError("sweep's name", name, expected, "results go to papermill_runs/NAME")
    spec = parse_config(Specification, content, f"sweep {name!r}")
    script = find_notebook(spec.notebook, folder)
    notebook = read_script(script)
    annotations, defaults = read_parameters(notebook), read_defaults(notebook)
    if "out" not in annotations:
        found = f"{script.name} without parameter out"
        raise _invalid(name, "notebook", found, 'out: str = ""', "it writes to a fixed place")
    _check_metrics(spec.metrics, notebook, script, name)
    for key in ("grid", "list"):
        if key in content and not content[key]:
            raise _invalid(name, key, "nothing", "values", f"an empty {key}")
    profile = read_profile(spec.profile) if spec.profile else None
    base = profile.values(script.stem, annotations) if profile else {}
    base = {k: v for k, v in base.items() if k != "out"} | spec.fixed
    check_parameters(annotations, base, script.stem)

    seed, seeds = _seeds(spec.seeds, name)
    axes = [[{seed: value} for value in seeds]] if seed else []
    axes += [_grid(spec.grid, name)] if spec.grid else []
    axes += [spec.list] if spec.list else []
    axes += [draw(spec.random, name)] if spec.random else []
    _check_axes([*axes, [spec.fixed]], name)

    runs, code = [], code_of(notebook)
    for points in itertools.product(*axes):
        settings = {key: value for point in points for key, value in point.items()}
        check_parameters(annotations, settings, script.stem)
        values = {**defaults, **base, **settings}
        values = {k: convert(v, annotations[k]) for k, v in values.items() if k != "out"}
        runs.append(Run(key_of(code, values), {k: values[k] for k in settings}, values))
    _check_distinct(runs, name)
    within_budget = tuple(runs[: spec.budget.runs])
    return Sweep(
        name=name,
        script=script,
        source=script.read_text(encoding="utf-8"),
        runs=within_budget,
        over_budget=len(runs) - len(within_budget),
        seed=seed,
        metrics=spec.metrics,
        minutes=spec.budget.minutes,
        timeout=spec.timeout,
        threads=spec.threads,
        expected_minutes=profile.minutes.get(script.stem) if profile else None,
        specification=dict(content),
    )


def find_notebook(name: str, folder: Path) -> Path:
    """A percent script by its path, or one of the project's by name or number."""
    if name.endswith(".py"):
        return (folder / name).resolve()
    scripts = list_notebooks()
    matches = [script for script in scripts if script.stem.startswith(name)]
    if len(matches) != 1:
        found = f"{name}, which begins {[s.stem for s in matches]}" if matches else name
        expected = f"one of {[s.stem for s in scripts]} or a path to a percent script (.py)"
        raise ContractError("notebook", found, expected, "a misspelled name")
    return matches[0]


def code_of(notebook) -> list[str]:
    """The code cells, without the one that holds defaults: all that decides a run's outcome besides its parameters."""
    cells = (c for c in notebook.cells if c.cell_type == "code")
    return [c.source for c in cells if "parameters" not in c.metadata.get("tags", [])]


def key_of(code: Sequence[str], parameters: Mapping[str, object]) -> str:
    """16 hexadecimal digits of SHA-256 over code cells and resolved parameters."""
    content = json.dumps([list(code), parameters], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def draw(search: RandomSearch, name: str) -> list[dict]:
    """Random draws. Each parameter has its own stream, so more draws or parameters leave existing ones unchanged."""
    columns = {}
    for parameter, distribution in search.over.items():
        rng = np.random.default_rng([search.seed, zlib.crc32(str(parameter).encode())])
        columns[parameter] = [_sample(rng, distribution, parameter, name) for _ in range(search.draws)]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _sample(rng: np.random.Generator, distribution: object, parameter: str, name: str) -> object:
    match distribution:
        case [_, *_]:
            return distribution[rng.integers(len(distribution))]
        case {"uniform": [int() | float() as low, int() | float() as high]} if low < high:
            return float(f"{rng.uniform(low, high):.4g}")
        case {"log": [int() | float() as low, int() | float() as high]} if 0 < low < high:
            return float(f"{math.exp(rng.uniform(math.log(low), math.log(high))):.4g}")
        case {"whole": [int() as low, int() as high]} if low < high:
            return int(rng.integers(low, high + 1))
    expected = "a list to choose from, or {uniform: [LOW, HIGH]}, {log: [LOW, HIGH]} above 0, {whole: [LOW, HIGH]}"
    cause = "low above high, or text: YAML reads 1e-3 as text, write 1.0e-3"
    raise _invalid(name, f"random: {parameter}", distribution, expected, cause)


def _check_metrics(metrics: Mapping[str, str], notebook, script: Path, name: str) -> None:
    """Refuse a metric that the notebook's source does not declare, if it declares any."""
    if not metrics:
        raise _invalid(name, "metrics", metrics, "{loss: min, accuracy: max}", "a name without its direction")
    patterns = declared_metrics(notebook)
    for metric in metrics if patterns is not None else ():
        if not any(re.fullmatch(pattern, metric) for pattern in patterns):
            names = [re.sub(r"\\(.)", r"\1", p.removesuffix("( / .*)?")).replace(".*", "...") for p in patterns]
            found = f"none of that name in {script.stem}"
            cause = "a misspelled name, or one that the notebook no longer writes"
            raise _invalid(name, f"metric {metric!r}", found, f"one of {names}", cause)


def _seeds(setting: int | list | Mapping | None, name: str) -> tuple[str | None, list]:
    """(parameter, seeds) of `3`, `[0, 1]` or `{draw: [0, 1]}`."""
    if setting is None:
        return None, []
    is_named = isinstance(setting, Mapping) and len(setting) == 1
    parameter, seeds = next(iter(setting.items())) if is_named else ("seed", setting)
    seeds = list(range(seeds)) if isinstance(seeds, int) else seeds
    if not isinstance(seeds, list) or not seeds:
        expected = "a number of seeds, a list of them, or {PARAMETER: list}"
        raise _invalid(name, "seeds", setting, expected, "an empty list")
    return parameter, seeds


def _grid(grid: Mapping[str, list], name: str) -> list[dict]:
    for key, values in grid.items():
        if not values:
            raise _invalid(name, f"grid: {key}", values, "a list with at least one value", "an empty list")
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def _check_axes(axes: Sequence[Sequence[Mapping]], name: str) -> None:
    """Refuse a parameter that stands in two parts of a specification, and `out`."""
    named = [{key for point in axis for key in point} for axis in axes]
    for key, count in Counter(key for names in named for key in names).items():
        if key == "out":
            raise _invalid(name, "parameter 'out'", "a value", "none", "the sweep gives every run its folder")
        if count > 1:
            cause = "it stands in two parts of the specification"
            raise _invalid(name, f"parameter {key!r}", "two values", "one place", cause)


def _check_distinct(runs: Sequence[Run], name: str) -> None:
    first: dict[str, Run] = {}
    for run in runs:
        if first.setdefault(run.key, run) is not run:
            found = f"{first[run.key].settings} and {run.settings}"
            cause = "a value listed twice, or one that equals the fixed or default value"
            raise _invalid(name, "two runs of one hash", found, "runs that differ", cause)


def _invalid(name: str, key: str, found: object, expected: str, cause: str) -> ContractError:
    return ContractError(f"sweep {name!r}: {key}", found, expected, cause)
