"""A sweep in twelve lines of YAML, made into checked runs. The format is told in papermill_runs/README.md."""

from __future__ import annotations

import ast
import hashlib
import itertools
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from clay_lib.errors import ContractError
from clay_lib.files import read_yaml
from clay_lib.runs.notebooks import (
    NOTEBOOKS,
    RUNS,
    check_parameters,
    in_kind,
    list_notebooks,
    read_defaults,
    read_parameters,
    read_script,
)
from clay_lib.runs.profiles import read_profile


def promised_metrics(notebook) -> list[str] | None:
    """Regular expressions for the names that a notebook writes into metrics.json; None: its source does not tell.

    Told are names that stand in the source: keys of a dict given to write_metrics (or to json.dump where the cell
    says "metrics.json"), directly or through a variable, f-strings among them. A dict that a function hands over, or
    one filled by unpacking, is not told.
    """
    trees = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            try:
                trees.append(ast.parse(cell.source))
            except SyntaxError:  # a magic, such as %matplotlib
                return None
    written = [node for tree in trees for node in _written(tree)]
    if not written:
        return None
    code = [node for tree in trees for node in ast.walk(tree)]
    keys: list[str] = []
    for node in written:
        found = _keys(node, code)
        if found is None:
            return None
        keys += found
    return keys


def _written(tree: ast.Module) -> list[ast.expr]:
    """The expressions that become metrics.json."""
    found = []
    to_file = any(isinstance(n, ast.Constant) and n.value == "metrics.json" for n in ast.walk(tree))
    for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        if name == "write_metrics":
            found += [*call.args[1:2], *(k.value for k in call.keywords if k.arg == "metrics")]
        elif to_file and name in ("dump", "dumps") and call.args:
            found.append(call.args[0])
    return found


def _keys(node: ast.expr, code: list[ast.AST]) -> list[str] | None:
    """Patterns of a dict's keys; nested ones are joined by " / ", as the ledger names them."""
    match node:
        case ast.Dict(keys=keys, values=values):
            found = []
            for key, value in zip(keys, values, strict=True):
                if key is None or (name := _pattern(key)) is None:
                    return None
                inner = _keys(value, code) if isinstance(value, ast.Dict) else None
                found += [f"{name}( / .*)?"] if inner is None else [f"{name} / {pattern}" for pattern in inner]
            return found
        case ast.Call(func=ast.Name(id="dict"), args=[], keywords=given) if all(k.arg for k in given):
            return [f"{re.escape(k.arg)}( / .*)?" for k in given]
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            both = _keys(left, code), _keys(right, code)
            return None if None in both else both[0] + both[1]
        case ast.Name(id=name):
            return _variable(name, code)
    return None


def _variable(name: str, code: list[ast.AST]) -> list[str] | None:
    """All that is ever put into a dict by this name; None if something is put there that cannot be read."""
    found, known = [], False
    for node in code:
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=target)], value=value)
                | ast.AnnAssign(target=ast.Name(id=target), value=value)
                | ast.AugAssign(target=ast.Name(id=target), value=value)
            ) if target == name:
                keys = None if isinstance(value, ast.Name) and value.id == name else _keys(value, code)
                if keys is None:
                    return None
                found, known = found + keys, True
            case ast.Assign(targets=[ast.Subscript(value=ast.Name(id=target), slice=key)]) if target == name:
                if (pattern := _pattern(key)) is None:
                    return None
                found.append(f"{pattern}( / .*)?")
            case ast.Call(func=ast.Attribute(value=ast.Name(id=target), attr="update" | "setdefault")) if (
                target == name
            ):
                return None
    return found if known else None


def _pattern(key: ast.expr) -> str | None:
    match key:
        case ast.Constant(value=str(text)):
            return re.escape(text)
        case ast.JoinedStr(values=parts):
            return "".join(re.escape(p.value) if isinstance(p, ast.Constant) else ".*" for p in parts)
    return None


# ---- A sweep in twelve lines of YAML, made into checked runs. The format is told in papermill_runs/README ----

KEYS = {
    "notebook": str,
    "profile": str,
    "fixed": dict,
    "grid": dict,
    "list": list,
    "random": dict,
    "seeds": (int, list, dict),
    "metrics": dict,
    "budget": dict,
    "timeout": (int, float),
    "threads": int,
}


