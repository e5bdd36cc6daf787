"""The command `plan`: measures what a laptop can measure and writes the page with the rest worked out."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from clay_lib import flops
from clay_lib.model import ClayConfig
from clay_lib.plan import (
    CHIPS,
    DEVICES,
    EPOCHS,
    FILL_UTILISATION,
    FLIPS,
    INDEX_BYTES,
    PIXELS,
    TARGET_KEY,
    UTILISATION,
    chip_bytes,
    chips_seen,
    gpu_hours,
    loader_rate,
    step_flops,
    store_bytes,
    target_bytes,
)  # fmt: skip

PAGE = Path(__file__).resolve().parents[1] / "papermill_runs" / "PRETRAINING.md"


@dataclass(frozen=True)
class Measured:
    """What this machine can tell. Kept in the page, so that its arithmetic can be done again."""

    chips: int  # of each sensor
    itemsizes: Mapping[str, int]  # bytes a number, as the store keeps it
    ratios: Mapping[str, float]  # compressed over raw bytes
    decode: float  # raw GB/s that one core unpacks
    machine: str


def write_plan(out: str = str(PAGE), *, chips: int = 6, jobs: int = 1) -> int:
    """Write the plan for 70 million chips and 100 epochs: stores, loader, teacher cache and GPUs.

    Args:
        out: the page to write
        chips: of each sensor that the compression is measured on, 256 x 256 pixels of the mini-world
        jobs: processes that make them
    """
    Path(out).write_text(page(measure(chips, jobs)))
    print(f"wrote {out}")
    return 0


def measure(count: int, jobs: int = 1) -> Measured:
    """Chips of the mini-world, compressed as the store does."""
    from numcodecs import blosc

    from clay_lib.chips import world_chips
    from clay_lib.shards import encode
    from clay_lib.writer import native

    itemsizes, ratios, seconds = {}, {}, []
    for sensor in CHIPS:
        pixels = native(world_chips(sensor, count, size=PIXELS, jobs=jobs, cloud_cover=0.1))
        stored = sum(len(data) for name, data in encode({"pixels": pixels}).items() if "/c/" in name)
        itemsizes[sensor], ratios[sensor] = pixels.dtype.itemsize, round(stored / pixels.nbytes, 2)
        packed = blosc.compress(pixels[0].tobytes(), b"lz4", 5, blosc.BITSHUFFLE, typesize=pixels.dtype.itemsize)
        for _ in range(3):
            start = time.perf_counter()
            blosc.decompress(packed)
            seconds.append((time.perf_counter() - start) / pixels[0].nbytes)
    machine = f"{platform.machine()}, one thread"
    return Measured(count, itemsizes, ratios, round(1e-9 / float(np.median(seconds)), 1), machine)


def page(measured: Measured) -> str:
    """The page as Markdown."""
    total = sum(CHIPS.values())
    parts = [_head(measured, total), _stores(measured, total), _cache(total), _student(total), _loader(measured)]
    parts.append(
        "## What would have to be measured first\n\n"
        "The share of peak of one GPU for base and large (`python -m clay_lib train --forecast` on it), what is lost between "
        "nodes, how real imagery compresses (`python -m clay_lib chips ... --scenes ... --forecast`), and the reading rate "
        "of the object storage."
    )
    return "\n\n".join(parts) + f"\n\n<!-- measured: {json.dumps(asdict(measured))} -->\n"


def measured_in(text: str) -> Measured:
    """What a page was written from."""
    return Measured(**json.loads(text.rsplit("<!-- measured: ", 1)[1].split(" -->")[0]))


def _head(measured: Measured, total: int) -> str:
    return (
        "# Pretraining on 70 million chips, on paper\n\n"
        f"Written by `python -m clay_lib plan`. **M**: measured by that command ({measured.machine}, chips of the "
        "mini-world). **A**: arithmetic from what stands beside it. **D**: a maker's data sheet or the release's own figure. "
        "**S**: supposed. The formulas are functions of `clay_lib/plan.py` and `clay_lib/flops.py`, whose operations agree "
        "with torch's counter within 2 % (`tests/test_flops.py`). Nothing was run at this size.\n\n"
        f"{total:,} chips of {PIXELS} x {PIXELS} pixels (**D**), {EPOCHS} epochs (**D**), the large model."
    )


def _stores(measured: Measured, total: int) -> str:
    stored = store_bytes(measured.itemsizes, measured.ratios)
    raw = {s: CHIPS[s] * chip_bytes(s, measured.itemsizes[s]) for s in CHIPS}
    rows = [
        (s, f"{n:,}", f"{chip_bytes(s, 1) // PIXELS**2} x {measured.itemsizes[s]}", f"{raw[s] / 1e12:.1f}",
         f"{measured.ratios[s]:.2f}", f"{stored[s] / 1e12:.1f}")
        for s, n in CHIPS.items()
    ]  # fmt: skip
    whole, kept = sum(raw.values()), sum(stored.values())
    rows.append(("all", f"{total:,}", "", f"{whole / 1e12:.1f}", f"{kept / whole:.2f}", f"{kept / 1e12:.1f}"))
    head = ("sensor", "chips **D**", "bands x bytes", "raw TB **A**", "stored / raw **M**", "stored TB **A**")
    return (
        f"## Stores\n\n{_table(head, rows)}\n\n"
        f"raw = chips x bands x {PIXELS}^2 x bytes; stored = raw x ratio. Ratios are of {measured.chips} chips a sensor, a tenth "
        "under clouds, compressed as the store does (bit-shuffled LZ4); real imagery may be rougher. The release tells of "
        "33.8 TB of imagery (**D**). Labels, one byte a pixel that compresses to little, are left out."
    )


def _cache(total: int) -> str:
    forward, attention = flops.dinov2_large(), flops.transformer(1374, dim=0, depth=24, inner=1024, hidden=0)
    fill = total * FLIPS * forward
    rows = [
        ("targets", f"{target_bytes(total, 1024) / 1e9:,.0f} GB", f"**A** chips x {FLIPS} flips x (1024 x 2 + {TARGET_KEY})"),
        ("index in memory", f"{total * FLIPS * INDEX_BYTES / 1e9:.1f} GB a process tree", f"**A** {INDEX_BYTES} bytes a target"),
        ("teacher's forward at 518 x 518", f"{forward / 1e9:,.0f} GFLOP",
         f"**A** `flops.dinov2_large()`; {(forward - attention) / 1e9:.0f} without the products inside attention"),
        ("filling it", f"{fill:.2e} FLOP", "**A** chips x flips x forward"),
        *((f"on {d.name}", f"{gpu_hours(fill, d, FILL_UTILISATION):,.0f} GPU-hours",
           f"**A** at {FILL_UTILISATION:.0%} (**S**) of {d.peak / 1e12:.0f} TFLOP/s (**D**, bfloat16, dense)") for d in DEVICES),
        ("the live teacher instead", f"{EPOCHS * total * forward:.2e} FLOP",
         f"**A** chips x {EPOCHS} epochs x forward, {EPOCHS / FLIPS:.0f} times as much"),
    ]  # fmt: skip
    return f"## Teacher cache\n\n{_table(('what', 'value', 'how'), rows)}"


def _student(total: int) -> str:
    step, teacher = step_flops(ClayConfig.named("large"), chips_seen()), flops.dinov2_large()
    seen, epoch = EPOCHS * total, sum(chips_seen().values())
    rows = [
        ("forward and backward, a chip", f"{step / 1e9:.0f} GFLOP", "**A** `flops.student_step`, sensors in turn, 75 % masked"),
        ("with the live teacher", f"{(step + teacher) / 1e9:,.0f} GFLOP", f"**A** {1 + teacher / step:.2f} times as much"),
        ("chips seen", f"{seen / 1e9:.1f} billion", f"**A** chips x {EPOCHS}"),
        ("all of it", f"{seen * step:.2e} FLOP", "**A** chips seen x step"),
        ("an epoch with short sensors repeated", f"{epoch / 1e6:.0f} million chips",
         f"**A** {len(CHIPS)} x the longest sensor; if that is the epoch, all below is {epoch / total:.2f} times as much"),
    ]  # fmt: skip
    counts, days = (8, 64, 160), []
    for d in DEVICES:
        hours = gpu_hours(seen * step, d, UTILISATION)
        live = hours + gpu_hours(seen * teacher, d, FILL_UTILISATION)
        each = [f"{hours / n / 24:,.1f}" for n in counts]
        rate = loader_rate(d, 0)[0]
        days.append((d.name, f"{d.peak / 1e12:.0f}", f"{rate:.0f}", f"{hours:,.0f}", *each, f"{hours * d.watts / 1e6:.1f}", f"{live:,.0f}"))  # fmt: skip
    head = ("GPU", "peak TFLOP/s **D**", "chips/s **A**", "GPU-hours **A**", *(f"days on {n} **A**" for n in counts), "MWh **A**", "GPU-hours, live teacher **A**")  # fmt: skip
    l4 = DEVICES[0]
    own = gpu_hours(seen * step, l4, UTILISATION)
    live, fill = (gpu_hours(n * total * teacher, l4, FILL_UTILISATION) for n in (EPOCHS, FLIPS))
    return (
        f"## The student\n\n{_table(('what', 'value', 'how'), rows)}\n\n"
        f"At {UTILISATION:.0%} of peak in bfloat16 (**S**; `python -m clay_lib train --forecast` measures it on a machine):\n\n"
        f"{_table(head, days)}\n\n"
        "GPU-hours = FLOP / (peak x utilisation) / 3600; days = GPU-hours / GPUs / 24, with nothing lost between GPUs; "
        "MWh = GPU-hours x board power (**D**), GPUs alone.\n\n"
        f"The release trained on 160 L4 (**D**). By this arithmetic that is {(own + live) / 160 / 24:.1f} days with the teacher in "
        f"every step, and {(own + fill) / 160 / 24:.1f} days with cached targets, filling the cache included (**A**)."
    )


def _loader(measured: Measured) -> str:
    raw = {s: chip_bytes(s, measured.itemsizes[s]) for s in CHIPS}
    mean_raw = sum(raw.values()) / len(raw)
    mean_stored = sum(raw[s] * measured.ratios[s] for s in raw) / len(raw)
    rows = []
    for d in DEVICES:
        rate, stored = loader_rate(d, mean_stored)
        values = (stored / 1e6, rate * mean_raw / 1e6, rate * 1024 * 2 / 1e6)
        rows.append(
            (d.name, f"{rate:.0f}", *(f"{v:.1f}" for v in values), f"{rate * mean_raw / 1e9 / measured.decode:.2f}")
        )
    head = (
        "GPU",
        "chips/s **A**",
        "stored MB/s **A**",
        "raw MB/s **A**",
        "targets MB/s **A**",
        "cores to unpack **A**",
    )
    return (
        f"## Loader\n\n{_table(head, rows)}\n\n"
        f"Of one GPU: chips/s x bytes of a chip ({mean_stored / 1e6:.2f} MB stored, {mean_raw / 1e6:.2f} MB raw, sensors in turn). "
        f"One core unpacks {measured.decode:.1f} GB/s (**M**); reading, flips and normalising come on top: "
        "`python -m clay_lib bench-chips` measures the loader as a whole."
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))
