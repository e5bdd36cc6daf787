"""Which metrics a notebook can write, read from its source, so that a misspelt one is told before anything runs."""

from __future__ import annotations

import ast
import re


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
