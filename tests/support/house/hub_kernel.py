"""Lays out the package as a kernel of the Hugging Face Hub: `python -m tests.support.house.hub_kernel FOLDER`.

FOLDER/build/torch-cuda and FOLDER/build/torch-rocm get the Python files, whose kernels on a GPU are Triton's: no compiled library
is in them. The package `kernels` imports such a folder under the name of its `id`, beside an installed bdam_fast and beside
other versions of itself, so that the operators of each have a namespace of their own, named after the files' contents.
"""

import base64
import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

from tests.support import ROOT

BACKENDS = ("cuda", "rocm")
NAME = "bdam_fast"
# The Hub's versions count interfaces; 0 is of those that may still change.
INTERFACE = 0
# Old versions of `kernels` look for the module in a folder of its name. It hands on what the folder above has.
OLDER_LOADERS = '''"""The kernel of the folder above, for versions of `kernels` that look for it here."""

import importlib.util
import sys
from pathlib import Path

if "{id}" not in sys.modules:
    _spec = importlib.util.spec_from_file_location("{id}", Path(__file__).resolve().parents[1] / "__init__.py")
    sys.modules["{id}"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["{id}"])
globals().update({{name: getattr(sys.modules["{id}"], name) for name in sys.modules["{id}"].__all__}})
__all__ = sys.modules["{id}"].__all__
'''


def sources(package: Path) -> dict[str, bytes]:
    """The Python files of the package, and its table of tuned sizes, by path in it; without the command line."""
    found = (p for p in sorted(package.rglob("*")) if p.suffix in (".py", ".json") and p.name != "__main__.py")
    return {p.relative_to(package).as_posix(): p.read_bytes() for p in found}


def lay_out(folder: Path, package: Path = ROOT / NAME) -> list[Path]:
    """Writes the variant of each backend below `folder`/build, in place of what is there, and returns their folders.

    Raises:
        ValueError: `_namespace.py` of the package does not name the namespace.
    """
    files = sources(package)
    key = hashlib.sha256(b"".join(name.encode() + text for name, text in files.items())).hexdigest()[:8]
    variants = []
    for backend in BACKENDS:
        variant = folder / "build" / f"torch-{backend}"
        shutil.rmtree(variant, ignore_errors=True)
        write_variant(variant, files, backend, f"{NAME}_{backend}_{key}")
        variants.append(variant)
    return variants


def write_variant(variant: Path, files: dict[str, bytes], backend: str, namespace: str) -> None:
    """Writes the files of one variant, its operators in `namespace`, and its metadata.json with their digests."""
    ours, count = re.subn(
        rb'^NAMESPACE = "\w+"$', f'NAMESPACE = "{namespace}"'.encode(), files["_namespace.py"], flags=re.M
    )
    if count != 1:
        raise ValueError(f"bdam_fast/_namespace.py must hold one line NAMESPACE, got {count}")
    # The Hub asks for operators in torch.ops.<id>; those of this variant are Triton's.
    identity = f"{namespace}_triton"
    files = files | {
        "_namespace.py": ours,
        f"{NAME}/__init__.py": OLDER_LOADERS.format(id=identity).encode(),
    }
    for name, text in files.items():
        (variant / name).parent.mkdir(parents=True, exist_ok=True)
        (variant / name).write_bytes(text)
    digests = {name: base64.b64encode(hashlib.sha256(text).digest()).decode() for name, text in sorted(files.items())}
    metadata = {
        "name": NAME.replace("_", "-"),
        "id": identity,
        "version": INTERFACE,
        "license": "Apache-2.0",
        "python-depends": [],
        "backend": {"type": backend},
        "digest": {"algorithm": "sha256", "files": digests},
    }
    (variant / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")


if __name__ == "__main__":
    print(*lay_out(Path(sys.argv[1])), sep="\n")
