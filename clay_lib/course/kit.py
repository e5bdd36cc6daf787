"""Workshop kit: the repository with all that its notebooks need without a network, in one folder for a USB stick.

The notebooks run once with the kit's own, empty cache, which then holds what they need.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

from clay_lib.course.live import live
from clay_lib.errors import ContractError
from clay_lib.files import atomic_write, make_folder
from clay_lib.runs.gallery import LIVE, write_site
from clay_lib.runs.notebooks import ROOT, is_done, read_script
from clay_lib.runs.profiles import choose_notebooks, run_profile

PARTS = {
    "cached chips": "data/cache",
    "weights": "data/weights",
    "executed notebooks": "papermill_runs",
    "gallery": "gallery",
    "wheels": "wheels",
}


def kit(
    out: str = "papermill_runs/kit/clay-notebooks",
    *,
    profile: str = "demo",
    only: str = "",
    wheels: bool = False,
    check: bool = False,
    archive: bool = False,
) -> int:
    """Write a folder that needs no network: sources, weights, cached chips, executed notebooks, gallery, KIT.md.

    A second run does only what is missing. The first takes as long as running the notebooks.

    Args:
        out: the folder of the kit
        profile: whose values the notebooks get
        only: notebooks by number or name, separated by commas, such as 00,01
        wheels: download the packages too, for machines like this one (needs a network, about 1 GB)
        check: run the notebooks again from the kit and report whether anything was missing
        archive: write a .zip beside the folder
    """
    home = Path(out).resolve()
    names = [name for name in only.split(",") if name] or None
    if check:
        return _check(home, profile, names)
    copied = _copy_sources(home)
    runs = home / "papermill_runs" / profile
    todo = [script.stem for script in choose_notebooks(names, home / "notebooks") if not _has_run(script, runs)]
    print(f"{home}: {copied} files copied, {len(todo)} notebooks to run", flush=True)
    if todo:
        with _data_of(home):
            results = run_profile(profile, notebooks=todo, out=runs, folder=home / "notebooks")
        if not all(result.ok for result in results):
            return 1
    try:
        live(out=str(home / "gallery" / LIVE))
    except ContractError as error:
        print(f"the gallery is made without its live page: {error}")
    write_site(str(runs), str(home / "gallery"), notebooks=home / "notebooks")
    if wheels:
        _download_wheels(home)
    shutil.copy(ROOT / "constraints.txt", home / "wheels.txt")
    page = KIT_PAGE.format(python=f"{sys.version_info[0]}.{sys.version_info[1]}", platform=sys.platform)
    atomic_write(home / "KIT.md", lambda partial: partial.write_text(page))
    print("\n".join(f"  {name:<34}{size / 1e6:8.1f} MB" for name, size in sizes(home).items()))
    if archive:
        packed = shutil.make_archive(str(home), "zip", home.parent, home.name)
        print(f"  {packed:<34}{Path(packed).stat().st_size / 1e6:8.1f} MB")
    return 0


def sizes(home: Path) -> dict[str, int]:
    """Bytes of the parts of a kit, and in all."""

    def size(folder: Path) -> int:
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    return {name: size(home / part) for name, part in PARTS.items()} | {"in all": size(home)}


def _copy_sources(home: Path) -> int:
    """Copy the files that git does not ignore, unless the kit has them already; returns how many were copied."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        raise ContractError("kit", f"{ROOT} without git", "a clone of the repository", listing.stderr.strip())
    copied = 0
    for name in filter(None, listing.stdout.split("\0")):
        source, target = ROOT / name, home / name
        same = target.is_file() and source.is_file() and target.read_bytes() == source.read_bytes()
        if source.is_file() and not same:
            make_folder(target.parent)
            shutil.copy2(source, target)
            copied += 1
    return copied


def _has_run(script: Path, runs: Path) -> bool:
    """Whether the kit holds a finished run of the current cells."""
    import nbformat

    executed = runs / f"{script.stem}.ipynb"
    if not is_done(executed):
        return False
    cells = nbformat.read(executed, as_version=4).cells
    sources = [c.source for c in cells if "injected-parameters" not in c.metadata.get("tags", [])]
    return sources == [c.source for c in read_script(script).cells]


def _check(home: Path, profile: str, names: list[str] | None) -> int:
    if not (home / "KIT.md").is_file():
        raise ContractError("kit", str(home), "a finished kit", "make kit has not run to its end")
    before = _cached(home)
    with _data_of(home), tempfile.TemporaryDirectory() as folder:
        results = run_profile(profile, notebooks=names, out=Path(folder), folder=home / "notebooks")
    missing = sorted(name for name, stamp in _cached(home).items() if before.get(name) != stamp)
    ok = all(result.ok for result in results)
    print(f"{len(before)} cached files; " + (f"missing: {', '.join(missing)}" if missing else "nothing was missing"))
    return 0 if ok and not missing else 1


def _cached(home: Path) -> dict[str, int]:
    """{name: modification time} of the cached chips."""
    return {path.name: path.stat().st_mtime_ns for path in (home / "data" / "cache").glob("world-*.npz")}


def _data_of(home: Path):
    """Context in which kernels that are started use the kit's data/."""
    return patch.dict(os.environ, CLAY_DATA=str(home / "data"))


def _download_wheels(home: Path) -> None:
    """torch first and alone, as the Makefile installs it; setuptools builds the repository's own package."""
    pip = [sys.executable, "-m", "pip", "download", "-q", "-c", "constraints.txt", "-d", str(home / PARTS["wheels"])]
    for packages in (["torch"], ["setuptools>=77", "wheel", ".[dev]"]):
        if subprocess.run([*pip, *packages], cwd=ROOT).returncode:
            raise ContractError("wheels", "pip could not download them", "a network", "see pip's message above")
    for own in (home / PARTS["wheels"]).glob("clay_notebooks*"):  # the kit holds its sources
        own.unlink()


KIT_PAGE = """# The notebooks without a network

Copy this folder to the laptop, which needs Python 3.11 or newer and `make`. Then, in the folder:

```bash
PIP_NO_INDEX=1 PIP_FIND_LINKS=wheels make lab      # 1. builds .venv from the wheels here, opens the first notebook
make demo                                          # 2. runs all notebooks headless
.venv/bin/python -m http.server -d gallery 8000    # 3. or simply open gallery/index.html: it needs no Python at all
```

The wheels are those of Python {python} on {platform}. Where `wheels/` is missing, or for another machine, leave the two
PIP settings out and run `make lab` once where there is a network; `wheels.txt` lists every package and version.

| folder | content |
| --- | --- |
| `gallery/` | every notebook executed, with figures and times, as pages that open from disk |
| `notebooks/` | the notebooks, to run |
| `papermill_runs/` | the executed notebooks and what they wrote |
| `data/cache/` | the chips that the notebooks need, already generated |
| `data/weights/` | the small weights |
"""
