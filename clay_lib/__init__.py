"""Clay v1.5, from scratch: sensors -> datacube -> encoder -> decoder -> loss -> training."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clay_lib.contract import ContractError
    from clay_lib.datacube import Datacube
    from clay_lib.model import Clay, ClayConfig, ClayMAE
    from clay_lib.sensors import SENSORS, Band, Sensor

__all__ = ["SENSORS", "Band", "Clay", "ClayConfig", "ClayMAE", "ContractError", "Datacube", "Sensor"]


def __getattr__(name: str):  # torch takes seconds to import, and sweeps, searches and --help do without it
    if name in __all__:
        for home in ("contract", "sensors", "datacube", "model"):
            module = import_module(f"{__name__}.{home}")
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
