"""Things to touch: live widgets that leave a still picture where no kernel runs."""

from __future__ import annotations

import base64
from io import BytesIO

import ipywidgets
import matplotlib.pyplot as plt
from matplotlib.figure import Figure


class Touch(ipywidgets.VBox):
    """A box of widgets with a still picture of itself in the same output.

    JupyterLab shows the widgets. A saved notebook, an exported page and GitHub have no kernel, and show the picture.
    """

    def __init__(self, children, still: Figure):
        super().__init__(children)
        self.still = as_png(still)

    def _repr_mimebundle_(self, **kwargs):
        told = super()._repr_mimebundle_(**kwargs)
        return told and {**told, "image/png": base64.b64encode(self.still).decode()}


def as_png(fig: Figure) -> bytes:
    """The figure as PNG, and closed, so that Jupyter does not show it a second time."""
    buffer = BytesIO()
    fig.savefig(buffer, format="png", metadata={"Software": None})
    plt.close(fig)
    return buffer.getvalue()


def wide(description: str, **more) -> dict:
    """How a control of a widget looks: a name of any length, one width, and no redraw before the mouse lets go."""
    look = dict(style={"description_width": "9em"}, layout=ipywidgets.Layout(width="27em"))
    return dict(description=description, **look, **more)
