"""The configuration on a command line: a recipe or a config.json, and every field as an option that overrides it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from training.config.recipes import RECIPES, ROWS, get_recipe
from training.config.stages import Config
from training.config.storage import from_dict
from training.utils import cli
from training.utils.io import read_json

FIELDS = (
    "Every field of the configuration is an option too, e.g. --data.root FOLDER --seed 1 --optim.epochs 5 "
    "--model.backend reference; RECIPE --help lists them with their values in that recipe."
)
RECIPE_HELP = (
    f"one of {', '.join(RECIPES)}; or RECIPE/ROW, a row of a table (the paper's, readings, styles): {', '.join(ROWS)}"
)
CONFIG_HELP = "config.json of a run, which replaces the recipe"

ConfigFile = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help=CONFIG_HELP)]

T = TypeVar("T")


def parse(
    arguments: type[T],
    argv: Sequence[str],
    program: str,
    description: str | None,
    base_of: Callable[[T], Config],
    *,
    shared: bool = False,
) -> tuple[T, Config]:
    """An `arguments` as `cli.parse` reads it, and the Config that `base_of` derives from it with all other options applied.

    Positional words stand before the options. Raises what `base_of` raises. Help and wrong arguments end the process
    (status 0, 2).
    """
    if "-h" in argv or "--help" in argv:
        with suppress(SystemExit):
            cli.parse(arguments, ["--help"], program, f"{description}\n\n{FIELDS}", shared=shared)
        for recipe in (word for word in argv if word.partition("/")[0] in RECIPES):
            _with_fields(get_recipe(recipe), ["--help"], f"{program} {recipe}")
        raise SystemExit(0)
    own, fields = _split(argv, arguments)
    known = cli.parse(arguments, own, program, description, shared=shared)
    base = base_of(known)
    return known, _with_fields(base, fields, f"{program} {base.recipe}")


def get_config(recipe: str, file: Path | None) -> Config:
    """The configuration in `file`, or that of a recipe without one. Raises what `read_config` and `get_recipe` raise."""
    if file is not None:
        return read_config(file)
    if not recipe:
        raise ValueError("expected RECIPE or --config FILE")
    return get_recipe(recipe)


def read_config(path: Path) -> Config:
    """The Config that a config.json holds.

    Raises FileNotFoundError, or ValueError naming the file and the field that is unknown, missing or of a wrong value.
    """
    values = read_json(path)
    try:
        return from_dict(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _split(argv: Sequence[str], arguments: type) -> tuple[list[str], list[str]]:
    """The words for `arguments` and those for the fields of Config; an option comes with the words that follow it."""
    options = [field.name.replace("_", "-") for field in dataclasses.fields(arguments)]
    names = {f"--{prefix}{option}" for option in options for prefix in ("", "no-")}
    own, fields = list[str](), list[str]()
    current = own
    for word in argv:
        if word.startswith("--"):
            current = own if word.partition("=")[0] in names else fields
        current.append(word)
    return own, fields


def _with_fields(base: Config, argv: Sequence[str], program: str) -> Config:
    default: Any = base
    return tyro.cli(Config, args=argv, default=default, prog=f"python -m {program}")
