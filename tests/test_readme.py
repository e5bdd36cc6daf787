"""Every bash and python block of every README runs as printed, in order, from a copy of the repository's root."""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(str(page.relative_to(ROOT)) for page in [ROOT / "README.md", *ROOT.glob("*/README.md")])
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# `make` would build an environment and run these tests again: its targets are looked up, not run.
SHIMS = {"clay": f'exec {sys.executable} -m clay_lib "$@"', "make": f'exec {shutil.which("make")} -n "$@"'}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The repository's root without what tests and runs leave there; what blocks write stays in the copy."""
    root = tmp_path_factory.mktemp("checkout")
    left_out = (".git", ".venv", ".*_cache", "__pycache__", "cache", "lab", "demo", "smoke", "tests")
    shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns(*left_out), dirs_exist_ok=True)
    for name, line in SHIMS.items():
        shim = root / ".shims" / name
        shim.parent.mkdir(exist_ok=True)
        shim.write_text(f"#!/bin/sh\n{line}\n")
        shim.chmod(shim.stat().st_mode | stat.S_IXUSR)
    return root


@pytest.mark.parametrize("page", [page for page in PAGES if BLOCK.search((ROOT / page).read_text())])
def test_blocks_run_as_printed(page, checkout):
    env = os.environ | {"PATH": f"{checkout / '.shims'}:{os.environ['PATH']}", "PYTHONPATH": str(checkout)}
    for language, block in BLOCK.findall((ROOT / page).read_text()):
        command = ["bash", "-euc", block] if language == "bash" else [sys.executable, "-c", block]
        done = subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{page}:\n{block}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"


def test_main_readme_is_short():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150 and len(text.encode()) <= 8000


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_existing_files(page):
    text = (ROOT / page).read_text()
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", text)
    missing = [t for t in targets if "://" not in t and not ((ROOT / page).parent / t).exists()]
    assert not missing
