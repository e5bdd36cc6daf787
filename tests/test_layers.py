"""The library's layers and sizes: one direction of imports, and files that can be read in one sitting."""

import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "clay_lib"
PACKAGES = sorted(folder.parent for folder in LIBRARY.glob("*/__init__.py"))


def test_modules_import_only_from_lower_layers():
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports; raise SystemExit(lint_imports())"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_upward_import_is_found(tmp_path):
    """The check sees an import within a function, too."""
    copy = tmp_path / "clay_lib"
    for path in LIBRARY.rglob("*.py"):
        target = copy / path.relative_to(LIBRARY)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(path.read_text())
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    sensors = copy / "sensors.py"
    sensors.write_text(sensors.read_text() + "\n\ndef upward():\n    from clay_lib import clay\n\n    return clay\n")
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports; raise SystemExit(lint_imports())"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0 and "clay_lib.sensors -> clay_lib.clay" in done.stdout


def test_no_circular_imports():
    graph = grimp.build_graph("clay_lib", cache_dir=None)  # imports within functions and for type checking count
    TopologicalSorter({m: graph.find_modules_directly_imported_by(m) for m in graph.modules}).prepare()


@pytest.mark.parametrize("package", PACKAGES, ids=lambda folder: folder.name)
def test_package_explains_itself(package):
    text = (package / "__init__.py").read_text()
    assert text.startswith('"""') and "lazy(" in text
