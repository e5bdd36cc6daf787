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
# # 06 Seeing embeddings
#
# > **What do embeddings know about land?**
#
# You will see
# - chips laid out by their embeddings alone (t-SNE), with their land cover, sensor and season as colours,
# - which chips the model finds alike, and how often a chip's nearest neighbour is of its own kind,
# - every patch of a scene in the colour of its embedding, as a picture, a GeoTIFF and a map.
#
# | needs | minutes | data |
# | --- | --- | --- |
# | small weights, shipped in `data/weights`; your own of [04 Training](04_train_clay.ipynb) by one parameter | about 1 on two cores; no GPU needed (not measured there) | test places of the mini-world, or a GeoTIFF of your own |
#
# With a file of your own, set `scene` and `sensor` below: its tiles are then the chips. Labels are never used by the
# model; they only colour the points.

# %%
from pathlib import Path

import geopandas as gpd
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from einops import rearrange
from IPython.display import display
from rasterio.warp import transform
from sklearn.manifold import TSNE

from clay_lib import SENSORS, Clay, figures
from clay_lib.clay import embed_chips, principal_components
from clay_lib.course import checks
from clay_lib.course.chip_map import chip_map, world_background
from clay_lib.data.chips import Chips, world_chips
from clay_lib.data.rasters import coarser, read_scene, write_raster
from clay_lib.data.scenes import center_window
from clay_lib.figures.maps import Layer, show_on_map, static_map
from clay_lib.runs.notebooks import output_folder, write_metrics
from clay_lib.world.earth import CLASS_COLORS, CLASSES, MiniWorld

_ = torch.set_grad_enabled(False)

# %% tags=["parameters"]
seed: int = 0  # of the mini-world and of the layout
out: str = ""  # folder for results; empty: papermill_runs/lab/06_see_embeddings
weights: str = "clay-mini.safetensors"  # shipped; or a path, or what 04 put into data/cache: notebook_04.safetensors
scene: str = ""  # a GeoTIFF of your own; empty: the mini-world
sensor: str = "sentinel-2-l2a"  # which took the scene; the first of the mini-world's sensors
sensors: list = ["sentinel-1-rtc", "landsat-c2l2-sr"]  # further sensors that see the same places of the mini-world
places: int = 110  # of the mini-world, each seen on two dates
chip_size: int = 64  # pixels a side of the mini-world's chips
tile: int = 32  # pixels a side of the tiles of an own scene
scene_when: str = ""  # date of your own scene, such as 2023-06-10T10:30; empty: unknown
most_pixels: int = 512  # a side; of larger files the middle is taken
scene_pixels: int = 192  # a side, of the mini-world's scene
kind: str = "patch mean"  # which vector of a chip: "patch mean" or "class token"

# %% [markdown]
# ## A scene and chips
#
# A **scene** is one larger image, a **chip** a small one. In the mini-world the chips lie at test places, on land that the
# model was never trained on: eleven land-cover classes in turn, every place seen on two random dates. Of a scene of your
# own, the tiles are the chips; nobody has told what is on them.

# %%
out_dir = output_folder(out, "06_see_embeddings")
if scene:
    path, date = Path(scene).expanduser(), scene_when or None
else:
    world, date = MiniWorld(seed), "2023-06-10T10:30"
    seen = world.observe(world.place(90, 0, "test"), sensor, date, scene_pixels)
    path = out_dir / "scene.tif"
    names = SENSORS[sensor].band_names
    write_raster(path, seen.pixels, crs=seen.crs, transform=seen.transform, descriptions=names)
view = read_scene(path, sensor, when=date, window=center_window(path, most_pixels))
pixels, how = view.measured(), dict(bands=view.bands, gsd=view.gsd, in_decibel=view.in_decibel)
H, W = pixels.shape[1:]
print(
    f"{path.name} ({'your file' if scene else 'mini-world'}): {pixels.shape}, {view.gsd:g} m, {view.valid.mean():.1%} valid"
)


