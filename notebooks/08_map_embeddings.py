# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 08 Embedding maps
#
# > **Where else does it look like this, and what changed?**
#
# You will see
# - an area and dates turned into vectors on a fixed grid, with a forecast of the cost,
# - the places most similar to one that you choose, and how a few examples improve the result,
# - a map of change between two dates, by embeddings and by plain pixels.
#
# ![Where this notebook stands: maps](flow/08_map_embeddings.png)
#
# | prerequisites | minutes | data |
# | --- | --- | --- |
# | [06 Embeddings](06_see_embeddings.ipynb) | 0.7 on two cores | a STAC archive of the synthetic Earth, served on this machine; or a public archive, with a network |
#
# The code is the same for both: it searches a STAC archive, reads pixels over HTTP and embeds them. For real satellite
# images, set `area`, `before` and `after` below.

# %%
import geopandas as gpd
import numpy as np
import rasterio
import torch
from IPython.display import display
from odc.geo.geobox import GeoBox
from sklearn.metrics import roc_auc_score

from clay_lib import SENSORS, Clay, areas, figures, runs
from clay_lib.course import checks
from clay_lib.evaluation import principal_components

# %% tags=["parameters"]
seed: int = 0  # of the synthetic Earth
out: str = ""  # folder for results; empty: papermill_runs/lab/08_map_embeddings
weights: str = "clay-mini"  # the small weights of this repository; or a path; or what 04 saved: notebook_04.safetensors
sensor: str = "sentinel-2-l2a"  # whose archive is searched
area: list = []  # west, south, east, north in degrees, of a public archive; empty: the synthetic Earth
url: str = ""  # another STAC API with the same collections; empty: the sensor's public one
before: str = "2023-01-14"  # a day, or first/last day, of which the least cloudy image of each tile is used
after: str = "2024-01-16"  # the same, after the change
extent: int = 5760  # meters a side of the synthetic Earth's area
tile: int = 64  # pixels a side of a tile: one vector each
overlap: int = 16  # pixels beyond the edges of a tile that its patches see
like: list = []  # lat, lon of the place to search for; empty: a tile of land_cover, or the center of a public area
land_cover: int = 50  # WorldCover code of that tile: 50 is built-up
k: int = 6  # number of results

# %% [markdown]
# ## An archive
#
# Satellite archives share one language, **STAC**: a search with an area and dates returns a list of images.
#
# > **On a laptop.** Without a network, a small archive is written and served here: two images of the synthetic Earth, a
# > year apart. Between the dates a forest is cleared, so that the true change is known.

# %%
out_dir = runs.output_folder(out, "08_map_embeddings")
study = areas.open_study_area(
    out_dir / "archive", sensor, [before, after], bounds=area, url=url, extent=extent, tile=tile, seed=seed
)
bounds = study.bounds
print("west {:.4f}, south {:.4f}, east {:.4f}, north {:.4f}".format(*bounds))

# %% [markdown]
# ## Cost
#
# The Earth is cut into tiles on a fixed grid: a place has the same tile, with the same name, in every run. The forecast
# counts tiles, bytes and minutes before anything is read.

# %%
clay = Clay.load(weights)
kwargs = dict(url=study.url, size=tile, dense="cog", overlap=overlap, store="int8", name=weights.split(".")[0])
print(areas.embed_area(clay, sensor, bounds, before, out_dir / "before", forecast=True, **kwargs))

# %% [markdown]
# ## Embedding both dates
#
# Each tile becomes one row of a GeoParquet table: outline, date, and vector as 8-bit integers. Each patch of 8 x 8
# pixels becomes one cell of a raster with as many bands as the vector has numbers. A tile is read with some overlap,
# and neighbors are blended, so that tiles leave few traces. Running the same command again computes nothing twice.

# %%
dates = {"before": before, "after": after}
results = {}
for name, date in dates.items():
    results[name] = areas.embed_area(clay, sensor, bounds, date, out_dir / name, progress=False, **kwargs)
    print(f"{name}: {results[name].jobs} tiles, {results[name].rows} vectors")
no_place = areas.embed_area(
    clay, sensor, bounds, before, out_dir / "no_place", without="place,date", progress=False, **kwargs
)


# %%
def read_raster(path):
    """(bands [D, h, w], transform, CRS)."""
    with rasterio.open(path) as file:
        return file.read(), file.transform, str(file.crs)


