"""Interactive map of chips: click one to see its neighbors in embedding space, mark examples for and against and the
ranking follows, label some, and a probe labels the rest.

The map needs no tile server: below the chips lies a raster (figures.maps.Layer), such as the scene that they are cut
from or the mini-world's land cover.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex, to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image
from rasterio.warp import transform

from clay_lib import figures
from clay_lib.areas.neighbors import NEGATIVE_WEIGHT, nearest
from clay_lib.course.widgets import Widget, fill_page, image_widget, webp_url
from clay_lib.data.chips import Chips
from clay_lib.data.georeference import coarser
from clay_lib.data.rasters import write_raster
from clay_lib.data.scenes import DEGREES_A_PIXEL, Scene
from clay_lib.errors import ContractError
from clay_lib.evaluation.audit import likely_wrong, out_of_fold
from clay_lib.evaluation.probes import fit_linear, standardize
from clay_lib.figures.images import scale_bar
from clay_lib.figures.maps import DEGREES, Layer, show_on_map
from clay_lib.figures.style import INK, MISSING, PALETTE, png
from clay_lib.world.earth import CLASS_COLORS, MiniWorld

NEIGHBORS = 5
SHORT_NAMES = {"permanent ": "", " / sparse vegetation": "", "herbaceous ": ""}


@dataclass(frozen=True, eq=False)
class Atlas:
    """N chips on a map."""

    lat: np.ndarray  # [N] degrees
    lon: np.ndarray  # [N]
    vectors: np.ndarray  # [N, D] embeddings
    thumbnails: Sequence[np.ndarray]  # N of [H, W, 3]
    outlines: np.ndarray | None = None  # [N, 4, 2] corners, lon and lat in degrees; None: chips are dots
    truth: np.ndarray | None = None  # [N] names, where they are known; never shown to the probe
    placed: bool = True  # whether the degrees are those of the Earth

    def __post_init__(self):
        counts = {len(v) for v in (self.lat, self.lon, self.vectors, self.thumbnails)}
        counts |= {len(v) for v in (self.outlines, self.truth) if v is not None}
        if len(counts) > 1 or not np.isfinite([self.lat, self.lon]).all():
            found = f"{sorted(counts)} places, vectors and thumbnails"
            cause = "a selection of one of them, or an image without georeference"
            raise ContractError("chips", found, "one of each for every chip, and a known place", cause)

    def shape(self, chip: int) -> dict:
        """The outline of a chip, or its center, as a GeoJSON geometry, counterclockwise."""
        if self.outlines is None:
            return {"type": "Point", "coordinates": [round(float(self.lon[chip]), 6), round(float(self.lat[chip]), 6)]}
        ring = self.outlines[chip].round(6)
        (ax, ay), (bx, by) = ring[2] - ring[0], ring[3] - ring[1]
        ring = (ring if ax * by > ay * bx else ring[::-1]).tolist()
        return {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}


def neighbors(
    vectors: np.ndarray, chip: int, count: int = NEIGHBORS, marks: Mapping[int, int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(indices, cosines) [count] of the chips most similar to one of vectors [N, D], centered; without the chip itself.

    marks {chip: 1 or -1}: then those most similar to the mean of the chips marked 1 (if there is none, the one chosen)
    minus half the mean of those marked -1, without these.
    """
    marks = dict(marks) if marks and max(marks.values()) > 0 else {chip: 1} | dict(marks or {})
    centered = vectors - vectors.mean(axis=0)
    units = centered / np.linalg.norm(centered, axis=1, keepdims=True).clip(1e-9)
    means = [units[[n for n in marks if marks[n] == sign] or [0]].mean(axis=0) for sign in (1, -1)]
    query = means[0] - (NEGATIVE_WEIGHT * means[1] if min(marks.values()) < 0 else 0)
    others = ~np.isin(np.arange(len(vectors)), list(marks))
    if not query.any():  # no direction, as where all chips are the same: none is nearer than another
        return np.flatnonzero(others)[:count], np.zeros(min(count, others.sum()))
    return nearest(centered, query, count, keep=others)


