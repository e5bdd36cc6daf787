"""Figures of an audit of labels: highest cosines, reliability, learning curve."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from clay_lib.figures import style


def highest_cosines(cosines: np.ndarray, limit: float) -> Figure:
    """Histogram of each test chip's highest cosine [M] to training; from `limit` on two chips are near-duplicates."""
    with style.styled():
        fig, ax = plt.subplots(figsize=(5.2, 3.2))
        edges = np.linspace(min(0.0, cosines.min()), 1, 51)
        duplicate = cosines >= limit
        ax.hist([cosines[~duplicate], cosines[duplicate]], edges, stacked=True, color=[style.BASELINE, style.OURS])
        ax.axvline(limit, color=style.INK, lw=1, ls="--")
        where = dict(xycoords=("data", "axes fraction"), va="top", ha="right")
        ax.annotate(f"{duplicate.sum()} near-duplicates ", (limit, 1.0), fontsize=9, **where)
        ax.set(title="The most similar training chip", xlabel="cosine, standardized features", ylabel="test chips")
    return fig


def reliability(confidence: np.ndarray, accuracy: np.ndarray, count: np.ndarray) -> Figure:
    """Accuracy over confidence of each bin [B]; a dot's area is its number of chips, the diagonal is calibrated."""
    with style.styled():
        fig, ax = plt.subplots(figsize=(4.2, 4.0))
        ax.plot([0, 1], [0, 1], color=style.BASELINE, lw=1.2, ls="--")
        ax.annotate("calibrated", (0.03, 0.06), color=style.BASELINE_TEXT, fontsize=9, rotation=45)
        ax.plot(confidence, accuracy, color=style.OURS, lw=1.2)
        ax.scatter(confidence, accuracy, 12 + 300 * count / count.sum(), color=style.OURS, alpha=0.8)
        ax.set(title="Reliability", xlabel="confidence of the probe", ylabel="share that is right")
        ax.set(xlim=(0, 1.02), ylim=(0, 1.02), aspect="equal")
    return fig


def learning_curve(labels: np.ndarray, score: np.ndarray, low: np.ndarray, high: np.ndarray) -> Figure:
    """Accuracy over the number of labels (log2), with intervals; the band is that of all labels."""
    with style.styled():
        fig, ax = plt.subplots(figsize=(5.2, 3.2))
        ax.axhspan(low[-1], high[-1], color=style.BASELINE, alpha=0.25, lw=0)
        ax.errorbar(labels, score, np.abs([score - low, high - score]), fmt="o-", color=style.OURS, capsize=3, lw=1.4)
        ax.set_xscale("log", base=2)
        ax.set_xticks(labels, [f"{n:g}" for n in labels])
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set(title="How many labels are enough", xlabel="training labels", ylabel="accuracy on test chips")
    return fig
