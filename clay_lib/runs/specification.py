"""Sweep specifications: YAML files, checked and expanded into runs. papermill_runs/README.md describes the format."""

import dataclasses
import hashlib
import io
import itertools
import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from clay_lib.errors import ContractError
from clay_lib.files import read_json, write_json, yaml_format
from clay_lib.runs.notebooks import NOTEBOOKS, RUNS, list_notebooks, meaning, read_script
from clay_lib.runs.profiles import (
    STRICT,
    Duration,
    Mistakes,
    Natural,
    Positive,
    check_parameters,
    convert,
    parse_config,
    read_defaults,
    read_parameters,
    read_profile,
)

Settings = list[dict[str, Any]]


@dataclass(frozen=True, config=STRICT)
class Budget:
    """Limits: runs in all, and minutes after which one start begins no further run."""

    runs: Positive | None = None
    minutes: Duration | None = None


@dataclass(frozen=True, config=STRICT)
class Search:
    """Trials chosen by Optuna. over: for each parameter a list of choices or {low, high}, with log: true or a step."""

    trials: Positive
    over: dict[str, Any]
    sampler: Literal["tpe", "random"] = "tpe"
    prune: Literal["hyperband", "median"] | None = None  # by the values that the notebook reports
    prune_after: Natural = 0  # the step up to which no run is stopped
    seed: Natural = 0  # of the sampler


@dataclass(frozen=True, config=STRICT)
class Confirm:
    """New seeds for the best trials of a search."""

    top: Positive
    seeds: Any


@dataclass(frozen=True, config=STRICT)
class Specification:
    """The keys of a sweep's file."""

    notebook: Any  # a number, a name or a path
    metrics: dict[str, Literal["min", "max"]]  # the first one ranks
    profile: str | None = None  # values to start from
    fixed: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    list: Settings = field(default_factory=list)
    search: Search | None = None
    confirm: Confirm | None = None
    seeds: Any = None  # a number of them, a list, or {parameter: list}
    budget: Budget = Budget()
    run_minutes: Duration | None = None  # of one run, until one has been measured
    timeout: Duration | None = None  # seconds a run
    threads: Positive | None = None  # of a kernel
    stop_after_failures: Positive | None = None


@dataclasses.dataclass(frozen=True)
class Run:
    """One point of a sweep. key: the hash of the notebook's code and all parameters, and its folder's name."""

    key: str
    settings: dict  # what the specification varies, including the seed
    parameters: dict  # all of the notebook's but `out`


@dataclasses.dataclass(frozen=True)
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
    stop_after_failures: int | None  # failed runs of one start after which it begins no further one
    expected_minutes: float | None  # of a run, as the profile states it
    specification: dict  # as written
    code: str  # hash of the notebook's code
    make_run: Callable[[dict], Run]  # of settings
    search: Search | None = None  # its trials become known one by one: `runs` is empty
    confirm: Confirm | None = None
    file: Path | None = None  # that holds the specification

    @property
    def varied(self) -> list[str]:
        """The parameters that differ between runs, without the seed."""
        if self.search:
            return list(self.search.over)
        names = dict.fromkeys(name for run in self.runs for name in run.settings if name != self.seed)
        return [n for n in names if len({json.dumps(run.parameters[n], sort_keys=True) for run in self.runs}) > 1]


def read_sweep(path: str | Path) -> Sweep:
    """The sweep that a YAML file describes; ContractError for anything that is wrong with it."""
    path = Path(path)
    if not path.is_file():
        examples = sorted(p.stem for p in (RUNS / "sweeps").glob("*.yaml"))
        raise ContractError("sweep", path, f"a YAML file, such as those of {examples}", "a misspelled path")
    mistakes = Mistakes.of_file(path, f"sweep {path.stem!r}")
    sweep = make_sweep(mistakes.content, name=path.stem, folder=path.parent, mistakes=mistakes)
    return replace(sweep, file=path.resolve())


