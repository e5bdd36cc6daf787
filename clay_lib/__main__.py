"""Command line: `clay COMMAND` or `python -m clay_lib COMMAND`.

A command is a line in COMMANDS and a typed function with a docstring; the function's parameters become options. A module
is imported only when its command is called.
"""

import difflib
import importlib
import inspect
import os
import re
import sys
import warnings
from collections.abc import Mapping
from itertools import takewhile

from ruamel.yaml import YAMLError

from clay_lib.cluster import WAIT_POLICY
from clay_lib.errors import ContractError
from clay_lib.files import yaml_format

COMMANDS = {  # name: (module:function in clay_lib, help)
    "run": ("runs.profiles:run", "run the notebooks with a profile's values and write the gallery"),
    "embed": ("areas.area:embed", "embed an area: vectors of its tiles, a raster of its patches"),
    "check": ("data.check:check", "check a scene's numbers and metadata against its sensor"),
    "world": ("data.scenes:world", "write one chip of the mini-world as a GeoTIFF"),
    "aerial": ("data.aerial:aerial", "write aerial views, drawn, as further images to train on"),
    "chips": ("runs.prepare:chips", "write a store of chips, of the mini-world or from scenes"),
    "bench": ("runs.bench:bench", "time the encoder, a training step and chip stores on this machine"),
    "train": ("runs.pretrain:train", "train a model from a configuration file; the same command resumes"),
    "targets": ("runs.prepare:targets", "compute a teacher's targets for the chips of a store, once"),
    "transfer": ("evaluation.transfer:transfer", "probe frozen weights on real labeled images, beside baselines"),
    "results": ("evaluation.results:results", "measure weights beside baselines and write the page of results"),
    "export": ("heads.export:export", "write the encoder for other runtimes, as ONNX or torch.export"),
    "convert": ("checkpoint:convert", "write a checkpoint's encoder or complete model as safetensors"),
    "exercises": ("course.exercises:exercises", "write notebooks/exercises and notebooks/flow from the notebooks"),
    "search": ("areas.search:search_command", "find the places of an embedded area that are most similar to one"),
    "change": ("areas.change:change", "map what changed between two dates or periods of an embedded area"),
    "sweep": ("runs.sweep:sweep", "run a notebook over many parameters; the same command resumes"),
    "sweep export": ("runs.export:export_sweep", "write a sweep's runs for MLflow, TensorBoard or as a table"),
    "archive": ("areas.local:archive", "write and serve an archive of the mini-world, to work offline"),
    "gallery": ("runs.gallery:write_site", "write the notebooks as a static site that opens without a network"),
    "live": ("course.live:live", "write a page that runs the model in a browser, without an installation"),
    "kit": ("course.kit:kit", "write a folder with everything for a workshop without a network"),
    "pair": ("runs.gallery:pair", "give notebooks/*.ipynb the outputs of the last demo run"),
}
RENAMED = {"bench-chips": "bench chips", "bench-load": "bench chips", "plan": "bench train"}


def command_of(name: str):
    """The function of a command."""
    module, function = COMMANDS[name][0].split(":")
    return getattr(importlib.import_module(f"clay_lib.{module}"), function)


def normalize_options(command, options: list[str]) -> list[str]:
    """Options in the form that jsonargparse parses: leading values of parameters with defaults get their names,
    `--dry-run` becomes `--dry_run`, `--check` becomes `--check=true`, and `--like -3.4,34.1` becomes one word."""
    parameters = inspect.signature(command).parameters.values()
    positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    flags = {name for name, default in _defaults(command).items() if isinstance(default, bool)}
    values = list(takewhile(_is_value, options))
    rest = options[len(values) :]
    normalized = [
        value if p.default is p.empty else f"--{p.name}={value}" for p, value in zip(positional, values, strict=False)
    ]
    normalized += values[len(normalized) :]
    while rest:
        option = rest.pop(0)
        name, equals, value = option.partition("=")
        if option.startswith("--"):
            name = f"--{name[2:].replace('-', '_')}"
            if not equals and rest and _is_value(rest[0]):
                equals, value = "=", rest.pop(0)
            elif not equals and name[2:] in flags:
                equals, value = "=", "true"
        normalized.append(f"{name}{equals}{value}")
    return normalized


def _is_value(text: str) -> bool:
    """Whether a word is a value, not an option: southern latitudes begin with a minus too."""
    return not text.startswith("-") or re.match(r"-[\d.]", text) is not None


def _defaults(command) -> Mapping[str, object]:
    """Default values by the options' names, those of **kwargs included."""
    from jsonargparse import auto_parser

    return dict(auto_parser(command).get_defaults().items())


def _call(name: str, options: list[str]) -> int | None:
    from argparse import ArgumentError

    from jsonargparse import auto_cli, set_loader

    set_loader("yaml", lambda text: yaml_format().load(text), exceptions=(YAMLError,))
    command = command_of(name)
    example = re.search(r"Example: .*", command.__doc__)
    try:
        return auto_cli(
            command,
            args=normalize_options(command, options),
            prog=f"clay {name}",
            epilog=example and example[0],
            exit_on_error=False,
            allow_abbrev=False,
        )
    except ArgumentError as error:
        expected = _nearest(command, str(error)) or f"the options of `clay {name} --help`"
        cause = " ".join(str(error).split())
        raise ContractError(f"clay {name}", " ".join(options) or "no options", expected, cause) from None


def _nearest(command, message: str) -> str | None:
    """The option closest to the unknown one in jsonargparse's message."""
    if not re.search("not accept|unrecognized", message):
        return None
    words = re.findall(r"'([\w.]+)'|--([\w.]+)", message)
    unknown = ".".join(a or b for a, b in words[-2 if "Group" in message else -1 :])
    near = difflib.get_close_matches(unknown, [*_defaults(command)], 1)
    return f"perhaps {near[0]}" if near else None


def main(argv: list[str] | None = None) -> int:
    """0: done. 1: a notebook failed. 2: wrong input, with one line on stderr."""
    argv = sys.argv[1:] if argv is None else list(argv)
    os.environ.setdefault("OMP_WAIT_POLICY", WAIT_POLICY)
    if not argv or argv[0] in ("-h", "--help", "help"):
        lines = "".join(f"  {name:<14}{text}\n" for name, (_, text) in COMMANDS.items())
        print(f"usage: clay COMMAND [options]\n\n{lines}\nclay COMMAND --help lists its options.")
        return 0
    formatwarning = warnings.formatwarning
    warnings.formatwarning = lambda message, *_: f"clay: warning: {message}\n"  # without the source line
    try:
        if argv[0] in RENAMED:
            raise ContractError("command", argv[0], f"clay {RENAMED[argv[0]]}", "one command prints all timings now")
        if argv[0] not in COMMANDS:
            raise ContractError("command", argv[0], f"one of {list(COMMANDS)}", "a misspelled name")
        words = 2 if " ".join(argv[:2]) in COMMANDS else 1  # `sweep export`
        return _call(" ".join(argv[:words]), argv[words:]) or 0
    except (ContractError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # the reader of a pipe, such as head, has closed it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        print(f"clay: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("clay: interrupted; finished work is kept", file=sys.stderr)
        return 130
    finally:
        warnings.formatwarning = formatwarning


if __name__ == "__main__":
    sys.exit(main())
