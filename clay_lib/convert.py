"""A released checkpoint to safetensors: the encoder or the whole model, with what it is and where it came from."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import safetensors
import torch

from clay_lib.checkpoint import file_of, matched
from clay_lib.contract import ContractError
from clay_lib.files import sha256
from clay_lib.weightfile import write_safetensors

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def convert(
    source: str,
    out: str,
    *,
    part: Literal["encoder", "whole"] = "encoder",
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    licence: str = "as the source of the weights states",
    heads: int | None = None,
    decoder_heads: int | None = None,
) -> int:
    """Write the weights of a checkpoint as safetensors: no teacher, no optimiser, no pickle.

    Example: clay convert clay-v1.5.ckpt encoder.safetensors --dtype float16

    Args:
        source: a .ckpt or .safetensors file, or hub:owner/name/path
        out: the file to write, ending in .safetensors; complete or not there
        part: the encoder, which embeds, or the whole model, which also reconstructs and trains on
        dtype: float32 keeps every bit; the others halve the file, and loading makes float32 of them again
        licence: of the weights, for the file's metadata
        heads: of the encoder's attention, for a source that tells neither its configuration nor has a released size
        decoder_heads: of the decoder's attention, likewise
    """
    path = Path(out)
    if path.suffix != ".safetensors":
        raise ContractError("out", found=out, expected="a name that ends in .safetensors", cause="another format meant")
    stated = {name: n for name, n in (("heads", heads), ("decoder_heads", decoder_heads)) if n is not None}
    file = file_of(source)
    model, names = matched(file, stated)
    if part == "whole" and model.decoder is None:
        raise ContractError("part", found="an encoder alone", expected="the whole model", cause="use --part encoder")
    wanted = {own: name for own, name in names.items() if part == "whole" or own.startswith("encoder.")}
    metadata = {
        "clay_config": json.dumps(asdict(model.config)),
        "part": part,
        "licence": licence,
        "source": source if source.startswith("hub:") else file.path.name,
        "source_sha256": sha256(file.path),
        "versions": json.dumps({"torch": torch.__version__, "safetensors": safetensors.__version__}),
    }
    shapes = {f"model.{own}": file.shapes[name] for own, name in wanted.items()}
    tensors = (file.copy(name, DTYPES[dtype]) for name in wanted.values())
    write_safetensors(path, shapes, tensors, dtype=DTYPES[dtype], metadata=metadata)
    numbers = sum(model.get_parameter(own).numel() for own in wanted)
    print(f"{path}: {part}, {len(wanted)} tensors, {numbers:,} {dtype} numbers, {path.stat().st_size / 1e9:.2f} GB")
    print("\n".join(f"  {name}: {text}" for name, text in metadata.items()))
    return 0
