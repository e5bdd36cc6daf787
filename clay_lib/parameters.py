"""A notebook's parameters: names and types of its tagged cell, checked before a kernel is started.

papermill only warns of an unknown name and never looks at types.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping

from clay_lib.contract import ContractError


def read_parameters(notebook) -> dict[str, ast.expr]:
    """Name -> type (an annotation's syntax tree) of each literal in the cell tagged `parameters`."""
    return {name: kind for name, (kind, _) in _literals(notebook).items()}


def read_defaults(notebook) -> dict[str, object]:
    """Name -> value of each literal in the cell tagged `parameters`."""
    return {name: default for name, (_, default) in _literals(notebook).items()}


def _literals(notebook) -> dict[str, tuple[ast.expr, object]]:
    source = next((cell.source for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])), None)
    if source is None:
        raise ContractError(
            "parameters",
            found="no cell tagged `parameters`",
            expected="one such cell",
            cause='the tag is missing: # %% tags=["parameters"]',
        )
    found = {}
    for line in ast.parse(source).body:
        target = getattr(line, "target", None) or getattr(line, "targets", [None])[0]
        try:
            default = ast.literal_eval(line.value)
            kind = getattr(line, "annotation", None) or ast.parse(type(default).__name__, mode="eval").body
            found[target.id] = (kind, default)
        except (AttributeError, ValueError, TypeError):
            raise ContractError(
                "parameters",
                found=ast.unparse(line),
                expected="name: type = literal",
                cause="a derived value belongs in a later cell",
            ) from None
    return found


def check_parameters(kinds: Mapping[str, ast.expr], values: Mapping[str, object], where: str) -> None:
    """Refuse names that the notebook does not have and values that are not of its types."""
    for name, value in values.items():
        if name not in kinds:
            raise ContractError(
                f"parameter {name!r}",
                found=f"no such parameter in {where}",
                expected=f"one of {sorted(kinds)}",
                cause="YAML reads on, off, yes and no as true and false: put the name in quotes"
                if isinstance(name, bool)
                else "a misspelt name, or one meant for another notebook",
            )
        if not _fits(value, kinds[name]):
            hint = (
                "text in a number; YAML reads 1e-3 as text, write 1.0e-3"
                if isinstance(value, str)
                else "a value meant for another parameter"
            )
            raise ContractError(
                f"parameter {name!r} of {where}",
                found=f"{value!r} ({type(value).__name__})",
                expected=ast.unparse(kinds[name]),
                cause=hint,
            )


def in_kind(value: object, kind: ast.expr) -> object:
    """A value that fits its type, in the one form that stands for it: 1 for a float is 1.0, a tuple is a list."""
    match kind:
        case ast.Name(id="float") if isinstance(value, int):
            return float(value)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return in_kind(value, left if _fits(value, left) else right)
        case ast.Subscript(value=ast.Name(id="list" | "tuple"), slice=inner):
            inner = inner.elts[0] if isinstance(inner, ast.Tuple) else inner
            return [in_kind(v, inner) for v in value]
    return list(value) if isinstance(value, tuple) else value


def _fits(value: object, kind: ast.expr) -> bool:
    match kind:
        case ast.Name(id="int"):
            return isinstance(value, int) and not isinstance(value, bool)
        case ast.Name(id="float"):
            return isinstance(value, (int, float)) and not isinstance(value, bool)
        case ast.Name(id="str" | "bool" | "dict" as name):
            return type(value).__name__ == name
        case ast.Name(id="list" | "tuple"):  # YAML knows only lists
            return isinstance(value, (list, tuple))
        case ast.Constant(value=None) | ast.Name(id="NoneType"):
            return value is None
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _fits(value, left) or _fits(value, right)
        case ast.Subscript(value=ast.Name(id="list" | "tuple"), slice=inner):
            return isinstance(value, (list, tuple)) and all(
                _fits(v, inner.elts[0] if isinstance(inner, ast.Tuple) else inner) for v in value
            )
        case ast.Subscript(value=outer):
            return _fits(value, outer)
    return True