# %%
def tiles_of(view, pixels, side):
    """All whole tiles of a scene as chips, each with its own middle (NaN where the place is unknown). Tiles of which
    less than half was measured are left out."""
    rows, columns = H // side, W // side
    cut = rearrange(pixels[:, : rows * side, : columns * side], "C (h p) (w q) -> (h w) C p q", p=side, q=side)
    kept = np.flatnonzero(np.isfinite(cut).mean(axis=(1, 2, 3)) >= 0.5)
    cut, (r, c) = cut[kept], (side * (n + 0.5) for n in np.divmod(kept, columns))
    lat = lon = np.full(len(cut), np.nan)
    if view.crs:
        a, b, x, d, e, y = view.transform
        lon, lat = (np.array(v) for v in transform(view.crs, "EPSG:4326", a * c + b * r + x, d * c + e * r + y))
    labels = np.zeros((len(cut), side, side), np.uint8)
    return Chips(view.sensor.name, cut, labels, lat, lon, np.full(len(cut), view.when))


if scene:
    chips, others = tiles_of(view, pixels, min(tile, max(1, min(H, W) // 2))), {}  # smaller tiles of a small image
    reading = how  # the file's own bands, pixel size and units
else:
    asked = dict(split="test", size=chip_size, seed=seed)
    chips = world_chips(sensor, 2 * places, dates=2, **asked)
    others = {s: world_chips(s, places, **asked) for s in (sensor, *sensors)}
    reading = {}
print(f"{len(chips)} chips of {chips.pixels.shape[1:]}", *(f"+ {len(c)} of {s}" for s, c in others.items()))

# %% [markdown]
# ## One vector a chip, by hand
#
# With nothing hidden, the encoder gives a class token and one token for each patch. The **class token** was trained to
# agree with a teacher, here one of colour and texture; the **patch mean** is the average of all patch tokens. Both are
# vectors for the whole chip.

# %%
clay = Clay.load(weights)
few = chips[:4]
cube = clay.cube(few.pixels, few.sensor, **few.place_and_time, **reading)
encoded = clay.model.encoder(cube, mask_ratio=0.0, shuffle=False)
patches = encoded.patches(encoded.tokens)  # [4, h, w, D]; NaN where a patch of nodata was left out
by_hand = {"class token": encoded.tokens[:, 0], "patch mean": patches.flatten(1, 2).nanmean(dim=1)}

vectors = embed_chips(clay, chips, **reading)
embedded = clay.embed(few.pixels, few.sensor, **few.place_and_time, **reading)
torch.testing.assert_close(by_hand["class token"], embedded.chip)
torch.testing.assert_close(by_hand["patch mean"], embedded.mean)
for name, value in by_hand.items():
    torch.testing.assert_close(value, torch.from_numpy(vectors[name][:4]), rtol=1e-3, atol=1e-3)
    print(f"{name}: {tuple(vectors[name].shape)}")

# %% [markdown]
# ## Laid out flat
#
# **t-SNE** lays the vectors out in a plane so that those who were close stay close. Only neighbourhoods mean something: no
# axis has a unit, and the distance between far groups says nothing. Its *perplexity*, about the number of neighbours that
# each point looks at, has to be well below the number of points. The vectors are centred first, since all of them share
# one large part.


# %%
def centred(v):
    """Without the mean vector, and of length one: dot products are cosines."""
    v = v - v.mean(axis=0)
    return v / np.linalg.norm(v, axis=1, keepdims=True).clip(1e-9)


def lay_out(v):
    """t-SNE of vectors [N, D] -> [N, 2]."""
    perplexity = float(np.clip((len(v) - 1) / 4, 1, 30))
    return TSNE(perplexity=perplexity, init="pca", metric="cosine", random_state=seed).fit_transform(centred(v))


xy = lay_out(vectors[kind])
# %% [markdown]
# A colour needs a name. The mini-world knows the commonest land cover of each chip. For a scene of your own there is no
# such knowledge: its tiles are sorted into a few groups of alike vectors (k-means), and the colours say just that. All
# pictures share one brightness, so that dark land stays dark.

# %%
if scene:
    from sklearn.cluster import KMeans

    groups = KMeans(min(5, len(chips)), n_init=10, random_state=seed).fit_predict(centred(vectors[kind]))
    labels, legend = np.array([f"group {g + 1}" for g in groups]), "alike vectors"
    colours = figures.class_colors(sorted(set(labels)))
    thumbnails = [
        figures.rgb(p, view.sensor, view.bands, like=pixels, in_decibel=view.in_decibel) for p in chips.pixels
    ]
else:
    thumbnails = [figures.rgb(p, view.sensor, stretch=None) for p in chips.pixels]
    labels, legend = np.array([CLASSES[k] for k in chips.land_cover]), "land cover"
    colours = {CLASSES[k]: colour for k, colour in CLASS_COLORS.items()}
title = f"Chips by their {kind}: neighbours have alike embeddings"
fig = figures.scatter_thumbnails(
    xy, thumbnails, labels, colours=colours, across=int(1.65 * len(chips) ** 0.5), size=7.2, title=title, legend=legend
)
_ = figures.save(fig, out_dir / "tsne_thumbnails.png")

# %% [markdown]
# Look for places where the frames agree: there the model has put land of one kind together without having been told. Where
# they do not, look at the pictures: often two classes look alike at that date, or the chip holds both.
#
# ## Season and sensor
#
# The same points again, coloured by the season of the place on that date (the seasons of its own hemisphere). In a second
# layout three sensors look at the same places. If the points of one sensor keep to themselves, the embedding knows who
# took the picture better than what is on it.


# %%
def season(when, lat):
    """Meteorological, of the local hemisphere."""
    month = int(str(when)[5:7]) + (0 if float(lat) >= 0 else 6)
    return ("winter", "spring", "summer", "autumn")[month % 12 // 3]


if not scene:
    seasons = np.array([season(w, x) for w, x in zip(chips.when, chips.lat, strict=True)])
    together = np.concatenate([embed_chips(clay, c)[kind] for c in others.values()])
    taken_by = np.concatenate([[s] * len(c) for s, c in others.items()])
    covers = np.concatenate([[CLASSES[k] for k in c.land_cover] for c in others.values()])
    season_colours = dict(
        zip(("winter", "spring", "summer", "autumn"), ("#56B4E9", "#009E73", "#E69F00", "#882255"), strict=True)
    )
    with figures.styled():
        fig, axes = plt.subplots(1, 2, figsize=(10.6, 3.9))
    figures.scatter(
        xy, seasons, colours=season_colours, title=f"{sensor}, two dates a place", legend="season", ax=axes[0]
    )
    figures.scatter(lay_out(together), taken_by, title="One date, several sensors", legend="sensor", ax=axes[1])
    _ = figures.save(fig, out_dir / "tsne_season_sensor.png")

# %% [markdown]
# ## Who is next to whom
#
# The layout is for the eye. To count, take the vectors themselves: for how many chips does the nearest other chip (by the
# cosine) share the land cover, the season, the sensor? Beside it stands what a random neighbour would give. Chips of the
# same place are no candidates: they would make it easy.


# %%
def nearest(v, place, count=1):
    """[N, count] indices of the most alike chips of other places."""
    likeness = centred(v) @ centred(v).T
    likeness[place[:, None] == place[None]] = -np.inf
    return np.argsort(-likeness, axis=1, kind="stable")[:, :count]


def agreement(v, place, names):
    """(share of nearest neighbours with the same name, the same for a random neighbour of another place)."""
    same = names[:, None] == names[None]
    return same[np.arange(len(v)), nearest(v, place)[:, 0]].mean(), same[place[:, None] != place[None]].mean()


place = np.array([str(p) for p in zip(chips.lat, chips.lon, strict=True)])
if view.crs is None and scene:
    place = np.arange(len(chips))
shares = {}
if not scene:
    place_of_all = np.array([f"{x} {y}" for c in others.values() for x, y in zip(c.lat, c.lon, strict=True)])
    shares["land cover"] = agreement(vectors[kind], place, labels)
    shares["season"] = agreement(vectors[kind], place, seasons)
    shares["sensor"] = agreement(together, place_of_all, taken_by)
    shares["land cover, all sensors"] = agreement(together, place_of_all, covers)
for name, (share, chance) in shares.items():
    print(f"{name:<24} nearest neighbour agrees for {share:4.0%} of the chips; by chance {chance:4.0%}")

# %% [markdown]
# And with the eye: a few chips on the left, and the five that the model finds most like each of them.

# %%
spread = np.linspace(0, len(chips) - 1, 4).astype(int)
queries = np.unique(spread) if scene else np.array([0, 4, 7, 8])  # trees, town, water, wetland
alike = nearest(vectors[kind], place, 5)[queries]
order = np.concatenate([queries[:, None], alike], axis=1)
titles = [f"{'like: ' if n == 0 else ''}{labels[i]}" for row in order for n, i in enumerate(row)]
titles = [
    t.replace("permanent ", "").replace("bare / sparse vegetation", "bare").replace("herbaceous ", "") for t in titles
]
fig = figures.show_row([thumbnails[i] for i in order.ravel()], titles, columns=order.shape[1], size=0.95)
for ax in fig.axes:
    ax.title.set_fontsize(6.5)
_ = figures.save(fig, out_dir / "neighbours.png")

# %% [markdown]
# Now choose for yourself. Run the cell, **click a dot**, and its neighbours appear. Give it a label, click a chip of
# another kind, and give that one a label too: all others take the colour of the label that they are most like.

# %%
if not scene:
    once = np.unique(place, return_index=True)[1]  # one date a place: two dots would hide each other
    pictures = [thumbnails[n] for n in once]
    about = dict(thumbnails=pictures, truth=labels[once], colors=colours)
    display(chip_map(chips[once], vectors[kind][once], world_background(world), **about))

# %% [markdown]
# ## Every patch in its colour
#
# A chip's vector is the mean of many. Seen one by one, the patch tokens of the scene are a map: the three directions in
# which they differ most (**principal components**) become red, green and blue. Alike colours mean alike embeddings; the
# colours themselves have no meaning.

# %%
patches = clay.embed(pixels, view.sensor, lat=view.lat, lon=view.lon, when=view.when, **how).patches.numpy()
parts = principal_components(patches)[0]  # [h, w, 3]
P = clay.model.config.patch_size
inside = np.isfinite(parts).all(axis=-1)  # patches of nodata have no embedding
colour_map = np.nan_to_num(figures.components_to_rgb(parts))
picture = figures.rgb(pixels, view.sensor, view.bands, valid=view.valid, in_decibel=view.in_decibel)
print(f"{parts.shape[0]} x {parts.shape[1]} patches, the first three of {patches.shape[-1]} directions")

# %% [markdown]
# Written as a GeoTIFF, one cell is one patch: the same upper left corner, cells that many times larger.

# %%
if view.crs:
    cells = coarser(view.transform, P)
    names = ["component 1", "component 2", "component 3"]
    placed = dict(crs=view.crs, transform=cells, nodata=float("nan"))
    write_raster(out_dir / "components.tif", parts.transpose(2, 0, 1), descriptions=names, **placed)
    layers = [
        Layer("scene", picture, view.crs, view.transform, valid=view.valid),
        Layer("embeddings", colour_map, view.crs, cells, valid=inside, opacity=0.6),
    ]
    display(show_on_map(layers))
else:
    print("the file says nothing of its place, so there is no map")
    pair = [picture, np.where(inside[..., None], colour_map, 0.85)]
    titles = [view.sensor.name, f"patch embeddings, {parts.shape[0]} x {parts.shape[1]}"]
    fig = figures.show_row(pair, titles, gsd=[view.gsd, view.gsd * P], size=2.4)
    _ = figures.save(fig, out_dir / "components.png")

# %%
if view.crs:
    fig = static_map(layers, size=2.8)
    _ = figures.save(fig, out_dir / "map.png")
    plt.show()

# %% [markdown]
# ## A table of embeddings
#
# What other programs need: a point, a sensor, a date and a vector for each chip, in one GeoParquet file. Any GIS and any
# database that reads GeoParquet can search in it.

# %%
if view.crs:
    table = pd.DataFrame({"sensor": chips.sensor, "when": chips.when, legend: labels, "vector": list(vectors[kind])})
    frame = gpd.GeoDataFrame(table, geometry=gpd.points_from_xy(chips.lon, chips.lat), crs="EPSG:4326")
    frame.to_parquet(out_dir / "embeddings.parquet")

    again = gpd.read_parquet(out_dir / "embeddings.parquet")
    np.testing.assert_array_equal(np.stack(again["vector"]), vectors[kind])
    assert again.crs == frame.crs and again.geometry.geom_equals_exact(frame.geometry, 1e-9).all()
    print(
        again.drop(columns="vector").head(4).to_string(),
        f"\n... {len(again)} rows, vectors of {vectors[kind].shape[1]}",
    )

# %% [markdown]
# ## Exercises, solved
#
# Three things to write yourself. [The exercises](exercises/06_see_embeddings.ipynb) have a notebook of their own, with
# empty places, hints and checks.

# %% [markdown] tags=["exercise"]
# ### Exercise 1: one vector a chip
# *Easy, 5 minutes*
#
# The encoder gives the class token first and then a token for each patch. Some patches lie under clouds: they are not
# valid. Average the tokens of the valid patches.
#
# **Hint.** `tokens[:, 1:]` are the patches; `valid[..., None]` has an axis that fits theirs.
#
# **Hint.** Multiply, add up over L, and divide by each chip's own number of valid patches.


# %% tags=["solution"]
def patch_mean(tokens, valid):
    """tokens [B, 1 + L, D], class token first, valid [B, L] bool -> mean of the valid patches [B, D]."""
    weight = valid[..., None].float()
    return (tokens[:, 1:] * weight).sum(1) / weight.sum(1)


# %% tags=["check"]
checks.check_patch_mean(patch_mean)

# %% [markdown] tags=["exercise"]
# ### Exercise 2: the most alike
# *Medium, 10 minutes*
#
# For each chip, find the k others whose vectors have the largest cosine with its own, the most alike first.
#
# **Hint.** Bring each vector to length one; then `unit @ unit.T` holds all cosines.
#
# **Hint.** Each chip is most alike to itself: `fill_diagonal_(-torch.inf)` takes it out.


# %% tags=["solution"]
def most_alike(vectors, k):
    """vectors [N, D] -> indices [N, k] of the most alike other chips, the most alike first."""
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    likeness = (unit @ unit.T).fill_diagonal_(-torch.inf)
    return likeness.argsort(dim=1, descending=True)[:, :k]


# %% tags=["check"]
checks.check_most_alike(most_alike)

# %% [markdown] tags=["exercise"]
# ### Exercise 3: colours from embeddings
# *Hard, 15 minutes*
#
# Give the first three principal components of a scene's patch embeddings: the three directions in which the patches
# differ most, and where each patch lies along them. Use NumPy alone.
#
# **Hint.** Bring the patches into one row, `[h*w, D]`, and take off their mean.
#
# **Hint.** `np.linalg.svd(x, full_matrices=False)` gives the directions as the rows of its third result, the one of most
# spread first.


# %% tags=["solution"]
def three_colours(patches):
    """patches [h, w, D] -> their first three principal components [h, w, 3]."""
    h, w, D = patches.shape
    flat = patches.reshape(h * w, D)
    flat = flat - flat.mean(axis=0)
    directions = np.linalg.svd(flat, full_matrices=False)[2]  # [D, D], a direction a row
    return (flat @ directions[:3].T).reshape(h, w, 3)


# %% tags=["check"]
checks.check_three_colours(three_colours)

# %% [markdown]
# ## What was seen

# %%
metrics = {"chips": len(chips), "vector": kind, "dimensions": int(vectors[kind].shape[1])}
for name, (share, chance) in shares.items():
    metrics[f"nearest neighbour shares the {name}"] = {"share": float(share), "by chance": float(chance)}
write_metrics(out_dir, metrics)
told = [f"{name}: {share:.0%} (by chance {chance:.0%})" for name, (share, chance) in shares.items()]
print(f"""- {len(chips)} chips became vectors of {vectors[kind].shape[1]} numbers, and a plane in which alike ones are neighbours.
- Nearest neighbours that agree: {"; ".join(told) or "not counted, since nobody has told what is on the tiles"}.
- {parts.shape[0]} x {parts.shape[1]} patches of a scene have embeddings of their own, which draw its outlines.""")

# %% [markdown]
# Next: neighbours that look right are no proof. How much the vectors know is measured in
# [07 Probing embeddings](07_probe_embeddings.ipynb).
