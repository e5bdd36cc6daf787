"""Clay v1.5, from scratch: sensors -> datacube -> encoder -> decoder -> loss -> training."""

from importlib import import_module


def lazy(package: str, homes: dict[str, str]):
    """(__getattr__, __dir__, __all__) for a package that imports each name on first use.

    homes: {module of the package: "names that it holds, separated by spaces"}. torch takes seconds to import, and
    sweeps, searches and --help do without it.
    """
    home_of = {name: home for home, names in homes.items() for name in names.split()}

    def __getattr__(name: str):
        if name in home_of:
            return getattr(import_module(f"{package}.{home_of[name]}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return __getattr__, lambda: sorted({*home_of, *homes}), sorted(home_of)


__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "errors": "ContractError",
        "sensors": "SENSORS Band Sensor",
        "datacube": "Datacube",
        "model": "ClayConfig ClayMAE",
        "clay": "Clay",
    },
)
