"""Checks of the exercises of 02: columns at two pixel sizes, the circle of the year, and the code of a grid."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime

import torch
from einops import rearrange, repeat

from clay_lib.course.checking import as_tensor, attempt, compare, require, right, value
from clay_lib.datacube import time_code


def check_same_place(fn: Callable) -> None:
    """fn(column, gsd, other_gsd) -> the column at other_gsd whose code is that of `column` at gsd."""
    asked = [(12, 10.0, 30.0), (5, 30.0, 10.0), (7, 0.6, 3.0), (11, 10.0, 30.0)]
    found = torch.tensor([float(value(attempt(fn, *one))) for one in asked])
    column, gsd, other = torch.tensor(asked).T
    compare(
        found,
        column * gsd / other,
        slips={
            "The two pixel sizes are swapped: coarser pixels need fewer columns for the same metres.": column
            * other
            / gsd,
            "This is the same column at both pixel sizes. The code counts metres, column times pixel size.": column,
            "These are metres. Divide them by the other pixel size to get columns.": column * gsd,
            "The patch size does not matter here: it is 8 pixels at both pixel sizes.": 8 * column * gsd / other,
            "These are whole numbers, cut off: codes lie between whole columns too.": torch.floor(column * gsd / other),
            "These are whole numbers, rounded: codes lie between whole columns too.": torch.round(column * gsd / other),
        },
        what="the columns",
    )
    right("Equal metres, equal codes.")


def check_week_code(fn: Callable) -> None:
    """fn(when: datetime) -> [sine, cosine] of the ISO week as a part of 52 weeks' circle."""
    dates = [datetime(2023, 6, 10, 10, 30), datetime(2024, 12, 30), datetime(2021, 1, 2), datetime(2025, 9, 30)]
    found = [as_tensor(attempt(fn, date)).double().flatten() for date in dates]
    counts = [len(f) for f in found]
    require(counts == [2] * 4, f"Two numbers are wanted for a date, sine and cosine; there are {max(counts)}.")

    def circle(part_of_turn):
        angle = 2 * math.pi * torch.tensor([part_of_turn(date) for date in dates], dtype=torch.float64)
        return torch.stack([angle.sin(), angle.cos()], dim=1)

    def week(date):
        return date.isocalendar().week

    wanted = torch.cat([time_code(date.isoformat())[:, :2] for date in dates]).double()
    compare(
        torch.stack(found),
        wanted,
        axes="dates sin|cos",
        slips={
            "Cosine comes first. Clay's order is sine, then cosine.": wanted.flip(1),
            "The angle is in degrees; sine and cosine take radians: a turn is 2 pi.": circle(
                lambda d: 360 * week(d) / 52 / (2 * math.pi)
            ),
            "The factor 2 is missing: 52 weeks are a whole turn, 2 pi.": circle(lambda d: week(d) / 104),
            "You divide by 53: Clay divides the ISO week by 52.": circle(lambda d: week(d) / 53),
            "You count weeks from 0: the ISO week of early January is 1.": circle(lambda d: (week(d) - 1) / 52),
            "This is the day of the year. Clay takes the ISO week, date.isocalendar().week.": circle(
                lambda d: d.timetuple().tm_yday / 365
            ),
            "This is strftime's %W, which begins each year anew on its first Monday. The ISO week is "
            "date.isocalendar().week.": circle(lambda d: int(d.strftime("%W")) / 52),
            "This is strftime's %U, which begins each year anew on its first Sunday. The ISO week is "
            "date.isocalendar().week.": circle(lambda d: int(d.strftime("%U")) / 52),
            "You take week 53 for week 52: leave it, 53 / 52 of a turn is a little more than one.": circle(
                lambda d: min(week(d), 52) / 52
            ),
            "This is the month. Clay takes the ISO week, date.isocalendar().week.": circle(lambda d: d.month / 12),
            "This is the seven-day count from 1 January. The ISO week is date.isocalendar().week: 30 December 2024 lies "
            "in week 1.": circle(lambda d: ((d.timetuple().tm_yday - 1) // 7 + 1) / 52),
        },
        atol=1e-4,  # degrees reach hundreds of radians, where float32 has no more to say
        what="sines and cosines",
    )
    right("The week on its circle: week 52 and week 1 are neighbours.")


def check_grid_code(fn: Callable) -> None:
    """fn(h, w, frequencies [F]) -> [h w, 4 F]: sin x | cos x | sin y | cos y, row by row."""
    h, w, f = 3, 4, torch.tensor([0.2, 0.55, 0.9, 1.3, 1.8])

    def code(order="(h w)", first=0):
        x, y = torch.arange(w) + first, torch.arange(h) + first
        x, y = repeat(x, f"w -> {order} 1", h=h), repeat(y, f"h -> {order} 1", w=w)
        return [(x * f).sin(), (x * f).cos(), (y * f).sin(), (y * f).cos()]

    parts = code()
    sx, cx, sy, cy = parts
    compare(
        attempt(fn, h, w, f),
        torch.cat(parts, dim=1),
        axes="L 4F",
        slips={
            "Rows and columns are swapped: x, the column, comes first, then y, the row.": torch.cat(
                [sy, cy, sx, cx], dim=1
            ),
            "The tokens come column by column. They come row by row: the column x changes fastest.": torch.cat(
                code("(w h)"), dim=1
            ),
            "Cosines come before sines: the order is sin x, cos x, sin y, cos y.": torch.cat([cx, sx, cy, sy], dim=1),
            "Sines and cosines alternate. They come in four blocks: all sin x, all cos x, all sin y, all cos y.": rearrange(
                torch.stack([torch.cat([sx, sy], 1), torch.cat([cx, cy], 1)], dim=2), "L f two -> L (f two)"
            ),
            "The order is sin x, sin y, cos x, cos y. Keep what belongs to x together: sin x, cos x, sin y, cos y.": (
                torch.cat([sx, sy, cx, cy], dim=1)
            ),
            "You count columns and rows from 1; the first one is 0.": torch.cat(code(first=1), dim=1),
            "Only the columns are here: add sin y and cos y.": torch.cat([sx, cx], dim=1),
        },
        what="the codes",
    )
    right("Every token of a grid that is not square has its column and its row.")
