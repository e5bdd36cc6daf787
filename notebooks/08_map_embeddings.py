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
# # 08 Maps of embeddings
#
# > **Where else does it look like here, and what changed?**
#
# You will see
# - an area and a date turned into vectors on a fixed grid, with the cost told beforehand,
# - the places most like one that you point at, and how a few examples for and against sharpen the answer,
# - the same area on two dates, and a map of what changed, by embeddings and by plain pixels side by side.
#
# | needs | minutes | data |
# | --- | --- | --- |
# | small weights, shipped in `data/weights`; see [06 Seeing embeddings](06_see_embeddings.ipynb) for what they know | about 1 on two cores; no GPU needed (not measured there) | an archive of the mini-world, served on this machine; or a public archive, with a network |
#
# The client is the same for both: it searches a STAC archive, reads the pixels it needs over HTTP and embeds them. For true
# satellite images set `online`, `area`, `before` and `after` below.

# %%
import atexit
from contextlib import ExitStack

import geopandas as gpd
import matplotlib.pyplot as plt
import numpy as np
import rasterio
import requests
import torch
from IPython.display import display
from odc.geo.geobox import GeoBox
from sklearn.metrics import roc_auc_score

from clay_lib import Clay, figures
from clay_lib.areas.archives import archives_of, find_acquisitions
from clay_lib.areas.area import embed_area
from clay_lib.areas.local import Event, serve_archive, write_archive
from clay_lib.areas.reading import read_acquisition
from clay_lib.areas.search import open_vectors, search, write_geojson
from clay_lib.course import checks
from clay_lib.data.rasters import write_raster
from clay_lib.evaluation import principal_components
from clay_lib.figures.maps import Layer, show_on_map, static_map
from clay_lib.runs.notebooks import output_folder, write_metrics
from clay_lib.sensors import SENSORS
from clay_lib.world.earth import MiniWorld

_ = torch.set_grad_enabled(False)

# %% tags=["parameters"]
seed: int = 0  # of the mini-world
out: str = ""  # folder for results; empty: papermill_runs/lab/08_map_embeddings
weights: str = "clay-mini.safetensors"  # shipped; or a path, or what 04 put into data/cache: notebook_04.safetensors
sensor: str = "sentinel-2-l2a"  # whose archive is asked
online: bool = False  # ask the sensor's public archive; needs a network
url: str = ""  # another STAC API with the same collections; empty: the public one
area: list = []  # west, south, east, north in degrees, for a real archive; empty: the mini-world's
before: str = "2023-01-14"  # a day, or first/last day; of these the clearest image of each tile
after: str = "2024-01-16"  # the same, after the event
extent: int = 5760  # metres a side, of the mini-world's area
tile: int = 64  # pixels a side of a tile: one vector each
overlap: int = 16  # pixels beyond a tile's edges that its patches see
like: list = []  # lat, lon of the place to find more of; empty: the middle, in the mini-world a tile of land_cover
land_cover: int = 50  # WorldCover code of that tile: 50 is built-up
k: int = 6  # hits

# %% [markdown]
# ## An archive
#
# Satellite archives speak one language, STAC: tell them an area and dates, they answer with a list of images. Without a
# network a small archive is made here: two images of a piece of the mini-world, a year apart, behind a true STAC server and
# a file server on this machine. Between the dates a forest is cleared, so that there is a change whose place is known.

# %%
out_dir = output_folder(out, "08_map_embeddings")
address = url or archives_of(sensor)[0].url
reachable = False
if online:
    try:
        reachable = requests.get(address, timeout=5).ok
    except requests.RequestException as error:
        print(f"{address} does not answer ({type(error).__name__}): the mini-world instead")
made = not reachable
server, world, event = (
    ExitStack(),
    MiniWorld(seed),
    Event("2023-09-01", 60, 0.225 * extent, 0.295 * extent, 0.07 * extent),
)
_ = atexit.register(server.close)
if made:
    place = world.place(30, 3, "test")  # grass, forest, fields, a town and a river; never trained on
    written = write_archive(out_dir / "archive", sensors=[sensor], place=place, extent=extent,
                            dates=[before, after], events=[event], seed=seed)  # fmt: skip
    address = server.enter_context(serve_archive(written))
    tall = (extent / 2 - tile * SENSORS[sensor].gsd) / 111_320  # degrees: tiles that touch the area lie in the images
    wide = tall / np.cos(np.radians(place.lat))
    area = [place.lon - wide, place.lat - tall, place.lon + wide, place.lat + tall]
