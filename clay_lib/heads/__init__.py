"""Heads on the encoder: classes and values for your own labels.

`heads` are the small networks, `finetune` trains one on labeled chips with a frozen or partly trained encoder (its
settings and training steps are in `module`), `predict` applies one to rasters of any size, and `export` writes the
encoder for other runtimes.
"""

from clay_lib import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "heads": "ChipHead DenseHead Features extract_features spread_layers",
        "module": "FinetuneSettings",
        "finetune": "Finetuned",
        "predict": "predict_raster predict_scene",
    },
)
