"""Products of a trained model: embeddings of chips or of an area, and how well hidden patches are rebuilt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from einops import rearrange

from clay_lib.chips import Chips, in_cache
from clay_lib.contract import ContractError
from clay_lib.encoder import image_of, mask_of
from clay_lib.model import Clay
from clay_lib.sensors import SENSORS


def __getattr__(name: str):  # `embed_area` needs the libraries of maps and rasters, embedding chips does not
    if name == "embed_area":
        from clay_lib.area import embed_area

        return embed_area
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def batches(chips: Chips, size: int):
    """Slices of at most `size` chips, in order."""
    for start in range(0, len(chips), size):
        yield chips[start : start + size]


def embed_chips(clay: Clay, chips: Chips, *, batch_size: int = 64, **reading) -> dict[str, np.ndarray]:
    """{"class token": [N, D], "patch mean" of the valid ones: [N, D]} with nothing masked, float32.

    reading: what `Clay.embed` takes besides place and date, for chips cut from a file: bands, gsd, in_decibel.
    """
    parts = batches(chips, batch_size)
    made = [clay.embed(part.pixels, chips.sensor, **part.place_and_time, **reading) for part in parts]
    return {
        "class token": np.concatenate([out.chip.cpu().numpy() for out in made]),
        "patch mean": np.concatenate([out.mean.cpu().numpy() for out in made]),
    }


@torch.inference_mode()
def reconstruction_scores(
    clay: Clay, chips: Chips, *, mask_ratio: float = 0.75, seed: int = 0, batch_size: int = 64
) -> pd.DataFrame:
    """Mean absolute error of hidden pixels per band, beside that of guessing each chip's visible mean of the band.

    One row a band: sensor, band, error, mean_error (both in standard deviations of the sensor's published statistics),
    ratio = error / mean_error, and native_error in the sensor's native numbers (dB for radar).
    """
    sensor = SENSORS[chips.sensor]
    generator = torch.Generator(clay.model.proj.weight.device).manual_seed(seed)
    sums = torch.zeros(2, len(sensor.bands), dtype=torch.float64)
    for part in batches(chips, batch_size):
        cube = clay.cube(part.pixels, sensor, **part.place_and_time)
        out = clay.model(cube, mask_ratio=mask_ratio, generator=generator)
        layout = {"grid": out.encoded.grid, "patch_size": clay.model.config.patch_size, "size": cube.pixels.shape[-2:]}
        hidden = mask_of(out.encoded.mask, **layout)  # [B, 1, H, W]
        measured = 1.0 if cube.valid is None else cube.valid.float()  # holes are neither guessed from nor scored
        hidden, shown = hidden * measured, (1 - hidden) * measured
        guess = (cube.pixels * shown).sum((2, 3), keepdim=True) / shown.sum((2, 3), keepdim=True).clamp(min=1)
        for k, rebuilt in enumerate((image_of(out.reconstruction, **layout), guess)):
            error = ((rebuilt - cube.pixels).abs() * hidden).sum((2, 3)) / hidden.sum((2, 3)).clamp(min=1)
            sums[k] += error.sum(0).cpu()
    error, mean_error = (sums / len(chips)).numpy()
    table = pd.DataFrame({"sensor": sensor.name, "band": sensor.band_names, "error": error, "mean_error": mean_error})
    return table.assign(ratio=error / mean_error, native_error=error * sensor.statistics()[1])


def principal_components(patches: np.ndarray, count: int = 3) -> np.ndarray:
    """Patch embeddings [B, h, w, D] -> their first components over all patches together, [B, h, w, count].

    Patches that were left out are NaN before and after.
    """
    from sklearn.decomposition import PCA

    flat = rearrange(patches, "B h w D -> (B h w) D")
    known = np.isfinite(flat).all(axis=1)
    parts = np.full((len(flat), count), np.nan, flat.dtype)
    parts[known] = PCA(count, random_state=0).fit_transform(flat[known])
    return rearrange(parts, "(B h w) n -> B h w n", h=patches.shape[1], w=patches.shape[2])


def embed(
    out: str,
    area: str = "",
    dates: str = "",
    *,
    weights: str = "clay-mini.safetensors",
    sensor: str = "sentinel-2-l2a",
    scene: str = "",
    archive: str = "",
    url: str = "",
    pick: str = "best",
    max_cloud: float = 100.0,
    clouds: str = "mask",
    size: int = 256,
    min_valid: float = 0.5,
    store: str = "float16",
    dense: str = "",
    overlap: int = -1,
    components: int = 0,
    level: bool = True,
    batch_size: int = 8,
    device: str = "auto",
    precision: str = "float32",
    scheduler: str = "",
    workers: int = 0,
    processes: bool = False,
    forecast: bool = False,
    network: float = 12.5,
) -> int:
    """Embed an area: vectors of its tiles as GeoParquet, and patch vectors as a raster. The same command resumes.

    Example: clay embed prague "14.4,50.0,14.6,50.1" 2023-06-01/2023-08-31 --dense cog --components 3 --forecast

    Args:
        out: folder of the results
        area: west,south,east,north in degrees, or a GeoJSON, GeoPackage or GeoParquet file; a scene needs none
        dates: such as 2023-06-01/2023-08-31; of a scene: when it was taken
        weights: a file of weights, a shipped one, or hub:owner/name/path
        sensor: one of the registered sensors
        scene: a raster file or a folder of single bands of your own, instead of an archive
        archive: another public archive of the sensor than the first
        url: another STAC API with the same collections
        pick: best (a tile's clearest date) or all dates
        max_cloud: percent; images with more are left out
        clouds: mask or keep what the archive calls clouds
        size: pixels a side of a tile
        min_valid: share of a patch that must have been measured
        store: float16 or int8
        dense: cog or zarr for patch vectors as a raster
        overlap: pixels around a tile that dense features see; -1: an eighth of its size
        components: bands of the raster by principal components; 0: the vectors as they are
        level: subtract from the raster what vectors owe to their place in the tile
        batch_size: tiles the model sees at once
        device: auto, cpu or cuda
        precision: of the weights: float32, bfloat16 or float16
        scheduler: address of a Dask scheduler, or slurm; by default a cluster of this machine
        workers: reading threads, or processes, or SLURM jobs
        processes: read in processes rather than threads
        forecast: say what it would take, and stop
        network: MB/s that the forecast assumes of reading
    """
    from clay_lib.area import embed_area

    if precision not in ("float32", "bfloat16", "float16"):
        raise ContractError(
            "precision", found=precision, expected="float32, bfloat16 or float16", cause="a misspelling"
        )
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    path = weights if weights.startswith("hub:") else in_cache(weights)
    clay = Clay.load(path, device=device, dtype=getattr(torch, precision))
    options: dict[str, Any] = dict(
        scene=scene or None, archive=archive or None, url=url or None, pick=pick, max_cloud=max_cloud, clouds=clouds,
        size=size, min_valid=min_valid, store=store, dense=dense, overlap=None if overlap < 0 else overlap,
        components=components, level=level, batch_size=batch_size, scheduler=scheduler, workers=workers, processes=processes,
        forecast=forecast, network=network, name=Path(weights).stem,
    )  # fmt: skip
    where = None if scene and not area else _place(area)
    print(embed_area(clay, sensor, where, dates or None, out, **options))
    return 0


def _place(area: str):
    """ "14.4,50.0,14.6,50.1" as four numbers, anything else as a file's name."""
    try:
        return tuple(float(part) for part in area.split(","))
    except ValueError:
        return area