assert len(area) == 4, "a real archive needs an area: west, south, east, north"
print(
    f"{'the mini-world' if made else sensor} at", "west {:.4f}, south {:.4f}, east {:.4f}, north {:.4f}".format(*area)
)

# %% [markdown]
# ## What it would cost
#
# The earth is cut into tiles on a grid that never moves: a place has the same tile, with the same name, in every run. The
# forecast counts tiles, bytes and minutes before a single pixel is fetched.

# %%
clay = Clay.load(weights)
how = dict(url=address, size=tile, dense="cog", overlap=overlap, store="int8", name=weights.split(".")[0])
print(embed_area(clay, sensor, area, before, out_dir / "before", forecast=True, **how))

# %% [markdown]
# ## From a place to vectors
#
# Now in earnest, for both dates. Each tile becomes one row of a GeoParquet table: its outline, its date, and its **vector**
# in 8-bit whole numbers. Each patch of 8 x 8 pixels also becomes one cell of a raster with as many bands as the vector has
# numbers. A tile is read a little beyond its edges, and neighbours are blended, so that tiles leave few traces. Run again,
# nothing is done twice.

# %%
results = {}
for name, dates in {"before": before, "after": after}.items():
    results[name] = embed_area(clay, sensor, area, dates, out_dir / name, progress=False, **how)
    done = results[name]
    print(f"{name}: {done.jobs} tiles, {done.rows} vectors written, {done.skipped} there already")


# %%
def read_raster(path):
    """(bands [D, h, w], its transform, its CRS)."""
    with rasterio.open(path) as file:
        return file.read(), file.transform, str(file.crs)


rasters = {name: read_raster(done.rasters[0]) for name, done in results.items()}
(first, cells, crs), (second, cells_after, _) = rasters.values()
D, h, w = first.shape
P = clay.model.config.patch_size
assert (D, cells) == (clay.model.config.dim, cells_after) and second.shape == first.shape
known = np.isfinite(first).all(axis=0) & np.isfinite(second).all(axis=0)  # [h, w] where both dates have data
print(f"{D} bands of {h} x {w} patches of {cells.a:g} m in {crs}, {known.mean():.0%} of them seen on both dates")

# %% [markdown]
# ## The pixels, for the eye
#
# The same images on the pixels below those patches. The pictures are drawn at half their detail, which keeps this file small.

# %%
gsd = cells.a / P
grid = GeoBox((h * P, w * P), cells * cells.scale(1 / P), crs)
pixels = {}
for name, dates in {"before": before, "after": after}.items():
    acquisition = find_acquisitions(sensor, area, dates, url=address)[0]
    seen = read_acquisition(acquisition, grid, clouds="keep")
    pixels[name] = np.stack([seen[band].values for band in SENSORS[sensor].band_names])  # [C, H, W]
    print(f"{name}: {acquisition.when:%Y-%m-%d}, {pixels[name].shape}, {', '.join(acquisition.ids)}")
