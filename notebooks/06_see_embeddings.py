# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 06 Embeddings
#
# > **What do embeddings know about land?**
#
# You will see
# - chips arranged by their embeddings alone (t-SNE), colored by land cover, season and sensor,
# - how often the most similar chip has the same land cover,
# - how often a chip finds the same place in the images of another sensor,
# - a map in which every patch of a scene has the color of its embedding.
#
# ![Where this notebook stands: embeddings](flow/06_see_embeddings.png)
#
# | prerequisites | minutes | data |
# | --- | --- | --- |
# | [03 Masking](03_mask_patches.ipynb); the small weights of this repository, or your own from [04 Training](04_train_clay.ipynb) | 0.7 on two cores | test places of the synthetic Earth, or a GeoTIFF of your own |
#
# For your own file, set `scene` and `sensor` below: its tiles are then the chips. The model never uses labels; here
# they only color the points.

# %%
import geopandas as gpd
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import display
from sklearn.cluster import KMeans
from sklearn.manifold import TSNE

from clay_lib import Clay, course, data, figures, runs, world
from clay_lib.clay import embed_chips
from clay_lib.course import checks
from clay_lib.course.chip_map import chip_map
from clay_lib.evaluation import as_text, principal_components, recalls, without_place

# %% tags=["parameters"]
seed: int = 0  # of the synthetic Earth and of t-SNE
out: str = ""  # folder for results; empty: papermill_runs/lab/06_see_embeddings
weights: str = "clay-mini"  # the small weights of this repository; or a path; or what 04 saved: notebook_04.safetensors
scene: str = ""  # a GeoTIFF of your own; empty: the synthetic Earth
sensor: str = "sentinel-2-l2a"  # the sensor of the scene; the first of the synthetic Earth's sensors
sensors: list = ["sentinel-1-rtc", "landsat-c2l2-sr"]  # further sensors, at the same places of the synthetic Earth
places: int = 110  # of the synthetic Earth, each on two dates
dots: int = 300  # chips on the map to click on
chip_size: int = 64  # pixels a side of these chips
tile: int = 32  # pixels a side of the tiles of your own scene
scene_when: str = ""  # date of your scene, such as 2023-06-10T10:30; empty: unknown
kind: str = "patch mean"  # the vector of a chip: "patch mean" or "class token"

# %% [markdown]
# ## Scene and chips
#
# A **scene** is a large image, a **chip** a small one. On the synthetic Earth the chips lie at test places, which no
# training has used: eleven land-cover classes in turn, every place on two random dates. In your own scene, the tiles
# are the chips; they have no labels.
#
# > **On a laptop.** The embeddings are those of clay-mini for chips of 64 x 64 pixels. The released encoder returns
# > 1,024 numbers for each chip, usually of 256 x 256.

# %%
out_dir = runs.output_folder(out, "06_see_embeddings")
image = data.open_scene(scene, sensor, when=scene_when, land_cover=90, index=0, seed=seed)
world_kwargs = dict(split="test", size=chip_size, seed=seed)
earth = data.world_chips(sensor, 2 * places, dates=2, **world_kwargs)
has_labels = image.labels is not None
chips = earth if has_labels else data.cut_chips(image, min(tile, max(1, min(image.pixels.shape[1:]) // 2)))[0]
reading = dict(bands=image.bands, gsd=image.gsd, in_decibel=image.in_decibel)
print(f"{image.path}: {image.pixels.shape}, {image.gsd:g} m; {len(chips)} chips of {chips.pixels.shape[1:]}")

# %% [markdown]
# ## One vector for each chip
#
# With nothing hidden, the encoder returns a class token and one token for each patch. The **class token** was trained
# to agree with the teacher; the **patch mean** is the average of the patch tokens. Both describe the whole chip. We
# compute them by hand for four chips, then with the library for all.

# %%
clay = Clay.load(weights)
subset = chips[:4]
cube = clay.cube(subset.pixels, subset.sensor, **subset.place_and_time, **reading)
encoded = clay.model.encoder(cube, mask_ratio=0.0, shuffle=False)
patches = encoded.patches()  # [4, h, w, D]; NaN where a patch without data was left out
by_hand = {"class token": encoded.tokens[:, 0], "patch mean": patches.flatten(1, 2).nanmean(dim=1)}  # [4, D]

vectors = embed_chips(clay, chips, **reading)
for name, value in by_hand.items():
    torch.testing.assert_close(value.detach(), torch.from_numpy(vectors[name][:4]), rtol=1e-3, atol=1e-3)
    print(f"{name}: {vectors[name].shape}")

# %% [markdown]
# ## In two dimensions
#
# **t-SNE** (van der Maaten and Hinton, 2008) arranges vectors in a plane so that neighbors stay neighbors. Only
# neighborhoods have a meaning: the axes have no unit, and distances between far groups say nothing. Its perplexity,
# about the number of neighbors of each point, has to be well below the number of points. All vectors share one large
# component, so their mean is subtracted first.


# %%
def center(v):
    """Vectors [N, D] minus their mean, of length one: dot products are cosines."""
    v = v - v.mean(axis=0)
    return v / np.linalg.norm(v, axis=1, keepdims=True).clip(1e-9)


def tsne(v):
    """Vectors [N, D] -> [N, 2]."""
    perplexity = float(np.clip((len(v) - 1) / 4, 1, 30))
    return TSNE(perplexity=perplexity, init="pca", metric="cosine", random_state=seed).fit_transform(center(v))


xy = tsne(vectors[kind])

# %% [markdown]
# For color, the synthetic Earth knows the most common land cover of each chip. The tiles of your own scene have no
# labels: k-means sorts them into a few groups of similar vectors.

# %%
if has_labels:
    labels, colors = np.array([world.CLASSES[k] for k in chips.land_cover]), world.CLASS_COLORS
    colors = {world.CLASSES[k]: color for k, color in colors.items()}
else:
    groups = KMeans(min(5, len(chips)), n_init=10, random_state=seed).fit_predict(center(vectors[kind]))
    labels = np.array([f"group {g + 1}" for g in groups])
    colors = figures.class_colors(sorted(set(labels)))
stretch = dict(stretch=None) if has_labels else dict(like=image.measured())  # one brightness for all thumbnails
thumbnails = [figures.rgb(p, image.sensor, image.bands, **stretch) for p in chips.pixels]
title = f"Chips by {kind}: neighbors have similar embeddings"
across = int(1.65 * len(chips) ** 0.5)
fig = figures.scatter_thumbnails(xy, thumbnails, labels, colors=colors, across=across, size=7.2, title=title)
_ = figures.save(fig, out_dir / "1_tsne.png")

# %% [markdown]
# Where frames of one color lie together, the model has grouped one kind of land without labels. Where they do not, look
# at the images: often two classes look similar on that date, or the chip holds both.
#
# ## Season and sensor
#
# Here are the chips of the synthetic Earth again, colored by the season in their hemisphere. A second plot shows the
# same places, one date each, seen by three sensors. If the points of one sensor keep to themselves, the embedding says
# more about the sensor than about the land.


# %%
def season(when, lat):
    """Meteorological season of the hemisphere."""
    month = int(str(when)[5:7]) + (0 if float(lat) >= 0 else 6)
    return ("winter", "spring", "summer", "autumn")[month % 12 // 3]


seasons = np.array([season(when, lat) for when, lat in zip(earth.when, earth.lat, strict=True)])
season_colors = {"winter": "#56B4E9", "spring": "#009E73", "summer": "#E69F00", "autumn": "#882255"}
by_sensor = {name: data.world_chips(name, places, **world_kwargs) for name in (sensor, *sensors)}
earth_vectors = embed_chips(clay, earth)[kind]
all_vectors = np.concatenate([embed_chips(clay, c)[kind] for c in by_sensor.values()])
taken_by = np.concatenate([[name] * len(c) for name, c in by_sensor.items()])

# %%
with figures.styled():
    fig, axes = plt.subplots(1, 2, figsize=(10.6, 3.9))
    title = f"{sensor}, two dates"
    figures.scatter(tsne(earth_vectors), seasons, colors=season_colors, title=title, legend="season", ax=axes[0])
    figures.scatter(tsne(all_vectors), taken_by, title="one date, several sensors", legend="sensor", ax=axes[1])
_ = figures.save(fig, out_dir / "2_season_sensor.png")

# %% [markdown]
# ## Nearest neighbors
#
# A plot is for the eye; to count, use the vectors. For how many chips does the most similar other chip share the land
# cover, the season, the sensor? Beside it is the share for a randomly chosen other chip. Chips of the same place are
# excluded: they would make it too easy.


# %%
def most_similar(v, place, count=1):
    """Indices [N, count] of the most similar chips at other places."""
    similarity = center(v) @ center(v).T
    similarity[place[:, None] == place[None]] = -np.inf
    return np.argsort(-similarity, axis=1, kind="stable")[:, :count]


def agreement(v, place, names):
    """(share of most similar chips with the same name, the same for a random chip of another place)."""
    same = names[:, None] == names[None]
    return same[np.arange(len(v)), most_similar(v, place)[:, 0]].mean(), same[place[:, None] != place[None]].mean()


# %%
def places_and_classes(sets):
    """Place names and land-cover classes of several sets of chips, joined."""
    place = [f"{lat} {lon}" for c in sets for lat, lon in zip(c.lat, c.lon, strict=True)]
    return np.array(place), np.array([world.CLASSES[k] for c in sets for k in c.land_cover])


place, cover = places_and_classes([earth])
shares = {"land cover": agreement(earth_vectors, place, cover), "season": agreement(earth_vectors, place, seasons)}
place, cover = places_and_classes(by_sensor.values())
shares["sensor"] = agreement(all_vectors, place, taken_by)
shares["land cover, across sensors"] = agreement(all_vectors, place, cover)
for name, (share, chance) in shares.items():
    print(f"{name:<27} nearest neighbor agrees for {share:4.0%} of the chips; by chance {chance:4.0%}")

# %% [markdown]
# Here are four chips, on the left, each with the five most similar to it.

# %%
own_place = np.array([f"{lat} {lon}" for lat, lon in zip(chips.lat, chips.lon, strict=True)])
own_place = np.arange(len(chips)) if image.crs is None else own_place
queries = np.sort(np.unique(labels, return_index=True)[1])[:4]  # the first chip of four classes
similar = most_similar(vectors[kind], own_place, 5)[queries]
order = np.concatenate([queries[:, None], similar], axis=1)
short = [label.split(" / ")[0].removeprefix("permanent ").removeprefix("herbaceous ") for label in labels]
titles = [f"{'query' if n == 0 else 'similar'}\n{short[i]}" for row in order for n, i in enumerate(row)]
fig = figures.show_row([thumbnails[i] for i in order.ravel()], titles, columns=order.shape[1], size=1.25)
_ = figures.save(fig, out_dir / "3_neighbors.png")

# %% [markdown]
# Choose for yourself: **click a dot** to see its neighbors. Mark some with + and others with −, and the ranking
# follows. Label a few chips of at least two kinds, and a linear probe colors all the others.

# %%
clickable = data.world_chips(sensor, dots, **world_kwargs)
background = course.world_background(world.MiniWorld(seed))
kwargs = dict(truth=places_and_classes([clickable])[1], colors=colors if has_labels else None)
display(chip_map(clickable, embed_chips(clay, clickable)[kind], background, **kwargs))

# %% [markdown]
# ## The same place in another sensor
#
# A harder question: among all chips of another sensor, is the one at **the same place and date** the most similar, or
# among the ten most similar? The model is given neither place nor date, which would give the answer away. Each pair of
# sensors is a search of its own, and each sensor's mean vector is subtracted first. The brackets hold 95 % intervals
# over places. The class token searches, whatever `kind` is: in training its teacher saw radar's places through an optical
# sensor, while patch tokens learned each sensor by itself.

# %%
found = recalls({name: embed_chips(clay, without_place(c))["class token"] for name, c in by_sensor.items()})
cells = [as_text(*row, form="{:.0%}") for row in found[["recall", "low", "high"]].itertuples(index=False)]
found_table = found.assign(cell=cells, k="recall at " + found["k"].astype(str))
display(found_table.pivot(index=["query", "gallery"], columns="k", values="cell"))
print(f"by chance: {1 / places:.1%} and {10 / places:.0%}")

# %%
names = list(by_sensor)
at_one = found[found["k"] == 1].pivot(index="query", columns="gallery", values="recall").loc[names, names]
title = f"Share of {places} places found at once"
kwargs = dict(label="recall at 1", limits=(0, 1), form="{:.0%}", xlabel="found in", ylabel="query")
_ = figures.save(figures.matrix(at_one.to_numpy(), names=names, title=title, **kwargs), out_dir / "4_retrieval.png")

# %% [markdown]
# More places are harder to tell apart: `data/weights/RESULTS.md` has the same table for 1,000 places and two more
# sensors.

# %% [markdown]
# ## A color for every patch
#
# The vector of a chip is an average. The patch tokens of a scene are a map: the three directions of largest variance,
# the **principal components**, become red, green and blue. Similar colors mean similar embeddings; the colors
# themselves have no meaning.

# %%
tokens = clay.embed(image.measured(), image.sensor, **image.metadata).patches.numpy()  # [1, h, w, D]
components = principal_components(tokens)[0]  # [h, w, 3]
component_image = figures.components_to_rgb(components)
picture = figures.rgb(image.measured(), image.sensor, image.bands, valid=image.valid, in_decibel=image.in_decibel)
P = clay.model.config.patch_size
pair = [picture, np.nan_to_num(component_image, nan=0.85)]
titles = [image.sensor.name, f"patch embeddings, {components.shape[0]} x {components.shape[1]}"]
fig = figures.show_row(pair, titles, gsd=[image.gsd, image.gsd * P], size=3.4)
_ = figures.save(fig, out_dir / "5_components.png")

# %% [markdown]
# In the GeoTIFF, each cell is one patch; on the map, the components lie over the scene.

# %%
if image.crs:
    cells = data.coarser(image.transform, P)
    kwargs = dict(crs=image.crs, transform=cells, nodata=float("nan"))
    names = ["component 1", "component 2", "component 3"]
    data.write_raster(out_dir / "components.tif", components.transpose(2, 0, 1), descriptions=names, **kwargs)
    valid = np.isfinite(components).all(axis=-1)
    overlay = figures.Layer("embeddings", np.nan_to_num(component_image), image.crs, cells, valid=valid, opacity=0.6)
    layers = [course.scene_background(image), overlay]
    display(figures.show_on_map(layers, still=figures.static_map(layers, size=2.9)))

# %% [markdown]
# ## A table of embeddings
#
# Other programs need a point, a sensor, a date and a vector for each chip, in one GeoParquet file. Any GIS or database
# that reads GeoParquet can search it.

# %%
table = pd.DataFrame({"sensor": chips.sensor, "when": chips.when, "label": labels, "vector": list(vectors[kind])})
frame = gpd.GeoDataFrame(table, geometry=gpd.points_from_xy(chips.lon, chips.lat), crs="EPSG:4326")
frame.to_parquet(out_dir / "embeddings.parquet")
read = gpd.read_parquet(out_dir / "embeddings.parquet")
np.testing.assert_array_equal(np.stack(read["vector"]), vectors[kind])
print(read.drop(columns="vector").head(4).to_string(), f"\n... {len(read)} rows, vectors of {vectors[kind].shape[1]}")

# %% [markdown]
# ## Exercises, solved
#
# Three exercises: [the exercise notebook](exercises/06_see_embeddings.ipynb) has stubs, hints and checks.

# %% [markdown] tags=["exercise"]
# ### Exercise 1: one vector for each chip
# *Easy, 5 minutes*
#
# The encoder returns the class token first and then one token for each patch. Patches under clouds are not valid.
# Average the tokens of the valid patches.
#
# **Hint.** `tokens[:, 1:]` are the patch tokens; `valid[..., None]` broadcasts against them.
#
# **Hint.** Multiply, sum over L, and divide by the number of valid patches of each chip.


# %% tags=["solution"]
def patch_mean(tokens, valid):
    """tokens [B, 1 + L, D], class token first, valid [B, L] bool -> mean of the valid patches [B, D]."""
    weight = valid[..., None].float()
    return (tokens[:, 1:] * weight).sum(1) / weight.sum(1)


# %% tags=["check"]
checks.check_patch_mean(patch_mean)

# %% [markdown] tags=["exercise"]
# ### Exercise 2: the most similar chips
# *Medium, 10 minutes*
#
# For each chip, find the k other chips with the highest cosine similarity, the most similar first.
#
# **Hint.** Scale each vector to length one; then `unit @ unit.T` holds all cosines.
#
# **Hint.** Each chip is most similar to itself: `fill_diagonal_(-torch.inf)` excludes it.


# %% tags=["solution"]
def most_similar(vectors, k):
    """vectors [N, D] -> indices [N, k] of the most similar other chips, best first."""
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    similarity = (unit @ unit.T).fill_diagonal_(-torch.inf)
    return similarity.argsort(dim=1, descending=True)[:, :k]


# %% tags=["check"]
checks.check_most_similar(most_similar)

# %% [markdown] tags=["exercise"]
# ### Exercise 3: colors from embeddings
# *Hard, 15 minutes*
#
# Compute the first three principal components of a scene's patch embeddings: the coordinates of each patch along the
# three directions of largest variance. Use NumPy alone.
#
# **Hint.** Flatten the patches to `[h*w, D]` and subtract their mean.
#
# **Hint.** `np.linalg.svd(x, full_matrices=False)` returns the directions as the rows of its third result, the largest
# variance first.


# %% tags=["solution"]
def three_colors(patches):
    """patches [h, w, D] -> their first three principal components [h, w, 3]."""
    h, w, D = patches.shape
    flat = patches.reshape(h * w, D)
    flat = flat - flat.mean(axis=0)
    directions = np.linalg.svd(flat, full_matrices=False)[2]  # [D, D], one direction per row
    return (flat @ directions[:3].T).reshape(h, w, 3)


# %% tags=["check"]
checks.check_three_colors(three_colors)

# %% [markdown]
# ## What you have learned
#
# - An embedding is one vector for a chip, or one for each patch; both come from the encoder with nothing hidden.
# - Nearest neighbors share the land cover far more often than by chance; the counts above say how often, and how much
#   the sensor matters.
# - A place can be found again in the images of another sensor; how reliably depends on the pair.
# - Principal components turn patch embeddings into a map that follows the outlines of the land.
#
# **Exercise.** Set `kind` to "class token". Which of the four shares of nearest neighbors change, and in which
# direction?
#
# Neighbors that look right are no proof. [07 Linear probes](07_probe_embeddings.ipynb) measures how much the vectors
# know.

# %%
metrics = {"chips": len(chips), "vector": kind, "dimensions": int(vectors[kind].shape[1])}
for name, (share, chance) in shares.items():
    metrics[f"nearest neighbor shares the {name}"] = {"share": float(share), "by chance": float(chance)}
for query, gallery, k, value in found[["query", "gallery", "k", "recall"]].itertuples(index=False):
    metrics[f"{query} in {gallery}: recall at {k}"] = float(value)
runs.write_metrics(out_dir, metrics)
