"""The strip in a notebook's first cell: the steps from image to result, with those of the notebook in color.

A notebook names its steps in the alternative text of its strip, and `clay exercises` draws the strip from it:
`![Where this notebook stands: masking, encoder](flow/03_mask_patches.png)`. PNG, since GitHub shows no SVG there.
"""

import re
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from PIL import Image

from clay_lib.errors import ContractError
from clay_lib.figures.style import INK, OURS, png, styled
from clay_lib.files import atomic_write
from clay_lib.runs.notebooks import read_script

PLACES = {  # step: column, row
    "image": (0, 0), "datacube": (1, 0), "patches": (2, 0), "positions": (3, 0), "masking": (4, 0), "encoder": (5, 0),
    "decoder": (6, 0), "loss": (7, 0), "training": (8, 0), "embeddings": (5, 1), "maps": (6, 1), "probes": (7, 1),
    "heads": (8, 1), "sweeps": (0, 1),
}  # fmt: skip
ARROWS = [*zip(list(PLACES)[:8], list(PLACES)[1:9], strict=True), ("encoder", "embeddings"), ("embeddings", "maps")]
STRIP = re.compile(r"!\[Where this notebook stands: ([^\]]*)\]\((flow/\w+\.png)\)")
WIDTH, HEIGHT = 0.86, 0.56  # of a box, where columns and rows are 1 apart


def strip_of(script: Path) -> tuple[str, str, list[str]] | None:
    """(markdown, path from notebooks/, steps) of a script's strip; None: it has none."""
    if not (found := STRIP.search(read_script(script).cells[0].source)):
        return None
    steps = list(PLACES)[:-1] if found[1] == "all steps" else found[1].split(", ")
    if unknown := set(steps) - set(PLACES):
        raise ContractError(script.name, f"the steps {sorted(unknown)}", ", ".join(PLACES), "a misspelled step")
    return found[0], found[2], steps


def write_strip(script: Path) -> Path | None:
    """Draw a script's strip beside it, in 64 colors; None: it has none."""
    if strip := strip_of(script):
        image = Image.open(BytesIO(png(draw_strip(strip[2])))).convert("RGB").quantize(64)
        return atomic_write(script.parent / strip[1], lambda part: image.save(part, "PNG", optimize=True))
    return None


def draw_strip(steps: list[str]) -> Figure:
    """The strip with these steps in color and bold."""
    with styled():
        fig = plt.figure(figsize=(10, 1.5), dpi=160, layout="none")
        ax = fig.add_axes((0, 0, 1, 1), xlim=(-0.48, 8.48), ylim=(1.42, -0.42))
        ax.set_axis_off()
        for name, (x, y) in PLACES.items():
            here, corner = name in steps, (x - WIDTH / 2, y - HEIGHT / 2)
            colors = dict(fc=OURS, ec=OURS) if here else dict(fc="#f4f4f4", ec="#9a9a9a")
            ax.add_patch(FancyBboxPatch(corner, WIDTH, HEIGHT, boxstyle="round,pad=0,rounding_size=0.08", **colors))
            weight = dict(color="white", weight="bold") if here else dict(color=INK)
            ax.text(x, y, name, ha="center", va="center", fontsize=9.5, **weight)
        for (x, y), (to_x, to_y) in ((PLACES[a], PLACES[b]) for a, b in ARROWS):
            across, down = (to_x > x) * WIDTH / 2, (to_y > y) * HEIGHT / 2
            ends = dict(xy=(to_x - across, to_y - down), xytext=(x + across, y + down))
            ax.annotate("", **ends, arrowprops=dict(arrowstyle="->", color=INK, shrinkA=1, shrinkB=1))
        ax.text(0.48, 1, "run any of these with many values", va="center", fontsize=9.5, color=INK)
        for x in (6.5, 7.5):
            ax.text(x, 1, "or", ha="center", va="center", fontsize=7, color=INK)
    return fig