server.close()
halves = {
    name: image.reshape(len(image), h * P // 2, 2, w * P // 2, 2).mean(axis=(2, 4)) for name, image in pixels.items()
}
pictures = {name: figures.rgb(image, sensor, like=halves["before"]) for name, image in halves.items()}
coarse = tuple(grid.transform * grid.transform.scale(2))[:6]

# %% [markdown]
# ## A map of alikeness
#
# The three directions in which the patches of both dates differ most (principal components) become red, green and blue.
# Alike colours are alike embeddings, on the left and on the right; the colours themselves have no meaning.

# %%
both = np.stack([first, second]).transpose(0, 2, 3, 1)  # [2, h, w, D]
parts = principal_components(both)  # [2, h, w, 3]
colours = figures.components_to_rgb(parts, known)
layers = {
    "before": Layer("before", pictures["before"], crs, coarse),
    "after": Layer("after", pictures["after"], crs, coarse),
    "embeddings before": Layer("embeddings before", colours[0], crs, cells, valid=known),
    "embeddings after": Layer("embeddings after", colours[1], crs, cells, valid=known),
}
fig = static_map(list(layers.values()), size=2.5)
_ = figures.save(fig, out_dir / "embeddings.png")
plt.show()

# %% [markdown]
# ## Where else does it look like here
#
# The likeness of two places is the cosine of the angle between their vectors: 1 for the same direction, 0 for unrelated
# ones. The search compares the place with every row of the table, as exactly as if all were written out in NumPy, and it
# stays under a second for a million rows. The place itself is left out, on all dates.

# %%
tiles = results["before"].vectors()  # the table as a GeoDataFrame: id, geometry, time, vector, ...


def land_of(bounds):
    """(commonest land cover of 5 x 5 points in west, south, east, north, its share), as only the mini-world can tell."""
    west, south, east, north = bounds
    lon, lat = np.meshgrid(np.linspace(west, east, 7)[1:-1], np.linspace(south, north, 7)[1:-1])
    codes, counts = np.unique(world.land_cover(lat, lon), return_counts=True)
    return int(codes[counts.argmax()]), counts.max() / counts.sum()


lands = {i: land_of(bounds) for i, bounds in zip(tiles.id, tiles.bounds.to_numpy(), strict=True)} if made else {}
if like or not made:
    here = tuple(like) or ((area[1] + area[3]) / 2, (area[0] + area[2]) / 2)
else:
    here = max(lands, key=lambda i: (lands[i][0] == land_cover) * lands[i][1])

# %%
table = open_vectors(out_dir / "before", configuration=results["before"].configuration)  # another run may lie there too
hits = search(table, here, k=k)
hits[["rank", "id", "similarity"]].round(4)

# %% [markdown]
# By hand it is one matrix product. The table's 8-bit numbers are what `search` sees; how long a vector is plays no part.

# %%
numbers = table.values.astype(np.float64)
names = np.array(table.rows["id"].to_pylist())
asked = search(table, here, k=1, apart=None).id[0]  # the row that lies over the place: the most alike is it itself
query = numbers[names == asked][0]
cosines = numbers @ query / np.linalg.norm(numbers, axis=1) / np.linalg.norm(query)
order = np.argsort(-cosines)
order = order[names[order] != asked][:k]

assert names[order].tolist() == hits.id.tolist()
torch.testing.assert_close(torch.from_numpy(cosines[order]), torch.from_numpy(hits.similarity.to_numpy()))
print(f"{len(numbers)} rows of {D} numbers ({table.values.dtype}): the same {len(order)} hits in the same order")

# %% [markdown]
# The hits on the map, beside the same question put to every patch of the scene: how alike is its vector to the mean of the
# patches in the place? All patches of a scene have much in common, so the scene's mean is taken away first; without that the
# cosines of all of them lie close together.


# %%
def unit(patches):
    """[D, ...] -> the same directions at length one."""
    return patches / np.linalg.norm(patches, axis=0).clip(1e-9)


def centred(patches):
    """[D, h, w] without the scene's mean, at length one."""
    return unit(patches - patches[:, known].mean(axis=1)[:, None, None])


outlines = {"hits": hits, "the place": tiles.loc[tiles.id == asked, ["geometry"]]}
shape = outlines["the place"].to_crs(crs).geometry.iloc[0]
rows, columns = np.mgrid[:h, :w] + 0.5
middles = gpd.GeoSeries.from_xy(*(cells * (columns.ravel(), rows.ravel())))
inside = middles.within(shape).to_numpy().reshape(h, w) & known
likeness = np.einsum("d,dhw->hw", unit(centred(first)[:, inside].mean(axis=1)), centred(first))
top = float(np.nanmax(np.abs(likeness[~inside])))
layers["likeness"] = Layer(
    "likeness to the place", np.where(known, likeness, np.nan), crs, cells, "RdBu_r",
    (-top, top), "cosine of patch vectors", opacity=0.7,
)  # fmt: skip
fig = static_map([layers["before"], layers["likeness"]], size=3.0, outlines=outlines)
_ = figures.save(fig, out_dir / "hits.png")
plt.show()

# %% [markdown]
# ## A few examples
#
# One place leaves open what was meant by it. Examples say more: name hits that are right and hits that are wrong. The search
# then follows the mean of the right vectors, minus half the mean of the wrong ones. Half, because all land has much in
# common, and taking away all of the wrong ones takes that away too. In the mini-world the true land cover plays the person
# who looks at the hits; it is asked for every place in turn, so that no lucky choice decides.


# %%
def helped(start, each=2):
    """Share of right answers among the next k, without and with examples; None where there is nothing to choose from."""
    ranked, same = search(table, start, k=3 * k), [i for i in lands if lands[i][0] == lands[start][0]]
    right, wrong = ([i for i in ranked.id if (i in same) == want][:each] for want in (True, False))
    if min(len(right), len(wrong)) < each or len(same) < 2 * each + 2:
        return None
    rest = ranked[~ranked.id.isin([*right, *wrong])][:k]  # the same candidates, in the order of the first search
    better = search(table, start, positives=right, negatives=wrong, k=len(rest))
    return [found.id.isin(same).mean() for found in (rest, better)]


precision = np.array([pair for start in lands if (pair := helped(start)) is not None]).reshape(-1, 2)
if len(precision):
    without, with_examples = precision.mean(axis=0)
    print(
        f"{len(precision)} places asked: {without:.0%} of hits are of the same land, {with_examples:.0%} with examples"
    )

# %% [markdown]
# The hits leave as GeoJSON, which every mapping program and every web map opens.

# %%
path = write_geojson(hits, out_dir / "hits.geojson")
again = gpd.read_file(path)
assert again.id.tolist() == hits.id.tolist()
np.testing.assert_allclose(again.bounds, hits.bounds, atol=1e-6)
print(f"{path.name}: {len(again)} polygons, {path.stat().st_size / 1000:.1f} kB")

# %% [markdown]
# ## What changed
#
# Two dates of one place differ for many reasons: haze, rain, the height of a crop, and now and then because the place is
# another. Plain pixels count them all. The distance of embeddings (one minus the cosine of a patch's vectors on the two
# dates) is hoped to count the last kind more than the others. From each date its mean over the scene is taken away first,
# in both measures, so that what befell the whole image alike does not count.


# %%
distance = np.where(known, 1 - (centred(first) * centred(second)).sum(axis=0), np.nan)  # [h, w], 0 to 2
normal = [SENSORS[sensor].normalize(image) for image in pixels.values()]
shift = [image - np.nanmean(image, axis=(1, 2), keepdims=True) for image in normal]
difference = np.abs(shift[1] - shift[0]).mean(axis=0).reshape(h, P, w, P).mean(axis=(1, 3))  # [h, w]
difference = np.where(known, difference, np.nan)
_ = write_raster(out_dir / "change.tif", distance[None].astype(np.float32), crs=crs, transform=tuple(cells)[:6],
                 descriptions=["1 - cosine of patch vectors"], nodata=float("nan"))  # fmt: skip

# %%
score, contrast = {}, {}
if made:
    x, y = gpd.GeoSeries.from_xy([place.lon], [place.lat], crs="EPSG:4326").to_crs(crs).get_coordinates().to_numpy()[0]
    px, py = cells * (columns, rows)
    away = np.hypot(px - x - event.east, py - y - event.north) / event.radius  # 1: about the edge of the clearing
    cleared, others = known & (away < 0.75), known & (away > 1.35)  # its edge is wavy; patches across it are neither
    for what, values in {"embeddings": distance, "pixels": difference}.items():
        score[what] = roc_auc_score(cleared[cleared | others], values[cleared | others])
        contrast[what] = np.median(values[cleared]) / np.median(values[others])
        print(
            f"{what:<10} cleared above other patches in {score[what]:.1%} of pairs; medians {contrast[what]:.1f} to 1"
        )
    assert score["embeddings"] > 0.9, "the change lies where the forest was cleared"

# %%
panels = {
    "change": (distance, "1 - cosine of patch vectors"),
    "pixels": (difference, "mean difference, standard deviations"),
}
titles = {"change": "change of embeddings", "pixels": "change of pixels"}
for what, (values, label) in panels.items():
    limits = (0, float(np.nanpercentile(values, 99.5)))
    layers[what] = Layer(titles[what], values, crs, cells, "magma", limits, label, opacity=0.7)
outline = {}
if made:
    circle = gpd.GeoSeries.from_xy([x + event.east], [y + event.north], crs=crs).buffer(event.radius)
    outline = {"cleared in between, about": gpd.GeoDataFrame(geometry=circle)}
fig = static_map([layers["change"], layers["pixels"]], size=3.2, outlines=outline)
_ = figures.save(fig, out_dir / "change.png")
plt.show()

# %% [markdown]
# A clearing is an easy change, which plain pixels find as well. Around it the embeddings have changed a little too, in the
# shape of tiles: a patch's vector is made in view of all patches of its tile, so it knows of a change next door. Pixels do
# not, and show the sharper edge.
#
# ## All of it on one map
#
# The sliders at the lower right blend the layers. Nothing is fetched: the pictures travel in the notebook. With a network,
# `basemap="OpenStreetMap"` puts streets below.

# %%
shown = show_on_map([layers["before"], layers["after"], layers["embeddings after"], layers["likeness"], layers["change"]],
                    outlines=outlines)  # fmt: skip
shown.to_html(str(out_dir / "map.html"))
display(shown)

# %% [markdown]
# ## What lies in the folder now
#
# | file | what | in QGIS |
# | --- | --- | --- |
# | `before/vectors/.../*.parquet` | GeoParquet: outline, date, vector of each tile | drag onto the map (GDAL 3.8 or newer with Parquet) |
# | `before/dense/.../*.tif` | patch vectors, a band for each number | drag; three bands as red, green and blue |
# | `change.tif` | one band: change of embeddings | drag; singleband pseudocolour |
# | `hits.geojson` | hits with rank and similarity | drag; label with `rank` |
# | `map.html` | the map above as a page of its own | opens in a browser (with a network) |
#
# `after/` holds the same for the second date. Python opens them with geopandas and rasterio, DuckDB reads the Parquet.

# %%
left = sorted(
    p for p in out_dir.rglob("*") if p.suffix in (".parquet", ".tif", ".geojson") and "archive" not in p.parts
)
for file in left:
    print(f"{file.stat().st_size / 1000:9,.0f} kB  {file.relative_to(out_dir)}")
with rasterio.open(out_dir / "change.tif") as file:
    np.testing.assert_array_equal(file.read(1), distance.astype(np.float32))
    assert file.bounds == rasterio.transform.array_bounds(h, w, cells)

# %% [markdown]
# ## Exercises, solved
#
# Three things to write yourself. [The exercises](exercises/08_map_embeddings.ipynb) have a notebook of their own, with
# empty places, hints and checks; it needs no archive and no weights.

# %% [markdown] tags=["exercise"]
# ### Exercise 1: the same tile in every run
# *Easy, 5 minutes*
#
# Two people embed two areas that overlap. Their vectors fit together only if the tiles do, so a tile's number must not
# depend on what is asked for.
#
# Tell for each point in which tile it lies, by column (counted eastwards, along x) and row (counted northwards, along y).
# A tile is `size` pixels of `gsd` metres a side. The lower left corner of tile (0, 0) lies at `anchor`, and numbers are
# negative west and south of it. No point of the check lies on an edge.
#
# **Hint.** How many sides of a tile is the point away from the anchor? Go down to the next whole number.
#
# **Hint.** Down, not towards zero: `np.floor(-0.2)` is -1, `int(-0.2)` is 0. `np.stack([...], axis=1)` puts columns and
# rows side by side.


# %% tags=["solution"]
def tile_of(x, y, gsd, size, anchor):
    """x, y [N] and anchor (x, y) in metres, gsd in metres per pixel, size in pixels -> column and row of each, [N, 2]."""
    side = gsd * size
    return np.floor(np.stack([(x - anchor[0]) / side, (y - anchor[1]) / side], axis=1)).astype(int)


# %% tags=["check"]
checks.check_tile_of(tile_of)

# %% [markdown] tags=["exercise"]
# ### Exercise 2: more like these, less like those
# *Medium, 10 minutes*
#
# One example leaves open what was meant by it: the town, or the river through it? Named hits, right and wrong ones, say
# more. Write the search that the notebook uses with examples.
#
# Bring every vector to length one. Ask for the mean of the right ones minus half the mean of the wrong ones, and give the
# row numbers of the k vectors with the largest cosine to that, the most alike first. Examples, right or wrong, are no hits.
#
# **Hint.** `unit[right].mean(axis=0)` is the mean of the right ones. How long the question is plays no part in the order.
#
# **Hint.** `likeness[right] = -np.inf`, and the same for the wrong ones, keeps examples out; `np.argsort(-likeness)` sorts
# from the largest down.


# %% tags=["solution"]
def more_like(vectors, right, wrong, k):
    """vectors [N, D], right and wrong: row numbers of examples -> row numbers of the k most alike others, best first, [k]."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    likeness = unit @ (unit[right].mean(axis=0) - 0.5 * unit[wrong].mean(axis=0))
    likeness[right], likeness[wrong] = -np.inf, -np.inf
    return np.argsort(-likeness)[:k]


# %% tags=["check"]
checks.check_search(more_like)

# %% [markdown] tags=["exercise"]
# ### Exercise 3: tiles without seams
# *Hard, 20 minutes*
#
# A map made of tiles shows their edges: a patch at an edge was embedded in view of another neighbourhood than the patch
# beside it. If tiles overlap and each fades out before it ends, the change is gradual.
#
# Lay tiles `[T, h, w]` into an image `[H, W]`. Tile t begins in row `corners[t, 0]` and column `corners[t, 1]` of the image
# and lies wholly inside it. Each cell of the image is the weighted mean of what the tiles over it say. The weight of a
# tile's cell is a product: its distance from the nearer of the upper and lower edge, times that from the nearer of the left
# and right one. Distances are in cells and from the cell's middle: 0.5, 1.5, 2.5, 2.5, 1.5, 0.5 along a side of six. A cell
# that is NaN in a tile has no weight there; a cell that no tile knows is NaN.
#
# **Hint.** `i = np.arange(n) + 0.5` are the distances from one end, `n - i` those from the other; the smaller counts.
# `np.outer(down, across)` multiplies the two sides to `[h, w]`.
#
# **Hint.** Keep two images of zeros: add `weight * tile` to one and `weight` to the other, both only where the tile is
# known, and divide in the end. The slice of a tile is `image[row : row + h, column : column + w]`.
#
# **Hint.** NaN times 0 is NaN: `np.where(known, weight * tile, 0)`. Nothing by nothing, 0 / 0, is the NaN that is wanted;
# `with np.errstate(invalid="ignore"):` keeps NumPy from warning.


# %% tags=["solution"]
def blend(tiles, corners, shape):
    """tiles [T, h, w], corners [T, 2] row and column in the image, shape (H, W) -> weighted means [H, W]."""
    height, width = tiles.shape[1:]
    down, across = (np.minimum(np.arange(n) + 0.5, n - np.arange(n) - 0.5) for n in (height, width))
    weight, total, weights = np.outer(down, across), np.zeros(shape), np.zeros(shape)
    for tile, (row, column) in zip(tiles, corners, strict=True):
        known, here = np.isfinite(tile), np.s_[row : row + height, column : column + width]
        total[here] += np.where(known, weight * tile, 0)
        weights[here] += weight * known
    with np.errstate(invalid="ignore"):
        return total / weights


# %% tags=["check"]
checks.check_blend(blend)

# %% [markdown]
# ## What was seen

# %%
metrics = {
    "tiles a date": len(tiles),
    "numbers a vector": D,
    "hits": len(hits),
    "best similarity": float(hits.similarity[0]),
}
if len(precision):
    metrics |= {"hits of the same land": float(without), "the same with examples": float(with_examples)}
for what in score:
    metrics |= {f"change found by {what}": float(score[what]), f"contrast of change, {what}": float(contrast[what])}
write_metrics(out_dir, metrics)
print(
    f"- {len(tiles)} tiles a date became vectors of {D} numbers and {h} x {w} patches, with their place and date, in open formats."
)
print(
    f"- The most alike of {len(tiles) - 1} other tiles has a cosine of {hits.similarity[0]:.3f}; {len(hits)} hits are a GeoJSON file."
)
if len(precision):
    print(
        f"- Over {len(precision)} places, {without:.0%} of hits were of the same land, {with_examples:.0%} with two right and two wrong ones named."
    )
if score:
    print(
        f"- The clearing stands out {contrast['embeddings']:.0f} to 1 in the embeddings, {contrast['pixels']:.0f} to 1 in plain pixels."
    )

# %% [markdown]
# The same from a command line: `clay embed`, with `--forecast` first, then `clay search OUT --like "lat,lon" --geojson
# hits.geojson`. `clay archive data/cache/archive` serves the mini-world's archive for work without a network.
#
# Next: which setting is better, and how much of that is luck? [09 Reading a sweep](09_read_sweeps.ipynb).
