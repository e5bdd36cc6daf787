"""Clay v1.5, from scratch: sensors -> datacube -> encoder -> decoder -> loss -> training."""

from clay_lib.contract import ContractError
from clay_lib.datacube import Datacube
from clay_lib.model import Clay, ClayConfig, ClayMAE
from clay_lib.sensors import SENSORS, Band, Sensor

__all__ = ["SENSORS", "Band", "Clay", "ClayConfig", "ClayMAE", "ContractError", "Datacube", "Sensor"]
