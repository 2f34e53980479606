"""Pretrained files from a local folder, from the hub's cache on this disk, or from the hub when it answers."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from transformers.utils import logging

# A name of the hub, such as bert-base-uncased or google/vit-base-patch16-224.
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
# Seconds after which the hub counts as unreachable: its own client tries for 48 s, once for each file.
TIMEOUT = 4.0


def load_pretrained(load: Callable[..., Any], name: str, **options: Any) -> Any:
    """`load(name, **options)`, a `from_pretrained` of transformers. A hub name is read from the cache on this disk, and
    requested from the hub only if the cache lacks it.

    Raises OSError for a folder that does not exist and, within seconds, for a hub that does not answer; else what `load` does.
    """
    if Path(name).is_dir():
        return load(name, local_files_only=True, **options)
    if not HUB_NAME.fullmatch(name):
        raise FileNotFoundError(f"there is no folder {name}")
    try:
        return load(name, local_files_only=True, **options)
    except OSError:
        require_hub(name)
    return load(name, **options)


def require_hub(name: str) -> None:
    """Raises OSError unless the hub answers; a proxy of the environment is used."""
    # Read anew: a variable that is set after the import of huggingface_hub counts too.
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise OSError(f"{name} is neither a folder nor in the cache of the hub, and HF_HUB_OFFLINE is set")
    problems: list[str] = []
    # In a thread: the timeout of a connection does not bound the look-up of its address.
    thread = threading.Thread(target=_request, args=(endpoint, problems), daemon=True)
    thread.start()
    thread.join(2 * TIMEOUT)
    if thread.is_alive() or problems:
        reason = problems[0] if problems else f"no answer in {2 * TIMEOUT:g} s"
        raise OSError(
            f"{name} is neither a folder nor in the cache of the hub, and {endpoint} cannot be reached: {reason}"
        )


def _request(endpoint: str, problems: list[str]) -> None:
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=TIMEOUT).close()
    except urllib.error.HTTPError:
        # An answer, whatever it says.
        pass
    except (OSError, ValueError) as error:
        problems.append(str(getattr(error, "reason", error)))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """A block without the reports and bars of transformers: what matters in them is one of our errors."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
