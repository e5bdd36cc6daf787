"""What is said beside an image: ground distance, place and date, each held against what can be."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, timedelta

import numpy as np
from torch import Tensor

from clay_lib.contract import ContractError, number
from clay_lib.contract_evidence import FACTS, Facts, Finding, failed, told
from clay_lib.datacube import latlon_code, parse_when, per_chip
from clay_lib.sensors import Sensor


def _numbers(value) -> list:
    value = value.detach().cpu().tolist() if isinstance(value, Tensor) else value
    value = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
    return list(value) if isinstance(value, (list, tuple)) else [value]


def of_distance(gsd, sensor: Sensor | None, unit: str = "metres") -> Iterator[Finding]:
    if gsd is None:
        return
    try:
        metres = [number("gsd", one) for one in _numbers(gsd)]
    except ContractError as error:
        yield told(error)
        return
    usual = f"{sensor.gsd:g} {unit} for {sensor.name}" if sensor else unit
    for one in {min(metres, default=1.0), max(metres, default=1.0)}:
        if one <= 0:
            yield Finding("error", "gsd", f"{one:g}", f"{unit}, > 0", "the negative pixel height of a transform")
        elif one < 0.01:
            yield Finding(
                "error", "gsd", f"{one:g}", usual,
                f"degrees: times 111320 it is {one * 111_320:.3g} m (less along a parallel)",
            )  # fmt: skip
        elif sensor and not 0.1 < one / sensor.gsd < 10:
            ratio = one / sensor.gsd
            yield Finding(
                "warning", "gsd", f"{one:g}, {max(ratio, 1 / ratio):.3g} times {'more' if ratio > 1 else 'less'}", usual,
                "kilometres, centimetres, the chip's side instead of a pixel's, or another sensor",
            )  # fmt: skip


def of_place(lat, lon, chips: int | None, sensor: Sensor) -> Iterator[Finding]:
    if lat is None and lon is None:
        return
    try:
        lats, lons = (per_chip(n, v, chips or len(_numbers(v))) for n, v in (("lat", lat), ("lon", lon)))
        latlon_code(lats, lons, len(lats))
        places = [(float(a), float(o)) for a, o in zip(lats, lons, strict=True) if a is not None]
    except ContractError as error:
        one = told(error)
        first = next((o for o in _numbers(lon) if isinstance(o, (int, float)) and abs(o) <= 90), None)
        if one.field == "lat" and "swapped" in one.cause and first is not None:
            one = Finding("error", "lat", f"{one.found} with lon {first}", one.expected, "lat and lon are swapped")
        yield one
        return
    except Exception as error:
        yield failed("lat", lat, "degrees", error)
        return
    if (0.0, 0.0) in places:
        yield Finding(
            "warning", "lat", "latitude 0, longitude 0", "a place, or None where it is unknown",
            "a missing place that was stored as zeros",
        )  # fmt: skip
    lands = FACTS.get(sensor.name, Facts()).lands

    def inside(lat, lon):
        return any(w <= lon <= e and s <= lat <= n for w, s, e, n in lands)

    swapped = next(((a, o) for a, o in places if not inside(a, o) and inside(o, a)), None)
    polar = next(((a, o) for a, o in places if abs(a) > 84 and abs(o) <= 84), None)
    if swapped or polar:
        lat, lon = swapped or polar
        where = f"where {sensor.name} is flown; {lon:g}, {lat:g} is" if swapped else "within 84 degrees of the equator"
        yield Finding(
            "warning", "lat", f"latitude {lat:g}, longitude {lon:g}", f"a place {where}", "lat and lon are swapped"
        )


def degrees(lat, lon, other_lat, other_lon) -> float:
    """The greater of the two differences, across the date line."""
    return max(abs(lat - other_lat), abs((lon - other_lon + 180) % 360 - 180))


def of_date(when, chips: int | None, sensor: Sensor) -> Iterator[Finding]:
    if when is None:
        return
    try:
        days = [parse_when(w) for w in per_chip("when", when, chips or len(_numbers(when)))]
        days = sorted({d.date() for d in days if d is not None})
    except ContractError as error:
        yield told(error)
        return
    except Exception as error:
        yield failed("when", when, "ISO 8601, for example 2023-06-10T10:30", error)
        return
    since = FACTS.get(sensor.name, Facts()).since
    if days and since and days[0] < date.fromisoformat(since):
        yield Finding(
            "error", "when", f"{days[0]}", f"{since} or later, when the images of {sensor.name} begin",
            "day, month and year in another order, a placeholder such as 1970-01-01, or another sensor",
        )  # fmt: skip
    if days and days[-1] > (datetime.now() + timedelta(days=1)).date():
        yield Finding(
            "warning", "when", f"{days[-1]}", "a day in the past",
            "day, month and year in another order, or this computer's clock",
        )  # fmt: skip