def suspects(vectors: np.ndarray, labels: Mapping[int, str]) -> dict[int, str]:
    """{chip: what the other labels suggest} where that contradicts its label; needs three of each kind of label."""
    chips, names = list(labels), np.array(list(labels.values()))
    counts = np.unique(names, return_counts=True)[1]
    if len(counts) < 2 or counts.min() < 3:
        return {}
    fold = out_of_fold(vectors[chips], names, groups=np.arange(len(chips)), strength=0.1)
    wrong = likely_wrong(fold[0], names, fold[1])
    return {chips[row.chip]: str(row.suggestion) for row in wrong.itertuples()}


def refit(vectors: np.ndarray, labels: Mapping[int, str]) -> np.ndarray | None:
    """A linear probe fitted on {chip: label} -> a label for all chips [N]; None until there are two kinds of label.

    Features are scaled by all chips, labeled or not: two chips alone do not show how much a feature varies.
    """
    if len(set(labels.values())) < 2:
        return None
    scaled, _ = standardize(vectors, vectors)
    return fit_linear(scaled[list(labels)], np.array(list(labels.values())), 0.1).predict(scaled)


def agreement(predictions: np.ndarray, truth: np.ndarray, labels: Mapping[int, str]) -> float:
    """Share of the unlabeled chips whose prediction is the truth."""
    rest = np.setdiff1d(np.arange(len(truth)), list(labels))
    return float((predictions[rest] == truth[rest]).mean())


def scene_background(scene: Scene) -> Layer:
    """A scene in color, to lay chips of `data.cut_chips` on. One without a CRS lies at 0, 0: the map shows no true place."""
    options = dict(valid=scene.valid, in_decibel=scene.in_decibel)
    image = figures.rgb(scene.measured(), scene.sensor, scene.bands, **options)
    crs, matrix = scene.crs or DEGREES, scene.transform
    if scene.crs is None:
        matrix = (DEGREES_A_PIXEL, 0.0, 0.0, 0.0, -DEGREES_A_PIXEL, 0.0)
    return Layer("scene", image, crs, matrix, valid=scene.valid)


def world_background(world: MiniWorld, step: float = 1.0) -> Layer:
    """The mini-world's land cover in pale colors, a point every `step` degrees, as a background for chips."""
    lat, lon = np.arange(80 - step / 2, -60, -step), np.arange(-180 + step / 2, 180, step)
    codes = world.land_cover(*np.meshgrid(lat, lon, indexing="ij"))
    table = np.ones((256, 3))
    for code, color in CLASS_COLORS.items():
        table[code] = 0.55 + 0.45 * np.array(to_rgb(color))
    return Layer("the mini-world", table[codes], DEGREES, (step, 0.0, -180.0, 0.0, -step, 80.0))


def show_neighbors(
    atlas: Atlas,
    chips: Sequence[int],
    *,
    names: Sequence[str] | None = None,
    marks: Mapping[int, int] | None = None,
) -> Figure:
    """A row for each chip: itself, framed, then its `neighbors` with their cosines; names [N] under each."""
    with figures.styled():
        size = (1.15 * (1 + NEIGHBORS), (1.35 if names is None else 1.55) * len(chips))
        fig, axes = plt.subplots(len(chips), 1 + NEIGHBORS, squeeze=False, figsize=size)
        for ax in axes.flat:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        for row, chip in zip(axes, chips, strict=True):
            order, cosines = neighbors(atlas.vectors, chip, marks=marks)
            titles = [f"chip {chip}", *(f"{value:.2f}" for value in cosines)]
            for ax, number, title in zip(row, [chip, *order], titles, strict=False):
                ax.imshow(atlas.thumbnails[number])
                ax.set_title(title, loc="center", fontsize=8)
                ax.set_xlabel("" if names is None else _short(names[number]), fontsize=7, labelpad=2)
            row[0].spines[:].set(visible=True, linewidth=2.5)
    return fig