@dataclass(frozen=True)
class Run:
    """One point of a sweep. key: the hash of the notebook's code and all parameters, and its folder's name."""

    key: str
    settings: dict  # what the specification varies, the seed among it
    parameters: dict  # all of the notebook's but `out`


@dataclass(frozen=True)
class Sweep:
    """A checked specification. runs: the first seed of all settings, then the second, so that a part tells of all settings."""

    name: str
    script: Path
    source: str  # the script's text: what is run, whatever becomes of the file meanwhile
    runs: tuple[Run, ...]
    left_out: int  # runs beyond the budget
    seed: str | None  # the parameter that takes the seeds
    metrics: dict[str, str]  # name: "min" or "max"; the first one ranks
    minutes: float | None  # budget of one start
    timeout: float | None  # seconds a run
    threads: int | None  # of a kernel; None: the cores, shared among the workers
    forecast: float | None  # minutes a run, as the profile tells
    told: dict  # the specification as written

    @property
    def varied(self) -> list[str]:
        """The parameters that differ between runs, without the seed."""
        names = dict.fromkeys(name for run in self.runs for name in run.settings if name != self.seed)
        return [n for n in names if len({json.dumps(run.parameters[n], sort_keys=True) for run in self.runs}) > 1]


def read_sweep(path: str | Path) -> Sweep:
    """The sweep that a YAML file describes; ContractError for anything that is wrong with it."""
    path = Path(path)
    if not path.is_file():
        there = sorted(p.stem for p in (RUNS / "sweeps").glob("*.yaml"))
        raise ContractError("sweep", str(path), f"a YAML file, such as those of {there}", "a misspelt path")
    try:
        told = read_yaml(path)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = " ".join(str(error).split())
        raise _wrong(
            path.stem, "its YAML", where, "a mapping of different keys to values", "a wrong indent or a missing quote"
        ) from None
    return make_sweep(told, name=path.stem, folder=path.parent)


def make_sweep(told: Mapping, *, name: str, folder: Path = NOTEBOOKS) -> Sweep:
    """The same from a mapping, as a notebook may hold it. folder: where a relative path to the notebook begins."""
    told = _keys_and_types(told, name)
    script = find_notebook(told["notebook"], folder)
    notebook = read_script(script)
    kinds, defaults = read_parameters(notebook), read_defaults(notebook)
    if "out" not in kinds:
        raise _wrong(
            name, "notebook", f"{script.name} without parameter out", 'out: str = ""', "it writes to a fixed place"
        )
    metrics = _metrics(told.get("metrics"), notebook, script, name)
    profile = read_profile(told["profile"]) if "profile" in told else None
    base = {k: v for k, v in (profile["common"] if profile else {}).items() if k in kinds and k != "out"}
    base |= profile["notebooks"].get(script.stem, {}) if profile else {}
    base |= told.get("fixed", {})
    check_parameters(kinds, base, script.stem)

    seed, seeds = _seeds(told.get("seeds"), name)
    axes = [_grid(told["grid"], name)] if "grid" in told else []
    axes += [_list(told["list"], name)] if "list" in told else []
    axes += [draw(told["random"], name)] if "random" in told else []
    axes = [[{seed: value} for value in seeds], *axes] if seed else axes
    named = [{key for point in axis for key in point} for axis in [*axes, [told.get("fixed", {})]]]
    for key, count in Counter(key for names in named for key in names).items():
        if count > 1 or key == "out":
            cause = (
                "the sweep gives every run its folder"
                if key == "out"
                else "it stands in two parts of the specification"
            )
            raise _wrong(
                name,
                f"parameter {key!r}",
                "a value twice" if count > 1 else "a value",
                "none" if key == "out" else "one place",
                cause,
            )

    runs, code = [], code_of(notebook)
    for points in itertools.product(*axes):
        settings = {key: value for point in points for key, value in point.items()}
        check_parameters(kinds, settings, script.stem)
        values = {**defaults, **base, **settings}
        values = {k: in_kind(v, kinds[k]) for k, v in values.items() if k != "out"}
        runs.append(Run(key_of(code, values), {k: values[k] for k in settings}, values))
    _all_different(runs, name)
    budget = told.get("budget", {})
    kept = tuple(runs[: budget.get("runs")])
    forecast = profile["minutes"].get(script.stem) if profile else None
    return Sweep(
        name, script, script.read_text(encoding="utf-8"), kept, len(runs) - len(kept), seed, metrics,
        budget.get("minutes"), told.get("timeout"), told.get("threads"), forecast, dict(told),
    )  # fmt: skip


