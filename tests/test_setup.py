"""Dependencies: environment.yml, pyproject.toml and constraints.txt agree, and the code imports only what they name."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from clay_lib.files import read_yaml

WITHOUT_PATH = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
UNPINNED = "tracking"  # its package admits none of the tested versions of what others bring
NAMED = PROJECT["dependencies"] + sum((v for k, v in PROJECT["optional-dependencies"].items() if k != UNPINNED), [])
DIRECT = {canonicalize_name(r.name): r for r in map(Requirement, NAMED) if r.name != PROJECT["name"]}
EXTRAS = PROJECT["optional-dependencies"]
NOT_INSTALLED = sum((EXTRAS[extra] for extra in ("planetary", "slurm", "imagenet")), [])
NOT_INSTALLED = {Requirement(name).name.replace("-", "_") for name in NOT_INSTALLED} | {"mlflow"}
CONSTRAINTS = [s for line in (ROOT / "constraints.txt").read_text().splitlines() if (s := line.split("#")[0].strip())]


def test_every_direct_dependency_is_pinned_within_its_bounds():
    pins = {}
    for line in CONSTRAINTS:
        pin = Requirement(line)
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), f"{line}: one exact version, without a build tag"
        assert canonicalize_name(pin.name) not in pins, f"{line}: pinned twice"
        pins[canonicalize_name(pin.name)] = str(pin.specifier)[2:]
    assert DIRECT.keys() <= pins.keys(), f"not pinned: {DIRECT.keys() - pins.keys()}"
    for name, requirement in DIRECT.items():
        assert requirement.specifier, f"{name}: a lower bound is missing"
        assert requirement.specifier.contains(pins[name]), f"{requirement} does not admit the tested {pins[name]}"
    assert pins["torch"] == "2.13.0"


def test_nothing_chooses_a_torch_build_or_an_index():
    for name in ("constraints.txt", "pyproject.toml", "environment.yml", "Makefile", ".ci/run"):
        lines = [s.split("#")[0] for s in (ROOT / name).read_text().splitlines()]
        choice = r"\+c(pu|u\d)|^(nvidia|cuda|triton)\b|index-url|find-links|https?://"
        found = re.search(choice, "\n".join(lines), re.M | re.I)
        assert not found, f"{name}: {found and found[0]}"


def test_environment_only_refers_to_the_project():
    environment = read_yaml(ROOT / "environment.yml")
    conda = [d for d in environment["dependencies"] if isinstance(d, str)]
    (pip,) = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    assert [re.match(r"\w+", d)[0] for d in conda] == ["python", "pip"]
    assert pip == ["-c constraints.txt", "-e .[dev]"]
    low = PROJECT["requires-python"].removeprefix(">=")
    assert f">={low}" in conda[0] and Requirement(f"python{PROJECT['requires-python']}")


@pytest.mark.parametrize("folder", ["clay_lib", "tests", "notebooks"])
def test_every_import_is_a_declared_dependency(folder):
    paths = [*(ROOT / folder).rglob("*.py")]
    owners, local = packages_distributions(), {"clay_lib", *(path.stem for path in paths)}
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for top in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - local:
                if top in NOT_INSTALLED - owners.keys():
                    continue
                assert top in owners, f"{path.name} imports {top}, which is not installed"
                declared = {canonicalize_name(owner) for owner in owners[top]} & DIRECT.keys()
                assert declared, f"{path.name} imports {top} of {set(owners[top])}: name it in pyproject.toml"


def test_installed_package_is_complete(tmp_path):
    """Only the packages and data files that pyproject.toml lists are installed."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    for package in settings["packages"]:
        source, target = ROOT / package.replace(".", "/"), tmp_path / package.replace(".", "/")
        patterns = ["*.py", *settings["package-data"].get(package, []), *settings["package-data"].get("*", [])]
        target.mkdir(parents=True)
        for path in {path for pattern in patterns for path in source.glob(pattern)}:
            shutil.copy(path, target)
    assert all((ROOT / name).is_file() for names in settings["data-files"].values() for name in names)
    installed = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    sources = (path for path in (ROOT / "clay_lib").rglob("*") if path.is_file() and path.suffix not in (".pyc", ".md"))
    assert {path.relative_to(ROOT) for path in sources} == installed
    code = "import clay_lib; print(len(clay_lib.SENSORS), clay_lib.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=WITHOUT_PATH)
    assert done.stdout.startswith("9 ") and str(tmp_path) in done.stdout, done.stderr


def test_make_refuses_an_old_python(tmp_path):
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2" && exit 0\nexit 1\n')
    old.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(["make", "test"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode != 0 and "must be 3.11 or newer; found: Python 3.9.2" in done.stderr
    assert not (tmp_path / ".venv").exists()
