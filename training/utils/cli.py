"""What the entry points share: recipe plus overrides on the command line, and one line for every user error."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

import tyro

from training.config import Config
from training.config.recipes import RECIPES, ROWS, get_recipe

# Set to 1 to see the traceback behind an "error: ..." line.
TRACEBACK = "TRAINING_TRACEBACK"
FIELDS = (
    "Every field of the configuration is an option too, e.g. --data.root FOLDER --seed 1 --optim.epochs 5 "
    "--model.backend reference; RECIPE --help lists them with their values in that recipe."
)

RECIPE_HELP = f"one of {', '.join(RECIPES)}; or RECIPE/ROW, a row of the paper's tables: {', '.join(ROWS)}"


def run(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> int:
    """Exit status of main(argv): 0; 2 after a user error, 130 after Ctrl-C, each one line on stderr.

    User errors are the ValueError, OSError and RuntimeError that the stages raise; any other exception is a defect and
    passes through with its traceback.
    """
    try:
        main(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get(TRACEBACK) == "1":
            raise
        print(f"error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 2
    return 0


def parser(program: str, description: str | None) -> argparse.ArgumentParser:
    """A parser without abbreviations and without --help, which `parse` serves."""
    return argparse.ArgumentParser(
        f"python -m training.{program}", description=description, epilog=FIELDS, add_help=False, allow_abbrev=False
    )


def add_recipe(target: argparse.ArgumentParser) -> None:
    """The positional argument RECIPE."""
    target.add_argument("recipe", metavar="RECIPE", help=RECIPE_HELP)


def named_recipe(known: argparse.Namespace) -> str:
    """The argument of `add_recipe`."""
    return known.recipe


def parse(
    target: argparse.ArgumentParser,
    argv: Sequence[str],
    recipe_of: Callable[[argparse.Namespace], str] = named_recipe,
) -> tuple[argparse.Namespace, Config]:
    """The arguments of `target`, and the recipe that `recipe_of` finds in them with all other options applied to it.

    Raises ValueError for an unknown recipe, and what `recipe_of` raises. Help and options that no field knows end the
    process (status 0 and 2).
    """
    if any(word in ("-h", "--help") for word in argv):
        target.print_help()
        for recipe in (word for word in argv if word.partition("/")[0] in RECIPES):
            tyro.cli(Config, args=["--help"], default=get_recipe(recipe), prog=f"{target.prog} {recipe}")
        raise SystemExit(0)
    known, rest = target.parse_known_args(argv)
    name = recipe_of(known)
    return known, tyro.cli(Config, args=rest, default=get_recipe(name), prog=f"{target.prog} {name}")
