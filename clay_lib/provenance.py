"""Where a number comes from: the code's state, the packages, the machine."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

from clay_lib.cluster import cores

LIBRARY = Path(__file__).resolve().parent


def provenance() -> dict:
    """{git: {commit, changed}, library, environment: {python, machine, cores, packages}}, all of it JSON.

    library: a hash of clay_lib's own files, which also tells states apart that no commit holds.
    """
    return {"git": git_state(), "library": library_state(), "environment": environment()}


def git_state() -> dict:
    """The commit, and whether files that git follows differ from it; empty outside a repository."""

    def ask(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", LIBRARY.parent, *words], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):  # no git here
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = ask("rev-parse", "HEAD")
    changed = ask("--no-optional-locks", "status", "--porcelain", "--untracked-files=no")
    return {} if commit is None else {"commit": commit, "changed": bool(changed)}


def library_state() -> str:
    """12 hexadecimal digits of SHA-256 over clay_lib's sources."""
    told = hashlib.sha256()
    for path in sorted([*LIBRARY.glob("*.py"), *LIBRARY.glob("*.yaml")]):
        told.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return told.hexdigest()[:12]


@cache
def environment() -> dict:
    """Python, machine, cores that may be used, and every installed package with its version."""
    packages = {d.metadata["Name"]: d.version for d in metadata.distributions() if d.metadata["Name"]}
    return {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {platform.node()}",
        "cores": cores(),
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }
