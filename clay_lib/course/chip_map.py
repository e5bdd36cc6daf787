"""A map to click on: a chip shows its neighbours in the space of embeddings, takes a label, and a probe learns it.

The map needs no tile server: below the chips lies a raster of one's own (maps.Layer), such as the scene they are cut
from or the mini-world's land.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
from einops import rearrange
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex, to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from rasterio.warp import transform

from clay_lib import figures
from clay_lib.areas.search import nearest
from clay_lib.course.widgets import Touch, as_png
from clay_lib.data.chips import Chips
from clay_lib.data.rasters import Scene
from clay_lib.encoder import MIN_VALID
from clay_lib.errors import ContractError
from clay_lib.evaluation.probes import fit_linear, standardize
from clay_lib.figures.images import scale_bar
from clay_lib.figures.maps import DEGREES, Layer, show_on_map
from clay_lib.figures.style import INK, MISSING, PALETTE
from clay_lib.world.earth import CLASS_COLOURS, MiniWorld

NEIGHBOURS = 5


# ---- plain numbers


@dataclass(frozen=True, eq=False)
class Atlas:
    """N chips that lie on a map. outlines: the corners of each, lon and lat in degrees; None: chips are dots."""

    lat: np.ndarray  # [N] degrees
    lon: np.ndarray  # [N]
    vectors: np.ndarray  # [N, D] embeddings
    thumbnails: Sequence[np.ndarray]  # N of [H, W, 3]
    outlines: np.ndarray | None = None  # [N, 4, 2]
    truth: np.ndarray | None = None  # [N] names, where they are known; never shown to the probe

    def __post_init__(self):
        counts = {len(v) for v in (self.lat, self.lon, self.vectors, self.thumbnails)}
        counts |= {len(v) for v in (self.outlines, self.truth) if v is not None}
        if len(counts) > 1 or not np.isfinite([self.lat, self.lon]).all():
            raise ContractError(
                "chips",
                f"{sorted(counts)} places, vectors and thumbnails",
                "one of each for every chip, and a known place",
                "a selection of one of them, or an image that does not say where it lies",
            )


def neighbours(vectors: np.ndarray, chip: int, count: int = NEIGHBOURS) -> tuple[np.ndarray, np.ndarray]:
    """(numbers [count] of the chips most alike, their cosines), by vectors [N, D] less their mean; not itself."""
    centred, others = vectors - vectors.mean(axis=0), np.arange(len(vectors)) != chip
    if not centred[chip].any():  # no direction, as where all chips are the same: none is nearer than another
        return np.flatnonzero(others)[:count], np.zeros(min(count, others.sum()))
    return nearest(centred, centred[chip], count, keep=others)


def refit(vectors: np.ndarray, given: Mapping[int, str]) -> np.ndarray | None:
    """A linear probe on the chips that have a label -> the label of all [N]; None until two kinds are given.

    Scaled by all chips, labelled or not: two labels alone say nothing of how much a number varies.
    """
    if len(set(given.values())) < 2:
        return None
    scaled, _ = standardize(vectors, vectors)
    return fit_linear(scaled[list(given)], np.array(list(given.values())), 0.1).predict(scaled)


def agreement(answers: np.ndarray, truth: np.ndarray, given: Mapping[int, str]) -> float:
    """Share of the chips without a given label whose answer is the truth."""
    rest = np.setdiff1d(np.arange(len(truth)), list(given))
    return float((answers[rest] == truth[rest]).mean())


def cut_tiles(view: Scene, side: int, *, min_valid: float = MIN_VALID) -> tuple[Chips, np.ndarray, np.ndarray]:
    """The whole tiles of a scene as N chips [N, C, side, side], NaN where nothing was measured; their corners in
    degrees, [N, 4, 2] lon and lat; and which of the rows x columns tiles they are, row by row, [N].

    Tiles of which a smaller share than min_valid was measured are left out.
    """
    if view.crs is None:
        raise ContractError("scene", "no place", "a file with a CRS and a transform", "a picture without place")
    rows, columns = (n // side for n in view.pixels.shape[1:])
    inner = view.measured()[:, : rows * side, : columns * side]
    cut = rearrange(inner, "C (h p) (w q) -> (h w) C p q", p=side, q=side)
    which = np.flatnonzero(np.isfinite(cut).mean((1, 2, 3)) >= min_valid)
    if not len(which):
        raise ContractError(
            "scene",
            f"{view.valid.mean():.0%} of {view.pixels.shape[1]} x {view.pixels.shape[2]} pixels measured",
            f"a tile of {side} x {side} pixels that is",
            "an image of nodata, or tiles larger than the image",
        )
    top, left = side * np.stack(np.divmod(which, columns)).astype(float)
    a, b, x, d, e, y = view.transform
    across, down = (
        left + side * np.array([[0], [1], [1], [0], [0.5]]),
        top + side * np.array([[0], [0], [1], [1], [0.5]]),
    )
    eastings, northings = a * across + b * down + x, d * across + e * down + y  # [5, N]: four corners, and the middle
    lon, lat = (np.reshape(v, across.shape) for v in transform(view.crs, DEGREES, eastings.ravel(), northings.ravel()))
    labels = np.zeros((len(which), side, side), np.uint8)
    chips = Chips(view.sensor.name, cut[which], labels, lat[4], lon[4], np.full(len(which), view.when or ""))
    return chips, np.stack([lon[:4], lat[:4]], axis=-1).transpose(1, 0, 2), which


def world_background(world: MiniWorld, step: float = 1.0) -> Layer:
    """The mini-world's land cover, pale, a point every `step` degrees: what lies below chips from all over it."""
    lat, lon = np.arange(80 - step / 2, -60, -step), np.arange(-180 + step / 2, 180, step)
    codes = world.land_cover(*np.meshgrid(lat, lon, indexing="ij"))
    table = np.ones((256, 3))
    for code, colour in CLASS_COLOURS.items():
        table[code] = 0.55 + 0.45 * np.array(to_rgb(colour))
    return Layer("the mini-world", table[codes], DEGREES, (step, 0.0, -180.0, 0.0, -step, 80.0))


# ---- pictures


def show_neighbours(atlas: Atlas, chips: Sequence[int], *, names: Sequence[str] | None = None, fig=None) -> Figure:
    """A row for each chip: itself, framed, then its neighbours with their cosines; names [N] under each."""
    with figures.styled():
        size = (1.15 * (1 + NEIGHBOURS), (1.35 if names is None else 1.55) * len(chips))
        fig = fig or plt.figure(figsize=size)
        axes = fig.subplots(len(chips), 1 + NEIGHBOURS, squeeze=False)
        for ax in axes.flat:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        for row, chip in zip(axes, chips, strict=True):
            order, alike = neighbours(atlas.vectors, chip)
            titles = [f"chip {chip}", *(f"{value:.2f}" for value in alike)]
            for ax, number, title in zip(row, [chip, *order], titles, strict=False):
                ax.imshow(atlas.thumbnails[number])
                ax.set_title(title, loc="center", fontsize=8)
                ax.set_xlabel("" if names is None else _short(names[number]), fontsize=7, labelpad=2)
            row[0].spines[:].set_visible(True)
            row[0].spines[:].set_linewidth(2.5)
    return fig


def show_map(
    atlas: Atlas,
    background: Layer,
    names: Sequence[str],
    colours: Mapping[str, str],
    given: Mapping[int, str],
    fig=None,
) -> Figure:
    """The chips on their background in the colours of their names; those with a given label are ringed."""
    a, _, x, _, e, y = background.transform
    h, w = np.shape(background.values)[:2]
    world = background.crs == DEGREES

    def on_ground(lon, lat):
        return (lon, lat) if world else np.array(transform(DEGREES, background.crs, lon, lat))

    with figures.styled():
        fig = fig or plt.figure(figsize=(5.6, 5.4))
        ax = fig.subplots()
        ax.imshow(background.values, extent=(x, x + a * w, y + e * h, y), aspect="equal")
        fills = [to_rgba(colours.get(name, str(MISSING)), 0.5 if atlas.outlines is not None else 1) for name in names]
        rings = dict(
            edgecolors=["black" if n in given else "white" for n in range(len(names))],
            linewidths=[1.8 if n in given else 0.5 for n in range(len(names))],
        )
        if atlas.outlines is None:
            ax.scatter(*on_ground(atlas.lon, atlas.lat), s=30, c=fills, **rings)
        else:
            corners = [np.transpose(on_ground(*outline.T)) for outline in atlas.outlines]
            ax.add_collection(PolyCollection(corners, facecolors=fills, **rings))
        if world:
            ax.set(xlabel="longitude (degrees)", ylabel="latitude (degrees)")
        else:
            ax.set(xticks=[], yticks=[])
            scale_bar(ax, a * w)
        present = [name for name in colours if name in set(names)]
        keys = [Patch(facecolor=colours[name], edgecolor=INK, lw=0.4, label=_short(name)) for name in present]
        fig.legend(handles=keys, loc="outside lower center", ncols=min(4, max(len(keys), 1)), fontsize=8)
    return fig


def _short(name: str) -> str:
    return str(name).replace("permanent ", "").replace(" / sparse vegetation", "").replace("herbaceous ", "")


# ---- the widget


class ChipMap(Touch):
    """The map, the panel beside it, and what was told so far: `given` {chip: label} and `answers` [N] or None."""

    def __init__(self, atlas: Atlas, background: Layer, colours: Mapping[str, str], *, height: str = "430px"):
        import ipyleaflet  # with leafmap several seconds: paid where a map is made

        self.atlas, self.colours = atlas, dict(colours)
        self.chosen, self.given, self.answers = None, {}, None
        self.map = show_on_map(background, height=height)
        self.chips = ipyleaflet.GeoJSON(data=self._features(), name="chips", hover_style={"weight": 4})
        self.chips.on_click(lambda properties=None, **_: self.click(properties["chip"]))
        self.map.add(self.chips)
        self.picture = ipywidgets.Image(format="png", layout=ipywidgets.Layout(width="100%", max_width="640px"))
        self.picture.add_class("clay-neighbours")
        self.label = ipywidgets.Combobox(
            options=tuple(colours), placeholder="a label of your own", layout=ipywidgets.Layout(width="14em")
        )
        button = ipywidgets.Button(description="label this chip", icon="check")
        button.on_click(lambda _: self.tell(self.label.value))
        self.said = ipywidgets.HTML("Click a chip.")
        panel = ipywidgets.VBox([self.said, self.picture, ipywidgets.HBox([self.label, button])])
        super().__init__([self.map, panel], _still(atlas, background, self.colours))
        self.add_class("clay-chip-map")

    def click(self, chip: int) -> None:
        """Choose a chip: its neighbours appear."""
        self.chosen = int(chip)
        self.picture.value = as_png(show_neighbours(self.atlas, [self.chosen], names=self.answers))
        self._say(f"Chip {self.chosen} and the {NEIGHBOURS} chips that the model finds most like it (cosine).")
        self.chips.data = self._features()

    def tell(self, label: str) -> None:
        """Give the chosen chip a label (empty: take it back), and fit the probe again."""
        if self.chosen is None:
            return self._say("Click a chip first.")
        label = label.strip()
        if label:
            self.given[self.chosen] = label
            for name in [label] if label not in self.colours else []:
                self.colours[name] = PALETTE[len(self.colours) % len(PALETTE)]
        else:
            self.given.pop(self.chosen, None)
        self.answers = refit(self.atlas.vectors, self.given)
        self.chips.data = self._features()
        self._say(f"Chip {self.chosen} is {label or 'without a label'}.")

    def _say(self, text: str) -> None:
        told = f"{len(self.given)} labelled." if self.given else ""
        if self.answers is None and self.given:
            told += " A second kind is needed before the others can be guessed."
        if self.answers is not None:
            told += " The others are coloured by a linear probe on these."
            known = self.atlas.truth is not None and set(self.given.values()) <= set(self.atlas.truth.tolist())
            if known and len(self.given) < len(self.answers):
                told += f" It is right for {agreement(self.answers, self.atlas.truth, self.given):.0%} of them."
        self.said.value = f"<b>{text}</b> {told}"

    def _features(self) -> dict:
        """GeoJSON: a square or a dot for each chip, in the colour of its label or of the probe's answer."""
        atlas, features = self.atlas, []
        for chip in range(len(atlas.lat)):
            name = self.given.get(chip) or (self.answers[chip] if self.answers is not None else None)
            if atlas.outlines is None:
                shape = {"type": "Point", "coordinates": [float(atlas.lon[chip]), float(atlas.lat[chip])]}
            else:
                ring = atlas.outlines[chip].tolist()
                shape = {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}
            edge = "#000000" if chip in self.given or chip == self.chosen else "#ffffff"
            look = dict(color=edge, weight=3 if chip == self.chosen else 2 if chip in self.given else 0.7)
            look["smoothFactor"] = 0  # corners as they are
            look |= dict(fillColor=to_hex(self.colours[name]) if name else "#ffffff", radius=6)
            look["fillOpacity"] = (0.55 if name else 0.05) if atlas.outlines is not None else (0.95 if name else 0.6)
            features.append({"type": "Feature", "geometry": shape, "properties": {"chip": chip, "style": look}})
        return {"type": "FeatureCollection", "features": features}


def _still(atlas: Atlas, background: Layer, colours: Mapping[str, str]) -> Figure:
    """Where no kernel runs: neighbours of four chips, and what three labels of each known kind make of the map."""
    kinds = np.arange(len(atlas.lat)) if atlas.truth is None else np.unique(atlas.truth, return_index=True)[1]
    four = kinds[np.unique(np.linspace(0, len(kinds) - 1, 4).astype(int))].tolist()
    known = [] if atlas.truth is None else [(int(n), k) for k in colours for n in np.flatnonzero(atlas.truth == k)[:3]]
    answers = refit(atlas.vectors, given := dict(known))
    if answers is None:
        return show_neighbours(atlas, four)
    with figures.styled():
        fig = plt.figure(figsize=(10.6, 5.2))
        left, right = fig.subfigures(1, 2, width_ratios=(1, 1))
    show_map(atlas, background, answers, colours, given, left)
    show_neighbours(atlas, four, names=atlas.truth, fig=right)
    share = agreement(answers, atlas.truth, given)
    left.suptitle(f"A probe on {len(given)} labels (black rims): right for {share:.0%} of the others", fontsize=10)
    right.suptitle("Chips, and those with the most alike embeddings (cosine)", fontsize=10)
    return fig


def chip_map(
    chips: Chips,
    vectors: np.ndarray,
    background: Layer,
    *,
    outlines: np.ndarray | None = None,
    thumbnails: Sequence[np.ndarray] | None = None,
    truth: Sequence[str] | None = None,
    colours: Mapping[str, str] | None = None,
) -> ChipMap:
    """Chips on a map: click one to see its neighbours, give labels, and watch a linear probe colour the rest.

    vectors [N, D]: of `embed.embed_chips`. background: `world_background`, or the scene as a maps.Layer.
    outlines: of `cut_tiles`. thumbnails: pictures of one's own making; else of the chips on a fixed brightness.
    truth: [N] names, if known: the score is counted with them, they are never learned from. colours: {name: colour},
    the labels to choose from; any other can be typed.
    """
    if thumbnails is None:
        thumbnails = [figures.rgb(pixels, chips.sensor, stretch=None) for pixels in chips.pixels]
    truth = None if truth is None else np.asarray(truth)
    colours = colours or ({} if truth is None else figures.class_colors(truth.tolist()))
    place = dict(lat=np.asarray(chips.lat, float), lon=np.asarray(chips.lon, float))
    return ChipMap(
        Atlas(**place, vectors=vectors, thumbnails=thumbnails, outlines=outlines, truth=truth), background, colours
    )
