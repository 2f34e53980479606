"""Output for people: consoles and progress bars that print names of files as they are: rich reads [bold] and :smile: in a text
as instructions, and a folder may have any name."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def make_console(*, stderr: bool = False, **options: Any) -> Console:
    """A console without markup, emoji codes, highlighting and line breaks of its own."""
    plain = {"markup": False, "emoji": False, "highlight": False, "soft_wrap": True}
    return Console(**(plain | {"stderr": stderr} | options))


def make_progress(console: Console, text: str = "{task.description}") -> Progress:
    """A progress bar that is shown only where `console` is a terminal; `text` is formatted with the task."""
    columns = (TextColumn(text, markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal)
