"""Results: a page of measured scores of the weights and of baselines, written by one command.

Every row of the table names its data, split, seeds, weights and command, so that it can be reproduced. The page is
data/weights/RESULTS.md; all rows are in data/weights/results.csv.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from clay_lib.clay import Clay
from clay_lib.errors import ContractError
from clay_lib.evaluation import patches, transfer
from clay_lib.evaluation.evaluate import Evaluation
from clay_lib.evaluation.intervals import as_text
from clay_lib.evaluation.reconstruction import reconstruction_table
from clay_lib.evaluation.retrieval import retrieval_table
from clay_lib.files import DATA, atomic_write, find_weights, sha256

REAL = Path(os.environ.get("CLAY_REALDATA") or Path(__file__).resolve().parents[3] / "shared" / "realdata")
KEYS = ["study", "split", "features", "kind", "probe"]
NUMBERS = ["score", "low", "high", "margin", "margin_low", "margin_high", "gap", "gap_low", "gap_high"]
COLUMNS = [*KEYS, "metric", *NUMBERS, "baseline", "n_train", "n_test", "dim", "seeds", "weights", "made", "command"]


@dataclass(frozen=True)
class Study:
    """One data set and how it is measured."""

    title: str
    description: str  # the data, the split and the scores
    folders: tuple[str, ...]  # of the real data that it needs
    run: Callable[[Clay, Path, int], pd.DataFrame]  # (clay, real data, seeds) -> rows


def results(
    weights: str = "clay-mini.safetensors",
    *,
    only: str = "",
    data: str = "",
    seeds: int = 5,
    out: str = "",
) -> int:
    """Measure weights and baselines on the mini-world and on real data, and write the page of results.

    Example: clay results --only landsat

    Args:
        weights: a file of weights: a path, or a name in data/weights
        only: studies, separated by commas: world, ucmerced, landsat, landcover, reconstruction, retrieval
        data: the folder of real data, with ucmerced, landsat-sr, sentinel-2-l2a and landcover; empty: CLAY_REALDATA,
            or shared/realdata beside the checkout. Studies whose data are absent keep their rows of the last run
        seeds: from 0, of splits, random weights, random filters and shots
        out: folder for RESULTS.md and results.csv; empty: data/weights
    """
    names = [name for name in only.split(",") if name] or list(STUDIES)
    if unknown := sorted(set(names) - set(STUDIES)):
        raise ContractError("only", unknown, f"among {list(STUDIES)}", "a misspelled name")
    folder, real = Path(out) if out else DATA / "weights", Path(data) if data else REAL
    path = find_weights(weights)
    clay, digest = Clay.load(path), sha256(path)[:16]
    table = read_results(folder)
    for name in names:
        missing = [need for need in STUDIES[name].folders if not (real / need).is_dir()]
        if missing:
            print(f"{name}: {', '.join(missing)} not in {real}: its rows are those of the last run", flush=True)
            continue
        print(f"{name}: running", flush=True)
        rows = STUDIES[name].run(clay, real, seeds)
        command = f"python -m clay_lib results {path.name} --only {name} --seeds {seeds}"
        source = dict(study=name, weights=digest, made=f"{datetime.now(UTC):%Y-%m-%d}", command=command)
        rows = rows.assign(**source).reindex(columns=COLUMNS)
        table = pd.concat([table[table["study"] != name], rows.round(4)], ignore_index=True)
        write_page(folder, table)
    print(write_page(folder, table))
    return 0


def read_results(folder: Path) -> pd.DataFrame:
    """The rows of the last run; none if there was none."""
    path = Path(folder) / "results.csv"
    return pd.read_csv(path, dtype={"weights": str}) if path.is_file() else pd.DataFrame(columns=COLUMNS)


def write_page(folder: Path, table: pd.DataFrame) -> Path:
    """Write results.csv, and from it RESULTS.md."""
    order = {name: k for k, name in enumerate(STUDIES)}
    table = table.sort_values("study", key=lambda names: names.map(order), kind="stable")
    atomic_write(Path(folder) / "results.csv", lambda partial: table.to_csv(partial, index=False))
    # from the file's rows, so that the page is the same whether a row was just measured or kept
    page = results_page(read_results(folder))
    return atomic_write(Path(folder) / "RESULTS.md", lambda partial: partial.write_text(page, encoding="utf-8"))


def results_page(table: pd.DataFrame) -> str:
    """Markdown: a section for each study, a table for each split, a row a feature set, a column a probe."""
    parts = [HEAD]
    for name, study in STUDIES.items():
        rows = table[table["study"] == name]
        parts.append(f"## {study.title}\n\n{study.description}")
        if rows.empty:
            parts.append("Not measured yet.")
            continue
        one = rows.iloc[0]
        seeds = "Seed 0" if rows["seeds"].max() == 1 else f"Seeds 0 to {rows['seeds'].max() - 1}"
        weights = f"weights `{one['weights']}` (SHA-256)"
        parts.append(f"{seeds}; {weights}; measured {one['made']}. Run again: `{one['command']}`")
        for split, own in rows.groupby("split", sort=False):
            heading = f"Split: {SPLITS[split]}" if split in SPLITS else split.capitalize()
            parts.append(f"### {heading}\n\n{_pivot(own, 'score', '{:.1f}')}")
            lead = own.dropna(subset=["margin"])
            lead = lead[~lead["features"].str.startswith("random")]
            if not lead.empty:
                parts.append(f"Lead over the best baseline, on the same chips:\n\n{_pivot(lead, 'margin', '{:+.1f}')}")
        gaps = rows.dropna(subset=["gap"])
        if not gaps.empty:
            parts.append(f"### Random split minus spatial split\n\n{_pivot(gaps, 'gap', '{:+.1f}')}")
    return "\n\n".join(parts) + "\n"


def _pivot(rows: pd.DataFrame, column: str, form: str) -> str:
    """A Markdown table of one quantity with its interval, in percent: a row a feature set, a column a probe."""
    ends = ["low", "high"] if column == "score" else [f"{column}_low", f"{column}_high"]
    probes = list(dict.fromkeys(rows["probe"]))
    lines = [["features", "numbers", *probes], ["---"] * (2 + len(probes))]
    for name, own in rows.groupby("features", sort=False):
        own = own.set_index("probe")
        cells = {probe: as_text(*(100 * row[[column, *ends]]), form=form) for probe, row in own.iterrows()}
        if column == "margin":
            cells = {probe: f"{text} over {own.loc[probe, 'baseline']}" for probe, text in cells.items()}
        dim = own["dim"].iloc[0]
        lines.append([name, f"{dim:.0f}" if pd.notna(dim) else "", *(cells.get(probe, "") for probe in probes)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rows_of(evaluation: Evaluation) -> pd.DataFrame:
    """Scores, leads and gaps of one evaluation, a row per feature set, split and probe."""
    gaps = evaluation.gap.rename(columns={"low": "gap_low", "high": "gap_high"})
    gaps = gaps.assign(split=next(s for s in evaluation.table["split"].unique() if s != "random"))
    return evaluation.summary.merge(gaps, on=["features", "kind", "split", "probe", "shots"], how="left")


def _ucmerced(clay: Clay, real: Path, seeds: int) -> pd.DataFrame:
    images = {size: transfer.read_images(real / "ucmerced", size) for size in transfer.SIZES}
    evaluation, chosen = transfer.probe_images(clay, images, first_test=66, seeds=seeds)
    print(f"  read-out chosen on training folds: {chosen}")
    return rows_of(evaluation)


def _landsat(clay: Clay, real: Path, seeds: int) -> pd.DataFrame:
    scene, labels = (real / "landsat-sr" / f"LE70220491999322EDC01_{end}.tif" for end in ("stack", "labels"))
    bands = ["blue", "green", "red", "nir08", "swir16", "swir22", None, None]  # neither thermal nor the mask
    collection_2 = dict(scale=1e-4 / 0.0000275, offset=0.2 / 0.0000275)  # from reflectance x 10000
    reading = dict(bands=bands, when="1999-11-18", **collection_2)
    pixels, classes, metadata = transfer.read_points(scene, labels, "landsat-c2l2-sr", **reading)
    return rows_of(transfer.probe_points(clay, pixels, classes, **metadata, seeds=seeds))


def _landcover(clay: Clay, real: Path, seeds: int) -> pd.DataFrame:
    pairs = patches.read_rasters(real / "sentinel-2-l2a", real / "landcover")
    table = patches.probe_patches(clay, pairs, seeds=seeds).assign(probe="linear", metric="balanced", seeds=seeds)
    random = table[table["split"] == "windows"].set_index("features")["score"]
    gap = table["features"].map(random) - table["score"]
    return table.assign(gap=gap.where(table["split"] == "rasters"))


def _reconstruction(clay: Clay, real: Path, seeds: int) -> pd.DataFrame:
    table = reconstruction_table(clay, seeds=seeds)
    names = {"model": "{}", "interpolation": "{} of interpolation"}
    kept = table[table["method"].isin(names) & ~((table["method"] == "interpolation") & (table["measure"] == "error"))]
    probe = [names[method].format(measure) for method, measure in zip(kept["method"], kept["measure"], strict=True)]
    split = kept["size"].astype(str) + " px"
    kept = kept.rename(columns={"sensor": "features", "value": "score", "chips": "n_test"})
    return kept.assign(split=split, probe=probe, kind="model", metric="ratio or correlation", n_train=0)


def _retrieval(clay: Clay, real: Path, seeds: int) -> pd.DataFrame:
    tables = []
    for suffix, model in (("", clay), (", random weights", Clay.random(clay.model.config, seed=0))):
        table = retrieval_table(model)
        tables.append(table.assign(probe="recall at " + table["k"].astype(str) + suffix))
    table = pd.concat(tables, ignore_index=True).rename(columns={"recall": "score", "places": "n_test"})
    pair = table["query"] + " in " + table["gallery"]
    return table.assign(split=table["kind"], features=pair, kind="model", metric="recall", n_train=0, seeds=1)


STUDIES = {
    "world": Study(
        "Land cover of the mini-world",
        "The commonest land cover of Sentinel-2 chips of 64 px, eleven classes, 660 chips to train, 330 at 165 other "
        "places to test. Accuracy; intervals over places and seeds.",
        (),
        lambda clay, real, seeds: rows_of(transfer.probe_world(clay, seeds=seeds)),
    ),
    "ucmerced": Study(
        "Real aerial images",
        "500 RGB images of 0.3 m and 256 px, ten classes (UC Merced, a part), as sensor naip with bands red, green, blue; "
        "class token and patch mean are those of the images as they are. Files "
        "numbered below 66 train, 170 from 66 on test: neighbors in number are neighbors on the ground. Accuracy; "
        "intervals over images and seeds. The read-out was chosen on folds of the images below 66. Two thirds of the "
        "test images of the random split are among these, so that its scores there, and its gap, are too optimistic.",
        ("ucmerced",),
        _ucmerced,
    ),
    "landsat": Study(
        "Labeled pixels of a real Landsat 7 scene",
        "718 pixels of five classes, a chip of 8 x 8 pixels of 30 m around each (eight lie too near the border). They "
        "lie in 27 clumps, each held out completely, so that the intervals are wide. Balanced "
        "accuracy; intervals over clumps and seeds.",
        ("landsat-sr",),
        _landsat,
    ),
    "landcover": Study(
        "Land cover of single patches of real Sentinel-2",
        "Patches of 8 x 8 pixels with a dominant class in three tiles (Brazil, Tanzania, Chile): each tile classified "
        "by a linear probe trained on the other two (rasters), and half of the windows of 56 px by one trained on the "
        "other half (windows). Balanced accuracy; intervals over windows.",
        ("sentinel-2-l2a", "landcover"),
        _landcover,
    ),
    "reconstruction": Study(
        "Hidden patches of the mini-world",
        "110 chips of each sensor of test land, three quarters of the patches hidden. error: mean absolute error of "
        "hidden pixels over that of interpolation from the visible ones by inverse distance, so that below 100 is "
        "better. means: correlation of the hidden patches' means within a chip; detail: of the pixels inside them "
        "without their means. Beside them the correlations that interpolation reaches; intervals over chips.",
        (),
        _reconstruction,
    ),
    "retrieval": Study(
        "The same place in another sensor",
        "1,000 places of test land, one date each, in chips of 64 px: how often the 1 or 10 most similar of all chips "
        "of another sensor hold the one of the same place and date; the model is given neither. By chance 0.1 and 1.0. Similarity is the "
        "cosine after each sensor's mean is subtracted; intervals over places. A pixel is 1 m wide in naip, 10 m in both "
        "Sentinels, 30 m in Landsat and 463 m in MODIS, so that chips of most pairs share only their center.",
        (),
        _retrieval,
    ),
}
SPLITS = {
    "given": "on other land (given)",
    "blocks": "by blocks of land",
    "random": "at random",
    "rasters": "leave one tile out",
    "windows": "windows at random",
}
HEAD = """# Results

Written by `python -m clay_lib results`; all rows, each with its data, split, seeds, weights and command, are in
`results.csv`. Scores are in percent, with 95 % bootstrap intervals. The baselines are not trained: pixel statistics,
color histograms, random convolutions, and the same architecture with random weights. The lead is over the best baseline
of that probe, chosen on the test chips themselves, which favors the baseline. A random split overestimates scores: the
last table of a section shows by how many points. Rows without data keep the date of their last run.
`tests/evaluation/test_baselines.py` compares the baselines with published figures."""