(first, cells, crs), (second, cells_after, _) = (read_raster(result.rasters[0]) for result in results.values())
D, h, w = first.shape
P = clay.model.config.patch_size
assert (D, cells) == (clay.model.config.dim, cells_after) and second.shape == first.shape
known = np.isfinite(first).all(axis=0) & np.isfinite(second).all(axis=0)  # [h, w], data on both dates
print(f"{D} bands of {h} x {w} patches of {cells.a:g} m in {crs}, {known.mean():.0%} with data on both dates")

# %% [markdown]
# The images themselves, on the pixels below these patches, are read from the archive for the figures.

# %%
grid = GeoBox((h * P, w * P), cells * cells.scale(1 / P), crs)
pixels = {}
for name, date in dates.items():
    acquisition = areas.find_acquisitions(sensor, bounds, date, url=study.url)[0]
    bands = areas.read_acquisition(acquisition, grid, clouds="keep")
    pixels[name] = np.stack([bands[band].values for band in SENSORS[sensor].band_names])  # [C, H, W]
    print(f"{name}: {acquisition.when:%Y-%m-%d}, {pixels[name].shape}")
study.close()
half = {n: p.reshape(len(p), h * P // 2, 2, w * P // 2, 2).mean(axis=(2, 4)) for n, p in pixels.items()}
rgb = {name: figures.rgb(p, sensor, like=half["before"]) for name, p in half.items()}  # half the detail: a smaller file
half_transform = tuple(grid.transform * grid.transform.scale(2))[:6]

# %% [markdown]
# ## Embeddings in color
#
# The three directions in which the patches of both dates differ most, the principal components, become red, green and
# blue. Similar colors mean similar embeddings, left and right.

# %%
components = principal_components(np.stack([first, second]).transpose(0, 2, 3, 1))  # [2, h, w, 3]
colors = figures.components_to_rgb(components, known)
layers = {
    "before": figures.Layer("before", rgb["before"], crs, half_transform),
    "after": figures.Layer("after", rgb["after"], crs, half_transform),
    "embeddings before": figures.Layer("embeddings before", colors[0], crs, cells, valid=known),
    "embeddings after": figures.Layer("embeddings after", colors[1], crs, cells, valid=known),
}
fig = figures.static_map(list(layers.values()), size=2.5)
_ = figures.save(fig, out_dir / "1_embeddings.png")

# %% [markdown]
# ## How much of it is the place?
#
# Clay also receives place and date. How much of a map is their code rather than the land? The same pixels are given
# another place, then another date, and the area is embedded once more without either. Each map has its own mean
# subtracted, and both share their principal components.

# %%
print("\n".join(results["before"].effect_sentences()))
maps = np.stack([first, read_raster(no_place.rasters[0])[0]])  # [2, D, h, w]
maps -= maps[:, :, known].mean(axis=2)[:, :, None, None]
cosine = (maps[0] * maps[1]).sum(axis=0) / np.linalg.norm(maps, axis=1).prod(axis=0).clip(1e-9)  # [h, w]
print(f"patches with and without either: 1 - cosine {1 - cosine[known].mean():.5f} on average, about 1 if unrelated")
both = figures.components_to_rgb(principal_components(maps.transpose(0, 2, 3, 1)), known)
names = ("with place and date", "without")
pair = [figures.Layer(name, image, crs, cells, valid=known) for name, image in zip(names, both, strict=True)]
fig = figures.static_map(pair, size=3.0)
_ = figures.save(fig, out_dir / "1_place_and_date.png")

# %% [markdown]
# ## Similarity search
#
# The similarity of two places is the cosine of their vectors: 1 for the same direction, 0 for unrelated ones. The
# search compares the query with every row, exactly, and takes less than a second for a million rows. The place itself
# is excluded.

# %%
tiles = results["before"].vectors()  # a GeoDataFrame: id, geometry, time, vector, ...
cover = {}
if study.world:  # land cover of each tile, to count with; the search never uses it
    cover = {i: study.land_cover(b) for i, b in zip(tiles.id, tiles.bounds.to_numpy(), strict=True)}
query = tuple(like) or ((bounds[1] + bounds[3]) / 2, (bounds[0] + bounds[2]) / 2)
if cover and not like:
    query = max(cover, key=lambda i: (cover[i][0] == land_cover) * cover[i][1])  # the tile with most built-up land

table = areas.open_vectors(out_dir / "before", configuration=results["before"].configuration)
hits = areas.find_similar(table, query, k=k)
areas.write_geojson(hits, out_dir / "hits.geojson")  # for any GIS and web map
hits[["rank", "id", "similarity"]].round(4)

# %% [markdown]
# By hand, the search is one matrix product over the stored 8-bit integers; the length of a vector does not matter.

# %%
values = table.values.astype(np.float64)  # [N, D]
ids = np.array(table.rows["id"].to_pylist())
query_id = areas.find_similar(table, query, k=1, apart=None).id[0]
vector = values[ids == query_id][0]
cosines = values @ vector / np.linalg.norm(values, axis=1) / np.linalg.norm(vector)
order = np.argsort(-cosines)
order = order[ids[order] != query_id][:k]
assert ids[order].tolist() == hits.id.tolist()
torch.testing.assert_close(torch.from_numpy(cosines[order]), torch.from_numpy(hits.similarity.to_numpy()))

# %% [markdown]
# The map shows these tiles beside the answer to the same question for every patch: how similar is its vector to the
# mean of the patches in the query tile? All patches of a scene share one large component, so the scene's mean is
# subtracted first.


# %%
def unit(vectors):
    """[D, ...] -> the same directions, of length one."""
    return vectors / np.linalg.norm(vectors, axis=0).clip(1e-9)


def centered(patches):
    """[D, h, w] minus the mean of the scene, of length one."""
    return unit(patches - patches[:, known].mean(axis=1)[:, None, None])


outlines = {"hits": hits, "query": tiles.loc[tiles.id == query_id, ["geometry"]]}
shape = outlines["query"].to_crs(crs).geometry.iloc[0]
rows, columns = np.mgrid[:h, :w] + 0.5
centers = gpd.GeoSeries.from_xy(*(cells * (columns.ravel(), rows.ravel())))
inside = centers.within(shape).to_numpy().reshape(h, w) & known

# %%
similarity = np.einsum("d,dhw->hw", unit(centered(first)[:, inside].mean(axis=1)), centered(first))
top = float(np.nanmax(np.abs(similarity[~inside])))
layers["similarity"] = figures.Layer(
    "similarity to the query", np.where(known, similarity, np.nan), crs, cells, "RdBu_r",
    (-top, top), "cosine of patch vectors", opacity=0.7,
)  # fmt: skip
fig = figures.static_map([layers["before"], layers["similarity"]], size=3.0, outlines=outlines)
_ = figures.save(fig, out_dir / "2_hits.png")

# %% [markdown]
# ## Positive and negative examples
#
# One example is ambiguous. Mark some results as right and some as wrong, and the query becomes the mean of the right
# vectors minus half the mean of the wrong ones. Half, because all land has much in common. On the synthetic Earth, the
# true land cover plays the part of the person who marks the results, with every tile as the query in turn.


# %%
def precision_with_examples(start, each=2):
    """Share of correct results among the next k, without and with examples; None if there are too few of either."""
    ranked, same = areas.find_similar(table, start, k=3 * k), [i for i in cover if cover[i][0] == cover[start][0]]
    right, wrong = ([i for i in ranked.id if (i in same) == want][:each] for want in (True, False))
    if min(len(right), len(wrong)) < each or len(same) < 2 * each + 2:
        return None
    rest = ranked[~ranked.id.isin([*right, *wrong])][:k]  # the same candidates, in the order of the first search
    better = areas.find_similar(table, start, positives=right, negatives=wrong, k=len(rest))
    return [found.id.isin(same).mean() for found in (rest, better)]


pairs = [pair for start in cover if (pair := precision_with_examples(start)) is not None]
precision = np.array(pairs).reshape(-1, 2)
if len(precision):
    without, with_examples = precision.mean(axis=0)
    print(
        f"{len(precision)} queries: {without:.0%} of results have the same land cover, {with_examples:.0%} with examples"
    )

# %% [markdown]
# ## Change
#
# Two dates of one place differ for many reasons: haze, rain, the height of a crop, and sometimes a real change. Plain
# pixels count them all. The distance between embeddings, one minus the cosine of a patch's vectors on both dates,
# should respond more to real change than to the rest. For both measures, each date's mean over the scene is subtracted
# first.

# %%
change = np.where(known, 1 - (centered(first) * centered(second)).sum(axis=0), np.nan)  # [h, w], 0 to 2
normalized = [SENSORS[sensor].normalize(p) for p in pixels.values()]
shifted = [p - np.nanmean(p, axis=(1, 2), keepdims=True) for p in normalized]
pixel_change = np.abs(shifted[1] - shifted[0]).mean(axis=0).reshape(h, P, w, P).mean(axis=(1, 3))  # [h, w]
pixel_change = np.where(known, pixel_change, np.nan)
rasters = [result.rasters[0] for result in results.values()]
library = areas.map_change(*rasters, out_dir / "change.tif")  # the same, as `clay change` writes it
np.testing.assert_allclose(library, change, atol=1e-4)

# %%
score, contrast, outline = {}, {}, {}
if study.event:
    center = study.event_outline(crs).centroid.iloc[0]
    x, y = cells * (columns, rows)
    distance = np.hypot(x - center.x, y - center.y) / study.event.radius  # 1: about the edge of the clearing
    cleared, unchanged = known & (distance < 0.75), known & (distance > 1.35)  # patches across the edge are neither
    outline = {"cleared": gpd.GeoDataFrame(geometry=study.event_outline(crs))}
    for name, measure in {"embeddings": change, "pixels": pixel_change}.items():
        score[name] = roc_auc_score(cleared[cleared | unchanged], measure[cleared | unchanged])
        contrast[name] = np.median(measure[cleared]) / np.median(measure[unchanged])
        print(f"{name:<10} AUROC {score[name]:.3f}; median {contrast[name]:.1f} times that of unchanged patches")
    runs.claim(score["embeddings"] > 0.9, "embeddings find the cleared patches")

# %%
panels = {
    "change": (change, "change of embeddings", "1 - cosine of patch vectors"),
    "pixels": (pixel_change, "change of pixels", "mean difference, standard deviations"),
}
for name, (measure, title, label) in panels.items():
    limits = (0, float(np.nanpercentile(measure, 99.5)))
    layers[name] = figures.Layer(title, measure, crs, cells, "magma", limits, label, opacity=0.7)
fig = figures.static_map([layers["change"], layers["pixels"]], size=3.2, outlines=outline)
_ = figures.save(fig, out_dir / "3_change.png")

# %% [markdown]
# A clearing is an easy change, which plain pixels find too. Around it the embeddings have changed slightly, in the
# shape of tiles: the vector of a patch depends on all patches of its tile. Pixels have no such context and show the
# sharper edge.
#
# ## One map
#
# The sliders at the lower right blend the layers. With a network, `basemap="OpenStreetMap"` adds streets.

# %%
shown = [layers[name] for name in ("before", "after", "embeddings after", "similarity", "change")]
still = figures.static_map(shown, size=3.2, outlines=outlines)
display(figures.show_on_map(shown, still=still, outlines=outlines))

# %% [markdown]
# | file in the results folder | content | in QGIS |
# | --- | --- | --- |
# | `before/vectors/.../*.parquet` | GeoParquet: outline, date and vector of each tile | drag onto the map |
# | `before/dense/.../*.tif` | patch vectors, one band for each number | three bands as red, green and blue |
# | `change.tif` | change of embeddings | singleband pseudocolor |
# | `hits.geojson` | results with rank and similarity | label with `rank` |
#
# `after/` holds the same for the second date. Python opens them with geopandas and rasterio, DuckDB reads the Parquet.

# %% [markdown]
# ## Exercises, solved
#
# Three exercises: [the exercise notebook](exercises/08_map_embeddings.ipynb) has stubs, hints and checks,
# and needs neither an archive nor weights.

# %% [markdown] tags=["exercise"]
# ### Exercise 1: a fixed grid of tiles
# *Easy, 5 minutes*
#
# Two people embed two overlapping areas. Their vectors can be compared only if the tiles agree, so the number of a tile
# must not depend on the area requested.
#
# Return the tile of each point as column (counted eastward, along x) and row (counted northward, along y). A tile has
# `size` pixels of `gsd` meters on each side. The lower left corner of tile (0, 0) lies at `anchor`; numbers are
# negative west and south of it. No point of the check lies on an edge.
#
# **Hint.** How many tile sides is the point away from the anchor? Round down.
#
# **Hint.** Down, not toward zero: `np.floor(-0.2)` is -1, `int(-0.2)` is 0. `np.stack([...], axis=1)` puts columns and
# rows side by side.


# %% tags=["solution"]
def tile_of(x, y, gsd, size, anchor):
    """x, y [N] and anchor (x, y) in meters, gsd in meters per pixel, size in pixels -> column and row [N, 2]."""
    side = gsd * size
    return np.floor(np.stack([(x - anchor[0]) / side, (y - anchor[1]) / side], axis=1)).astype(int)


# %% tags=["check"]
checks.check_tile_of(tile_of)

# %% [markdown] tags=["exercise"]
# ### Exercise 2: search with positive and negative examples
# *Medium, 10 minutes*
#
# One example is ambiguous: the town, or the river through it? Write the search that the notebook uses with examples.
#
# Scale every vector to length one. The query is the mean of the positive examples minus half the mean of the negative
# ones. Return the row numbers of the k vectors with the highest cosine to it, the most similar first, without the
# examples.
#
# **Hint.** `unit[right].mean(axis=0)` is the mean of the positive examples. The length of the query does not affect the
# order.
#
# **Hint.** `similarity[right] = -np.inf`, and the same for the negative ones, excludes examples;
# `np.argsort(-similarity)` sorts from the largest down.


# %% tags=["solution"]
def more_like(vectors, right, wrong, k):
    """vectors [N, D], right and wrong: row numbers of examples -> row numbers of the k most similar others, best first, [k]."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = unit @ (unit[right].mean(axis=0) - 0.5 * unit[wrong].mean(axis=0))
    similarity[right], similarity[wrong] = -np.inf, -np.inf
    return np.argsort(-similarity)[:k]


# %% tags=["check"]
checks.check_search(more_like)

# %% [markdown] tags=["exercise"]
# ### Exercise 3: tiles without seams
# *Hard, 20 minutes*
#
# A map made of tiles shows their edges, because patches on both sides of an edge were embedded in different contexts.
# If tiles overlap and each fades out toward its edges, the change is gradual.
#
# Blend tiles `[T, h, w]` into an image `[H, W]`. Tile t starts in row `corners[t, 0]` and column `corners[t, 1]` and
# lies completely inside the image. Each cell of the image is the weighted mean of the tiles that cover it. The weight
# of a tile's cell is the distance to the nearer of its upper and lower edge times the distance to the nearer of its
# left and right edge, in cells and from the center of the cell: 0.5, 1.5, 2.5, 2.5, 1.5, 0.5 along a side of six. A
# cell that is NaN in a tile has no weight there; a cell that no tile covers is NaN.
#
# **Hint.** `i = np.arange(n) + 0.5` are the distances from one end, `n - i` those from the other; take the smaller.
# `np.outer(down, across)` multiplies the two sides to `[h, w]`.
#
# **Hint.** Keep two images of zeros: add `weight * tile` to one and `weight` to the other, both only where the tile is
# finite, and divide at the end. The slice of a tile is `image[row : row + h, column : column + w]`.
#
# **Hint.** NaN times 0 is NaN: `np.where(known, weight * tile, 0)`. 0 / 0 gives the NaN that is wanted;
# `with np.errstate(invalid="ignore"):` avoids the warning.


# %% tags=["solution"]
def blend(tiles, corners, shape):
    """tiles [T, h, w], corners [T, 2] row and column in the image, shape (H, W) -> weighted means [H, W]."""
    height, width = tiles.shape[1:]
    down, across = (np.minimum(np.arange(n) + 0.5, n - np.arange(n) - 0.5) for n in (height, width))
    weight, total, weights = np.outer(down, across), np.zeros(shape), np.zeros(shape)
    for tile, (row, column) in zip(tiles, corners, strict=True):
        known, window = np.isfinite(tile), np.s_[row : row + height, column : column + width]
        total[window] += np.where(known, weight * tile, 0)
        weights[window] += weight * known
    with np.errstate(invalid="ignore"):
        return total / weights


# %% tags=["check"]
checks.check_blend(blend)

# %% [markdown]
# ## What you have learned
#
# - An area and dates become a table of vectors and a raster of patch vectors, on a fixed grid and in open formats.
# - Similarity search is one matrix product; positive and negative examples make it more specific.
# - The distance between the embeddings of two dates finds a known change.
#
# **Exercise.** Set `like` to a place on the river, within the bounds printed above. Do examples help more there, or
# less?
#
# On the command line: `clay embed` (with `--forecast` first), then `clay search FOLDER --like "lat,lon" --out
# hits.geojson`. `clay archive data/cache/archive` serves the archive of the synthetic Earth.
#
# Next: which setting is better, and how much of that is noise? [09 Parameter sweeps](09_read_sweeps.ipynb).

# %%
metrics = {
    "tiles a date": len(tiles),
    "numbers a vector": D,
    "hits": len(hits),
    "best similarity": float(hits.similarity[0]),
}
if len(precision):
    metrics |= {"hits of the same land": float(without), "the same with examples": float(with_examples)}
for name in score:
    metrics |= {f"change found by {name}": float(score[name]), f"contrast of change, {name}": float(contrast[name])}
runs.write_metrics(out_dir, metrics)
