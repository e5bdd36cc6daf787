"""Notebook parameters and metrics, read from the source and checked before a kernel starts.

papermill only warns of an unknown parameter and never checks types.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping, Sequence

from clay_lib.errors import ContractError


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


# ---- metrics


def declared_metrics(notebook) -> list[str] | None:
    """Regular expressions for the names that a notebook writes into metrics.json; None: unknown.

    Read are the keys of a dict given to write_metrics (or to json.dump, if the source names "metrics.json"), directly
    or through a variable, f-strings among them. A dict that a function returns, or one that is unpacked, is unknown.
    """
    try:
        source = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
        nodes = [*ast.walk(ast.parse(source))]
    except SyntaxError:  # a magic, such as %matplotlib
        return None
    place = {"write_metrics": 1}  # of the metrics among a function's arguments
    if any(isinstance(node, ast.Constant) and node.value == "metrics.json" for node in nodes):
        place |= {"dump": 0, "dumps": 0}
    written = []
    for call in (node for node in nodes if isinstance(node, ast.Call)):
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        if name in place:
            written += call.args[place[name] :][:1]
    return _join(_keys(expression, nodes) for expression in written) if written else None


def _keys(expression: ast.expr, nodes: Sequence[ast.AST]) -> list[str] | None:
    """Patterns of a dict's keys; nested ones are joined by " / ", as in the ledger."""
    match expression:
        case ast.Dict(keys=keys, values=values):
            return _join(_entry(key, value, nodes) for key, value in zip(keys, values, strict=True))
        case ast.Call(func=ast.Name(id="dict"), args=[], keywords=keywords) if all(k.arg for k in keywords):
            return _join(_entry(ast.Constant(k.arg), None, nodes) for k in keywords)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _join(_keys(side, nodes) for side in (left, right))
        case ast.Name(id=name):
            return _variable(name, nodes)
    return None


def _entry(key: ast.expr | None, value: ast.expr | None, nodes: Sequence[ast.AST]) -> list[str] | None:
    match key:
        case ast.Constant(value=str(text)):
            name = re.escape(text)
        case ast.JoinedStr(values=parts):
            name = "".join(re.escape(p.value) if isinstance(p, ast.Constant) else ".*" for p in parts)
        case _:
            return None
    inner = _keys(value, nodes) if isinstance(value, ast.Dict) else None
    return [f"{name}( / .*)?"] if inner is None else [f"{name} / {pattern}" for pattern in inner]


def _variable(name: str, nodes: Sequence[ast.AST]) -> list[str] | None:
    """Patterns of all keys assigned to a dict of this name; None if one cannot be read."""
    parts: list[list[str] | None] = []
    for node in nodes:
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=target)], value=value)
                | ast.AnnAssign(target=ast.Name(id=target), value=value)
                | ast.AugAssign(target=ast.Name(id=target), value=value)
            ) if target == name:
                alias = isinstance(value, ast.Name) and value.id == name
                parts.append(None if alias else _keys(value, nodes))
            case ast.Assign(targets=[ast.Subscript(value=ast.Name(id=target), slice=key)]) if target == name:
                parts.append(_entry(key, None, nodes))
            case ast.Call(func=ast.Attribute(value=ast.Name(id=target), attr="update" | "setdefault")) if (
                target == name
            ):
                parts.append(None)
    return _join(parts) if parts else None


def _join(parts) -> list[str] | None:
    """All patterns in one list; None if one of the parts is unknown."""
    parts = [*parts]
    return None if None in parts else [pattern for part in parts for pattern in part]