def find_notebook(name: str, folder: Path) -> Path:
    """A percent script by its path, or one of the project's by name or number."""
    if name.endswith(".py"):
        script = (folder / name).resolve()
        read_script(script)
        return script
    found = [script for script in list_notebooks() if script.stem.startswith(name)]
    if len(found) != 1:
        raise ContractError(
            "notebook",
            name if not found else f"{name}, which begins {[s.stem for s in found]}",
            f"one of {[s.stem for s in list_notebooks()]} or a path to a percent script (.py)",
            "a misspelt name",
        )
    return found[0]


def code_of(notebook) -> list[str]:
    """What decides a run's outcome besides its parameters: its code cells, but for the one that holds defaults."""
    cells = (c for c in notebook.cells if c.cell_type == "code")
    return [c.source for c in cells if "parameters" not in c.metadata.get("tags", [])]


def key_of(code: Sequence[str], parameters: Mapping[str, object]) -> str:
    """16 hexadecimal digits of SHA-256 over code cells and resolved parameters."""
    told = json.dumps([list(code), parameters], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def draw(told: Mapping, name: str) -> list[dict]:
    """Random draws. Each parameter has its own stream, so that more draws or parameters leave those there unchanged."""
    if not isinstance(told, Mapping) or set(told) - {"draws", "seed", "over"} or not {"draws", "over"} <= set(told):
        raise _wrong(
            name, "random", told, "{draws: 20, seed: 0, over: {PARAMETER: {log: [1.0e-4, 1.0e-2]}}}", "a misspelt key"
        )
    count, seed, over = told["draws"], told.get("seed", 0), told["over"]
    for key, value in (("draws", count), ("seed", seed)):
        if not isinstance(value, int) or isinstance(value, bool) or value < (key == "draws"):
            raise _wrong(name, f"random: {key}", repr(value), "a whole number", "a text or a negative number")
    if not isinstance(over, Mapping) or not over:
        raise _wrong(name, "random: over", over, "a range for each parameter", "an empty or misplaced mapping")
    columns = {}
    for parameter, spread in over.items():
        rng = np.random.default_rng([seed, zlib.crc32(str(parameter).encode())])
        columns[parameter] = [_one(rng, spread, f"random: {parameter}", name) for _ in range(count)]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _one(rng: np.random.Generator, spread: object, field: str, name: str) -> object:
    match spread:
        case [_, *_]:
            return spread[rng.integers(len(spread))]
        case {"uniform": [int() | float() as low, int() | float() as high]} if low < high:
            return float(f"{rng.uniform(low, high):.4g}")
        case {"log": [int() | float() as low, int() | float() as high]} if 0 < low < high:
            return float(f"{math.exp(rng.uniform(math.log(low), math.log(high))):.4g}")
        case {"whole": [int() as low, int() as high]} if low < high:
            return int(rng.integers(low, high + 1))
    expected = "a list to choose from, or {uniform: [LOW, HIGH]}, {log: [LOW, HIGH]} above 0, {whole: [LOW, HIGH]}"
    raise _wrong(name, field, spread, expected, "low above high, or text: YAML reads 1e-3 as text, write 1.0e-3")


def _keys_and_types(told: object, name: str) -> dict:
    profiles = {p.stem for p in (RUNS / "profiles").glob("*.yaml")}
    if not re.fullmatch(r"[\w][\w.-]*", name) or name in profiles | {"profiles", "sweeps", "lab", "pretrain"}:
        raise ContractError(
            "sweep's name", name, "letters, digits, - and _; no profile's name", "results go to papermill_runs/NAME"
        )
    if not isinstance(told, Mapping) or "notebook" not in told:
        raise _wrong(
            name,
            "its keys",
            sorted(told) if isinstance(told, Mapping) else told,
            "notebook and metrics at least",
            "an empty file or a misspelt key",
        )
    for key, value in told.items():
        if key not in KEYS:
            raise _wrong(
                name,
                f"key {key!r}",
                "no such key",
                f"one of {list(KEYS)}",
                "a misspelt key, or a parameter outside of fixed or grid",
            )
        if not isinstance(value, KEYS[key]) or isinstance(value, bool):
            kinds = KEYS[key] if isinstance(KEYS[key], tuple) else (KEYS[key],)
            raise _wrong(
                name,
                key,
                f"{value!r} ({type(value).__name__})",
                " or ".join(k.__name__ for k in kinds),
                "a wrong indent or a missing dash",
            )
        if key in ("timeout", "threads") and value <= 0:
            raise _wrong(name, key, value, "more than 0", "leave it away for none")
    budget = told.get("budget", {})
    for key, value in budget.items():
        fits = isinstance(value, int if key == "runs" else (int, float)) and not isinstance(value, bool)
        if key not in ("runs", "minutes") or not fits or value <= 0:
            raise _wrong(
                name,
                f"budget: {key}",
                value,
                "{runs: 40} (whole) or {minutes: 90}, above 0",
                "a misspelt key or a text",
            )
    return dict(told)


def _metrics(told: object, notebook, script: Path, name: str) -> dict[str, str]:
    """Names with their direction, each of which the notebook can write as far as its source tells."""
    if not told or any(direction not in ("min", "max") for direction in told.values()):
        raise _wrong(name, "metrics", told, "{loss: min, accuracy: max}", "a name without its direction")
    promised = promised_metrics(notebook)
    for metric in told if promised is not None else ():
        if not any(re.fullmatch(pattern, str(metric)) for pattern in promised):
            writes = [re.sub(r"\\(.)", r"\1", p.removesuffix("( / .*)?")).replace(".*", "...") for p in promised]
            raise _wrong(
                name,
                f"metric {metric!r}",
                f"none of that name in {script.stem}",
                f"one of {writes}",
                "a misspelt name, or one that the notebook no longer writes",
            )
    return {str(metric): direction for metric, direction in told.items()}


def _seeds(told: object, name: str) -> tuple[str | None, list[int]]:
    """(parameter, values) of `3`, `[0, 1]` or `{draw: [0, 1]}`."""
    if told is None:
        return None, []
    parameter, values = next(iter(told.items())) if isinstance(told, Mapping) and len(told) == 1 else ("seed", told)
    values = list(range(values)) if isinstance(values, int) and not isinstance(values, bool) else values
    if not isinstance(values, list) or not values:
        raise _wrong(name, "seeds", told, "a number of seeds, a list of them, or {PARAMETER: list}", "an empty list")
    return parameter, values


def _grid(told: Mapping, name: str) -> list[dict]:
    for key, values in told.items():
        if not isinstance(values, list) or not values:
            raise _wrong(
                name,
                f"grid: {key}",
                values,
                "a list with at least one value",
                "an empty list, or a single value that belongs in fixed",
            )
    if not told:
        raise _wrong(name, "grid", "nothing", "a list of values for each parameter", "an empty grid")
    return [dict(zip(told, values, strict=True)) for values in itertools.product(*told.values())]


def _list(told: Sequence, name: str) -> list[dict]:
    if not told or not all(isinstance(point, Mapping) for point in told):
        raise _wrong(
            name, "list", told, "one mapping of values a setting; {} for none", "an empty list, or a missing colon"
        )
    return [dict(point) for point in told]


def _all_different(runs: Sequence[Run], name: str) -> None:
    seen: dict[str, Run] = {}
    for run in runs:
        if run.key in seen:
            both = f"{seen[run.key].settings} and {run.settings}"
            raise _wrong(
                name,
                "two runs of one hash",
                both,
                "runs that differ",
                "a value listed twice, or one that equals the fixed or default value",
            )
        seen[run.key] = run


def _wrong(name: str, field: str, found: object, expected: str, cause: str) -> ContractError:
    return ContractError(f"sweep {name!r}: {field}", found, expected, cause)