def show_map(
    atlas: Atlas,
    background: Layer,
    names: Sequence[str],
    colors: Mapping[str, str],
    labels: Mapping[int, str],
) -> Figure:
    """The chips on their background in the colors of their names; those with a label have a black rim."""
    a, _, x, _, e, y = background.transform
    h, w = np.shape(background.values)[:2]
    in_degrees = background.crs == DEGREES
    with figures.styled():
        fig, ax = plt.subplots(figsize=(5.6, 5.4))
        ax.imshow(background.values, extent=(x, x + a * w, y + e * h, y), aspect="equal")
        fills = [to_rgba(colors.get(name, str(MISSING)), 0.5 if atlas.outlines is not None else 1) for name in names]
        rims = dict(
            edgecolors=["black" if n in labels else "white" for n in range(len(names))],
            linewidths=[1.8 if n in labels else 0.5 for n in range(len(names))],
        )
        if atlas.outlines is None:
            ax.scatter(*_on_map(background, atlas.lon, atlas.lat), s=30, c=fills, **rims)
        else:
            corners = [np.transpose(_on_map(background, *outline.T)) for outline in atlas.outlines]
            ax.add_collection(PolyCollection(corners, facecolors=fills, **rims))
        if in_degrees:
            ax.set(xlabel="longitude (degrees)", ylabel="latitude (degrees)")
        else:
            ax.set(xticks=[], yticks=[])
            scale_bar(ax, a * w)
        present = [name for name in colors if name in set(names)]
        keys = [Patch(facecolor=colors[name], edgecolor=INK, lw=0.4, label=_short(name)) for name in present]
        fig.legend(handles=keys, loc="outside lower center", ncols=min(4, max(len(keys), 1)), fontsize=8)
    return fig


def _on_map(background: Layer, lon: np.ndarray, lat: np.ndarray):
    """Degrees -> x and y in the background's coordinates."""
    return (lon, lat) if background.crs == DEGREES else np.array(transform(DEGREES, background.crs, lon, lat))


def write_map(path: str | Path, scene: Scene, side: int, kept: np.ndarray, names: Sequence[str]) -> Path:
    """Names [N] of the tiles that `data.cut_chips` kept, as a GeoTIFF with one pixel a tile: codes from 1, 0 for no data.

    The band's description lists the codes.
    """
    classes, codes = np.unique(names, return_inverse=True)
    rows, columns = (n // side for n in scene.pixels.shape[1:])
    raster = np.zeros(rows * columns, np.uint8)
    raster[kept] = codes + 1
    key = ", ".join(f"{code} {name}" for code, name in enumerate(classes, start=1))
    place = dict(crs=scene.crs, transform=scene.transform and coarser(scene.transform, side), nodata=0)
    return write_raster(path, raster.reshape(rows, columns), descriptions=[key], **place)


def _short(name: str) -> str:
    for long, short in SHORT_NAMES.items():
        name = str(name).replace(long, short)
    return name


def _different(vectors: np.ndarray, count: int) -> list[int]:
    """Chips that differ most: each next one is the least similar to all before it."""
    unit = vectors - vectors.mean(axis=0)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True).clip(1e-9)
    chosen = [0]
    while len(chosen) < min(count, len(unit)):
        chosen.append(int((unit @ unit[chosen].T).max(axis=1).argmin()))
    return chosen