def make_sweep(content: Mapping, *, name: str, folder: Path = NOTEBOOKS, mistakes: Mistakes | None = None) -> Sweep:
    """The same from a mapping, as a notebook may hold it. folder: where a relative path to the notebook begins."""
    mistakes = mistakes or Mistakes(f"sweep {name!r}", content)
    profiles = {p.stem for p in (RUNS / "profiles").glob("*.yaml")}
    if not re.fullmatch(r"[\w][\w.-]*", name) or name in profiles | {"profiles", "sweeps", "lab", "pretrain"}:
        expected = "letters, digits, - and _; no profile's name"
        raise ContractError("sweep's name", name, expected, "results go to papermill_runs/NAME")
    spec = parse_config(Specification, mistakes, metrics={})
    with mistakes.at("notebook", fatal=True):
        script = find_notebook(f"{spec.notebook:02d}" if isinstance(spec.notebook, int) else str(spec.notebook), folder)
        notebook = read_script(script)
        annotations, defaults = read_parameters(notebook), read_defaults(notebook)
        if "out" not in annotations:
            found = f"{script.name} without parameter out"
            raise ContractError("notebook", found, 'out: str = ""', "it writes to a fixed place")
    base, profile = {}, None
    with mistakes.at("profile", fatal=True):
        if spec.profile:
            profile = read_profile(spec.profile)
            base = {k: v for k, v in profile.values(script.stem, annotations).items() if k != "out"}
            check_parameters(annotations, base, script.stem)
    for part, expected in {"metrics": "{loss: min, accuracy: max}", "grid": "values", "list": "values"}.items():
        if part in content and not content[part]:
            mistakes.add((part,), part, "nothing", expected, f"an empty {part}")
    search, confirm, seed, seeds = spec.search, spec.confirm, None, []
    with mistakes.at("seeds"):
        seed, seeds = _seeds(spec.seeds)
    if search:
        search = replace(search, over=_ranges(search.over, annotations, script.stem, mistakes))
        with mistakes.at("search"):
            seed, confirm = _confirmation(spec, defaults | base | spec.fixed)
    elif confirm and "search" not in content:
        cause = "a grid takes `seeds`"
        mistakes.add(("confirm",), "confirm", "no search", "search: {trials: 40, over: ...}", cause)
    _check_values(spec, {seed: confirm.seeds if confirm else seeds} if seed else {}, annotations, script.stem, mistakes)
    mistakes.check()

    axes = [[{seed: value} for value in seeds]] if seeds else []
    axes += [[dict(zip(spec.grid, point, strict=True)) for point in itertools.product(*spec.grid.values())]]
    axes += [spec.list] if spec.list else []
    code, base = code_of(notebook), defaults | base | spec.fixed

    def make_run(settings: dict) -> Run:
        values = {k: convert(v, annotations[k]) for k, v in (base | settings).items() if k != "out"}
        return Run(key_of(code, values), {k: values[k] for k in settings}, values)

    points = [] if search else itertools.product(*axes)
    runs = [make_run({k: v for axis in point for k, v in axis.items()}) for point in points]
    _check_distinct(runs, mistakes)
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
        stop_after_failures=spec.stop_after_failures,
        expected_minutes=profile.minutes.get(script.stem) if profile else None,
        specification=dict(content),
        code=key_of(code, {}),
        make_run=make_run,
        search=search,
        confirm=confirm,
    )


def check_owner(spec: Sweep, home: Path) -> None:
    """Refuse a file whose name another one has taken: both would write to the same folder."""
    owner = read_json(home / "sweep.json").get("file")
    if spec.file and owner and Path(owner) != spec.file and Path(owner).is_file():
        cause = "two files of one name would mix their results: rename one of them"
        raise ContractError(f"sweep {spec.name!r}", f"{home}, where {owner} keeps its runs", "a name of its own", cause)


def write_summary(spec: Sweep, home: Path) -> None:
    """sweep.json: what the report needs besides the runs."""
    keys = [run.key for run in spec.runs]
    summary = {"runs": keys, "metrics": spec.metrics, "seed": spec.seed, "varied": spec.varied}
    summary["file"] = str(spec.file) if spec.file else None
    summary["confirmed"] = spec.confirm.seeds if spec.confirm else []
    write_json(home / "sweep.json", {**summary, "specification": spec.specification})


def command_of(spec: Sweep, parameters: Mapping) -> str:
    """What runs one run again by itself."""
    text, yaml = io.StringIO(), yaml_format((1, 1))  # which papermill reads
    yaml.default_flow_style = True
    yaml.dump(parameters, text)
    values = shlex.quote(text.getvalue().partition("---")[2].strip())
    return f"jupytext --to ipynb {shlex.quote(str(spec.script))} -o - | papermill - run.ipynb -y {values}"


def find_notebook(name: str, folder: Path) -> Path:
    """A percent script by its path, or one of the project's by name or number."""
    scripts = list_notebooks()
    if name.endswith(".py"):
        own = [script for script in scripts if script.name == name]
        return (folder / name).resolve() if (folder / name).is_file() or not own else own[0]
    matches = [script for script in scripts if script.stem.startswith(name)]
    if len(matches) != 1:
        found = f"{name}, which begins {[s.stem for s in matches]}" if matches else name
        expected = f"one of {[s.stem for s in scripts]} or a path to a percent script (.py)"
        raise ContractError("notebook", found, expected, "a misspelled name")
    return matches[0]


