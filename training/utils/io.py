"""Atomic writes, JSON, and dataclasses as the schema of JSON files; imports nothing slow."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import types
import typing
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, TypeVar

T = TypeVar("T")

# Key of the digest in a JSON file that `write_json` was asked to seal.
DIGEST = "content_sha256"
# Names of the files of `atomic` before they replace others.
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
# Errors of a disk, a quota or a size limit that is reached.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _Output:
    """A binary file that remembers why it could not be written: torch and numpy report a failed write by other errors."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise


@contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """Binary file that replaces `path` when the block succeeds and is removed when it fails. Its mode follows the umask.

    Raises OSError naming file and disk where the disk is full, whatever the block made of it.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with naming_full_disk(path):
        # Not tempfile.mkstemp, whose files have mode 600: a result is as readable as any other new file.
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        output = _Output(os.fdopen(handle, "wb"))
        try:
            with output.file:
                yield typing.cast(IO[bytes], output)
                output.file.flush()
                os.fsync(handle)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            if output.error is not None:
                raise output.error from None
            raise


def remove_temporary(folder: Path) -> None:
    """Removes the files of `atomic` that killed processes have left in a folder; the caller keeps other writers out of it."""
    for path in folder.iterdir():
        if TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Raises an OSError that names the file and its disk in place of one that says that a disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        folder = next(p for p in (Path(path), *Path(path).absolute().parents) if p.is_dir())
        usage = shutil.disk_usage(folder)
        raise OSError(
            error.errno,
            f"{path} cannot be written: {os.strerror(error.errno)}; the disk of {folder} has {usage.free / 1e6:,.1f} of "
            f"{usage.total / 1e6:,.1f} MB free; the file as it was before is untouched, so make room and run the command again",
        ) from error


def write_bytes(path: Path, content: bytes) -> Path:
    """Writes a file atomically and returns its path."""
    with atomic(path) as file:
        file.write(content)
    return path


def write_json(path: Path, value: Any, *, seal: bool = False) -> None:
    """Writes JSON atomically; seal: an object with a digest of its content, which `read_json` checks.

    Raises ValueError for NaN or infinity, which JSON cannot represent.
    """
    if seal:
        # First, so that a reader who has edited the file can delete the line.
        value = {DIGEST: _digest(json.loads(json.dumps(value, allow_nan=False))), **value}
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    write_bytes(path, text.encode() + b"\n")


def read_json(path: Path) -> Any:
    """Parsed JSON file without the digest of a sealed one.

    Raises FileNotFoundError, or ValueError naming a file that is not JSON or not what was written.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        text = Path(path).read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error})") from error
    return unsealed(parse_json(text, str(path)), str(path))


def unsealed(value: Any, source: str) -> Any:
    """Parsed JSON without its digest. Raises ValueError naming `source` when the digest is not that of the rest."""
    if not isinstance(value, dict) or DIGEST not in value:
        return value
    content = {key: item for key, item in value.items() if key != DIGEST}
    if value[DIGEST] != _digest(content):
        raise ValueError(
            f"{source} is not what was written: it is damaged or was edited; restore it from a copy or delete it to make it "
            f"again, or remove its line {DIGEST} if the change is yours"
        )
    return content


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of the bytes of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def parse_json(text: str, source: str) -> Any:
    """Parsed JSON text. Raises ValueError naming `source` when it is not JSON."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{source} is not valid JSON ({error})") from error


class Keys(tuple[str, ...]):
    """Annotation of a dict type: the keys that it must have."""


def nullable() -> Any:
    """Dataclass field that is None where a file lacks it, and written as null; `= None` is left out instead."""
    return field(default_factory=types.NoneType)


def encode(value: Any) -> Any:
    """Dataclasses as dicts, for JSON; a field that is None by default is left out when it is None."""
    if is_dataclass(value):
        pairs = ((f, getattr(value, f.name)) for f in fields(value))
        return {f.name: encode(item) for f, item in pairs if item is not None or f.default is not None}
    if isinstance(value, dict):
        return {key: encode(item) for key, item in value.items()}
    return [encode(item) for item in value] if isinstance(value, (list, tuple)) else value


def write_record(path: Path, record: Any) -> None:
    """Writes a dataclass as sealed JSON, atomically."""
    write_json(path, encode(record), seal=True)


def read_record(path: Path, kind: type[T]) -> T:
    """Reads a JSON file as `kind`; see `decode`. Raises FileNotFoundError, or ValueError naming file and field."""
    return decode(kind, read_json(path), str(path))


def decode(kind: type[T], value: Any, source: str) -> T:
    """Inverse of `encode`: parsed JSON as a dataclass, or as a list, dict or union of such.

    Unknown fields are ignored, missing ones get their default. Numbers must be finite. Raises ValueError that names
    `source` and the field.
    """
    return _decode(kind, value, source, "")


def _decode(kind: Any, value: Any, source: str, name: str) -> Any:
    """The value of the field `name`, a dotted path below `source`; "" for the whole."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        result = _decode(arguments[0], value, source, name)
        for keys in arguments[1:]:
            _require_fields(keys, value, source, name)
        return result
    if origin in (typing.Union, types.UnionType):
        return _decode_union(arguments, value, source, name)
    if hasattr(kind, "__dataclass_fields__"):
        hints, required = _schema(kind)
        _require(isinstance(value, dict), "an object", value, source, name)
        _require_fields(required, value, source, name)
        inner = {key: item for key, item in value.items() if key in hints}
        return kind(**{k: _decode(hints[k], item, source, f"{name}.{k}".lstrip(".")) for k, item in inner.items()})
    if origin is dict:
        _require(isinstance(value, dict), "an object", value, source, name)
        return {k: _decode(arguments[1], item, source, f"{name}.{k}".lstrip(".")) for k, item in value.items()}
    if origin is list:
        _require(isinstance(value, list), "a list", value, source, name)
        return [_decode(arguments[0], item, source, f"{name}[{i}]") for i, item in enumerate(value)]
    if kind is not Any:
        _require_plain(kind, value, source, name)
    return value


def _decode_union(kinds: tuple[Any, ...], value: Any, source: str, name: str) -> Any:
    """None, or the first of several dataclasses that finds its required fields."""
    if value is None and types.NoneType in kinds:
        return None
    options = [kind for kind in kinds if kind is not types.NoneType]
    if len(options) > 1 and isinstance(value, dict):
        options = [kind for kind in options if set(_schema(kind)[1]) <= set(value)] or options
    return _decode(options[0], value, source, name)


@cache
def _schema(kind: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Type of each field of a dataclass, and the fields without default."""
    required = tuple(f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING)
    return typing.get_type_hints(kind, include_extras=True), required


def _require_fields(keys: Iterable[str], value: dict[str, Any], source: str, name: str) -> None:
    missing = [key for key in keys if key not in value]
    if missing:
        raise ValueError(f"{source}{f': {name}' if name else ''} lacks the fields {', '.join(missing)}")


def _require_plain(kind: Any, value: Any, source: str, name: str) -> None:
    if kind is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        _require(number, "a finite number", value, source, name)
    else:
        expected = {int: "an integer", str: "a string", bool: "true or false"}[kind]
        _require(
            isinstance(value, kind) and (kind is bool or not isinstance(value, bool)), expected, value, source, name
        )


def _require(ok: bool, expected: str, value: Any, source: str, name: str) -> None:
    if not ok:
        raise ValueError(f"{source}{f': {name}' if name else ''} must be {expected}, got {value!r:.200}")