def _page(atlas: Atlas, background: Layer, colors: Mapping[str, str]) -> str:
    """The map as HTML: click a chip to see its neighbors, mark some to rank by them.

    Vectors are stored in 8 bits, thumbnails in one image.
    """
    a, _, x, _, e, y = background.transform
    h, w = np.shape(background.values)[:2]
    size = 1000, round(1000 * abs(e) * h / (a * w))
    places = np.stack([atlas.lon, atlas.lat], axis=-1)[:, None] if atlas.outlines is None else atlas.outlines
    X, Y = _on_map(background, *places.reshape(-1, 2).T)
    shapes = np.stack([size[0] * (X - x) / (a * w), size[1] * (Y - y) / (e * h)], axis=-1).reshape(places.shape)
    centered = atlas.vectors - atlas.vectors.mean(axis=0)
    scaled = np.rint(127 * centered / np.abs(centered).max(axis=1, keepdims=True).clip(1e-9)).astype(np.int8)
    side = min(48, max(atlas.thumbnails[0].shape[:2]))
    across = int(np.ceil(np.sqrt(len(shapes))))
    sprite = np.ones((-(-len(shapes) // across) * side, across * side, 3))
    for n, thumbnail in enumerate(atlas.thumbnails):
        small = Image.fromarray(np.uint8(255 * np.clip(thumbnail[..., :3], 0, 1))).resize((side, side))
        row, column = divmod(n, across)
        sprite[row * side : (row + 1) * side, column * side : (column + 1) * side] = np.asarray(small) / 255
    names = None if atlas.truth is None else [_short(name) for name in atlas.truth]
    data = dict(
        size=" ".join(map(str, size)), shapes=shapes.round(1).tolist(), first=_different(atlas.vectors, 2)[-1],
        vectors=f"data:application/octet-stream;base64,{base64.b64encode(scaled.tobytes()).decode()}",
        colors=["#fff"] * len(shapes) if names is None else [to_hex(colors.get(n, "#fff")) for n in atlas.truth],
        background=webp_url(background.values), sprite=webp_url(sprite), across=across, names=names,
        places=[atlas.shape(n) for n in range(len(shapes))] if atlas.placed else None,
    )  # fmt: skip
    alt = "Chips, and those with the most similar embeddings"
    return fill_page("click.html", data, alt=alt, weight=str(NEGATIVE_WEIGHT))


class ChipMap(Widget):
    """The map and the panel beside it.

    labels: {chip: label} and marks: {chip: 1 or -1} so far; predictions [N] of the probe, or None.
    """

    def __init__(self, atlas: Atlas, background: Layer, colors: Mapping[str, str]):
        import ipyleaflet  # takes seconds, with leafmap

        self.atlas, self.colors = atlas, dict(colors)
        self.chosen, self.labels, self.marks, self.predictions = None, {}, {}, None
        self.map = show_on_map([background], height="430px")
        self.chips = ipyleaflet.GeoJSON(data=self._features(), name="chips", hover_style={"weight": 4})
        self.chips.on_click(lambda properties=None, **_: self.click(properties["chip"]))
        self.map.add(self.chips)
        self.image = image_widget("clay-neighbors", width="100%", max_width="640px")
        layout = ipywidgets.Layout(width="14em")
        entry = ipywidgets.Combobox(options=tuple(colors), placeholder="a label of your own", layout=layout)
        button = ipywidgets.Button(description="label this chip", icon="check")
        button.on_click(lambda _: self.label(entry.value))
        self.message, buttons = ipywidgets.HTML("Click a chip."), []
        for text, sign in {"+ more like this": 1, "− less like this": -1, "no mark": 0}.items():
            buttons.append(ipywidgets.Button(description=text, layout=ipywidgets.Layout(width="9.5em")))
            buttons[-1].on_click(lambda _, sign=sign: self.mark(sign))
        rows = ipywidgets.HBox(buttons), ipywidgets.HBox([entry, button])
        panel = ipywidgets.VBox([self.message, self.image, *rows])
        still = show_neighbors(atlas, _different(atlas.vectors, 4), names=atlas.truth)
        super().__init__([self.map, panel], still, _page(atlas, background, self.colors))
        self.add_class("clay-chip-map")

    def click(self, chip: int) -> None:
        """Choose a chip and show its neighbors, or with marks the ranking that follows from them."""
        self.chosen = int(chip)
        self._rank()

    def mark(self, sign: int) -> None:
        """Mark the chosen chip as an example (1) or a counterexample (-1), or remove its mark (0)."""
        if self.chosen is None:
            return self._show_message("Click a chip first.")
        self.marks = {n: s for n, s in self.marks.items() if n != self.chosen} | ({self.chosen: sign} if sign else {})
        self._rank()

    def _rank(self) -> None:
        options = dict(names=self.predictions, marks=self.marks)
        self.image.value = png(show_neighbors(self.atlas, [self.chosen], **options))
        text = f"Chip {self.chosen} and the {NEIGHBORS} chips with the most similar embeddings (cosine)."
        if self.marks:
            signs = list(self.marks.values())
            text = f"Chip {self.chosen}, and those ranked first by the examples: "
            text += f"{signs.count(1) or 1} for, {signs.count(-1)} against."
        self._show_message(text, self._link())
        self.chips.data = self._features()

    def _link(self) -> str:
        """A link that saves the chosen chip (rank 0), the hits and the marked chips as GeoJSON."""
        if not self.atlas.placed:
            return ""
        order, cosines = neighbors(self.atlas.vectors, self.chosen, marks=self.marks)
        rows = {self.chosen: (0, None)} | {n: (None, None) for n in self.marks}
        rows |= {int(n): (rank, float(c)) for rank, (n, c) in enumerate(zip(order, cosines, strict=True), start=1)}
        names = self.predictions if self.predictions is not None else self.atlas.truth
        features = []
        for n, (rank, cosine) in rows.items():
            properties = {"rank": rank, "chip": n, "similarity": cosine, "mark": self.marks.get(n, 0)}
            properties["name"] = None if names is None else str(names[n])
            features.append({"type": "Feature", "geometry": self.atlas.shape(n), "properties": properties})
        text = base64.b64encode(json.dumps({"type": "FeatureCollection", "features": features}).encode()).decode()
        return f'<a download="hits.geojson" href="data:application/geo+json;base64,{text}">save as GeoJSON</a>'

    def label(self, name: str) -> None:
        """Label the chosen chip (empty: remove its label) and fit the probe again."""
        if self.chosen is None:
            return self._show_message("Click a chip first.")
        name = name.strip()
        if name:
            self.labels[self.chosen] = name
            self.colors.setdefault(name, PALETTE[len(self.colors) % len(PALETTE)])
        else:
            self.labels.pop(self.chosen, None)
        self.predictions = refit(self.atlas.vectors, self.labels)
        self.chips.data = self._features()
        found = [
            f"chip {n} ({self.labels[n]}, rather {s})" for n, s in suspects(self.atlas.vectors, self.labels).items()
        ]
        check = f" Look again at {', '.join(found)}." if found else ""
        self._show_message(f"Chip {self.chosen} is {name or 'without a label'}.{check}")

    def _show_message(self, text: str, link: str = "") -> None:
        status = f"{len(self.labels)} labeled." if self.labels else ""
        if self.predictions is None and self.labels:
            status += " Label a second kind to have the others predicted."
        if self.predictions is not None:
            status += " The others are colored by a linear probe on these."
            known = self.atlas.truth is not None and set(self.labels.values()) <= set(self.atlas.truth.tolist())
            if known and len(self.labels) < len(self.predictions):
                share = agreement(self.predictions, self.atlas.truth, self.labels)
                status += f" It is right for {share:.0%} of them."
        self.message.value = f"<b>{text}</b> {status} {link}"

    def _features(self) -> dict:
        """GeoJSON: a square or a dot for each chip, in the color of its label or prediction."""
        atlas, features = self.atlas, []
        filled, empty = (0.55, 0.05) if atlas.outlines is not None else (0.95, 0.6)  # opacity of squares, of dots
        for chip in range(len(atlas.lat)):
            name = self.labels.get(chip) or (self.predictions[chip] if self.predictions is not None else None)
            sign = self.marks.get(chip)
            rim = "#000000" if chip in self.labels or chip == self.chosen else "#ffffff"
            style = {
                "color": {1: "#0072B2", -1: "#D55E00"}.get(sign, rim),
                "weight": 4 if sign else 3 if chip == self.chosen else 2 if chip in self.labels else 0.7,
                "dashArray": "4 4" if sign == -1 else "",
                "smoothFactor": 0,  # keeps the corners
                "fillColor": to_hex(self.colors[name]) if name else "#ffffff",
                "fillOpacity": filled if name else empty,
                "radius": 6,
            }
            properties = {"chip": chip, "style": style}
            features.append({"type": "Feature", "geometry": atlas.shape(chip), "properties": properties})
        return {"type": "FeatureCollection", "features": features}


def chip_map(
    chips: Chips,
    vectors: np.ndarray,
    background: Layer,
    *,
    outlines: np.ndarray | None = None,
    thumbnails: Sequence[np.ndarray] | None = None,
    truth: Sequence[str] | None = None,
    colors: Mapping[str, str] | None = None,
) -> ChipMap:
    """Chips on a map: click one to see its neighbors, mark or label some, and the ranking or a linear probe follows.

    vectors [N, D]: their embeddings. background: of `world_background` or `scene_background`. outlines [N, 4, 2]: of
    `data.cut_chips`. thumbnails: N of [H, W, 3], by default the chips at a fixed brightness. truth [N]: names, if known,
    to count how often the probe is right. colors: {label: color} to choose from; any other label can be typed.
    """
    if thumbnails is None:
        thumbnails = [figures.rgb(pixels, chips.sensor, stretch=None) for pixels in chips.pixels]
    truth = None if truth is None else np.asarray(truth)
    colors = colors or ({} if truth is None else figures.class_colors(truth.tolist()))
    lat, lon = np.asarray(chips.lat, float), np.asarray(chips.lon, float)
    placed = not np.isnan(lat).all()
    if outlines is not None and not placed:  # of a scene without a CRS
        lon, lat = outlines.mean(axis=1).T
    return ChipMap(Atlas(lat, lon, vectors, thumbnails, outlines, truth, placed), background, colors)