def code_of(notebook) -> list[str]:
    """The code cells, without the one that holds defaults: all that decides a run's outcome besides its parameters."""
    cells = (c for c in notebook.cells if c.cell_type == "code")
    return [meaning(c.source) for c in cells if "parameters" not in c.metadata.get("tags", [])]


def key_of(code: Sequence[str], parameters: Mapping[str, object]) -> str:
    """16 hexadecimal digits of SHA-256 over code cells and resolved parameters."""
    content = json.dumps([list(code), parameters], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _check_values(spec: Specification, seeds: Mapping, annotations: Mapping, where: str, mistakes: Mistakes) -> None:
    """Each value by the annotation of its parameter, and each parameter in one part of the specification."""
    values = [(("fixed", name), [value]) for name, value in spec.fixed.items()]
    values += [(("grid", name), several) for name, several in spec.grid.items()]
    values += [(("list", i, name), [value]) for i, setting in enumerate(spec.list) for name, value in setting.items()]
    values += [(("search", "over", name), []) for name in (spec.search.over if spec.search else ())]
    values += [(("confirm" if spec.search else "seeds", name), several) for name, several in seeds.items()]
    parts: dict[str, str] = {}
    for path, several in values:
        part, name = path[0], path[-1]
        with mistakes.at(*path):
            if name == "out":
                raise ContractError("parameter 'out'", "a value", "none", "the sweep gives every run its folder")
            if parts.setdefault(name, part) != part:
                cause = f"it stands in two parts of the specification, {parts[name]} and {part}"
                raise ContractError(f"parameter {name!r}", "two values", "one place", cause)
            if part == "grid" and not several:
                raise ContractError(f"grid: {name}", "[]", "a list with at least one value", "an empty list")
            for value in several:
                check_parameters(annotations, {name: value}, where)


def _ranges(over: Mapping[str, object], annotations: Mapping, where: str, mistakes: Mistakes) -> dict:
    """The ranges of a search, checked, with values of the parameters' own types."""
    checked = {}
    for parameter, values in over.items():
        match values:
            case [_, *_]:
                ends = values
            case {"low": int() | float() as low, "high": int() | float() as high, **options} if (
                low < high
                and set(options) <= {"log", "step"}
                and options.get("step", 1) > 0
                and not (options.get("log") and (low <= 0 or "step" in options))
            ):
                ends = [low, high]
            case _:
                expected = "a list of choices, or {low: 1, high: 9} with step: 2, or with log: true if low is above 0"
                cause = "low above high, or a misspelled key"
                mistakes.add(("search", "over", parameter), f"search: {parameter}", values, expected, cause)
                continue
        with mistakes.at("search", "over", parameter):
            for value in ends:
                check_parameters(annotations, {parameter: value}, where)
            ends = [convert(value, annotations[parameter]) for value in ends]
            checked[parameter] = {**values, "low": ends[0], "high": ends[1]} if isinstance(values, Mapping) else ends
    return checked


def _confirmation(spec: Specification, values: Mapping[str, object]) -> tuple[str | None, Confirm | None]:
    """(parameter, confirmation) of a search. So many seeds, if no list is given, follow that of the trials."""
    for key in ("grid", "list", "seeds"):
        if getattr(spec, key):
            cause = "a search takes its parameters from `over`; `confirm` repeats the best trials with new seeds"
            raise ContractError(f"search, {key}", "both", "one of them", cause)
    if spec.confirm is None:
        return None, None
    parameter, seeds = _seeds(spec.confirm.seeds)
    if not isinstance(spec.confirm.seeds, (list, Mapping)) and isinstance(values.get(parameter), int):
        seeds = [values[parameter] + 1 + seed for seed in seeds]
    return parameter, replace(spec.confirm, seeds=seeds)


def _seeds(setting: object) -> tuple[str | None, list]:
    """(parameter, seeds) of `3`, `[0, 1]` or `{draw: [0, 1]}`."""
    if setting is None:
        return None, []
    is_named = isinstance(setting, Mapping) and len(setting) == 1
    parameter, seeds = next(iter(setting.items())) if is_named else ("seed", setting)
    seeds = [*range(seeds)] if isinstance(seeds, int) and not isinstance(seeds, bool) else seeds
    if not isinstance(seeds, list) or not seeds:
        expected = "a number of seeds, a list of them, or {PARAMETER: list}"
        raise ContractError("seeds", setting, expected, "an empty list, or another type")
    return parameter, seeds


def _check_distinct(runs: Sequence[Run], mistakes: Mistakes) -> None:
    first: dict[str, Run] = {}
    for run in runs:
        if first.setdefault(run.key, run) is not run:
            found = f"{first[run.key].settings} and {run.settings}"
            cause = "a value listed twice, or one that equals the fixed or default value"
            mistakes.add((), "two runs of one hash", found, "runs that differ", cause)
            mistakes.check()
