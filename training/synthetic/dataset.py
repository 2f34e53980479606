"""A data set of rendered pedestrians in the layout of CUHK-PEDES, with texts and ground truth.

`OUT/reid_raw.json` and `OUT/imgs/` follow CUHK-PEDES. Beside them are `descriptions.jsonl` (one identity text and one
clothing text per image), `factors.jsonl` (the ground truth, which no model may read), `identity_queries.jsonl` (queries of
the protocol `identity`, which training never reads) and `synthetic.json` (parameters and counts).

The same parameters give the same bytes, whatever the machine and the number of workers: all draws come from one stream
per (seed, identity, image) of the generator whose stream Python guarantees, and light, blur and noise are integer
arithmetic. Texts and factors are the same everywhere. The JPEG files further need the same version of Pillow, which
`synthetic.json` names, on the same family of processors: Pillow encodes them, and fills polygons in single precision.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import PIL

from training.data.ground_truth import FACTORS
from training.data.readers import SPLITS, Row
from training.synthetic.attributes import CAMERAS, sample_identity, sample_outfit, sample_pose, sample_shot
from training.synthetic.query_texts import write_identity_queries
from training.synthetic.render.camera import encode_jpeg, render_image
from training.synthetic.rng import KeyedRng
from training.synthetic.text.captions import tokenize_caption, write_captions
from training.synthetic.text.descriptions import write_descriptions
from training.utils.io import naming_full_disk
from training.utils.locks import folder_lock

VERSION = 1


@dataclass(frozen=True)
class Parameters:
    """Everything that determines a data set; checked when built. Images per identity vary by up to two around their mean."""

    ids: int
    seed: int
    images_per_id: int
    val_ids: int
    test_ids: int
    height: int
    width: int

    def __post_init__(self) -> None:
        """Raises TypeError for a value that is no integer, ValueError for one out of range."""
        for name, value in vars(self).items():
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} must be an integer, got {value!r}")
        lowest = {"ids": 3, "seed": 0, "images_per_id": 2, "val_ids": 1, "test_ids": 1, "height": 160, "width": 64}
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.val_ids + self.test_ids >= self.ids:
            held_out = f"val_ids + test_ids = {self.val_ids} + {self.test_ids}"
            raise ValueError(f"{held_out} must leave identities for training, got ids = {self.ids}")

    def split(self, person: int) -> str:
        """The split of an identity: train first, then val, then test (identities are drawn independently)."""
        if person > self.ids - self.test_ids:
            return "test"
        return "val" if person > self.ids - self.test_ids - self.val_ids else "train"


def _plan_images(rng: KeyedRng, parameters: Parameters) -> list[tuple[int, str]]:
    """(outfit, camera) of each image of an identity; there are two or three outfits, each in at least one image."""
    spread = min(2, parameters.images_per_id - 2)
    count = rng.integer(parameters.images_per_id - spread, parameters.images_per_id + spread)
    outfits = min(rng.integer(2, 3), count)
    rest = [rng.weighted_choice({0: 5, 1: 3, 2: 2 if outfits == 3 else 0}) for _ in range(count - outfits)]
    cameras = [camera for _ in range(-(-count // len(CAMERAS))) for camera in rng.permutation(CAMERAS)]
    return list(zip(rng.permutation([*range(outfits), *rest]), cameras, strict=False))


def _round_floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _round_floats(item) for key, item in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def render_identity(person: int, imgs: Path, parameters: Parameters) -> list[tuple[Row, Row, Row]]:
    """Writes the images of one identity below `imgs`; returns (record, description, factors) of each."""
    rng = KeyedRng(parameters.seed, "identity", person)
    identity = sample_identity(rng)
    plan = _plan_images(rng, parameters)
    outfits = [sample_outfit(KeyedRng(parameters.seed, "outfit", person, number), identity) for number in range(3)]
    rows = []
    for image, (number, camera) in enumerate(plan, 1):
        rng = KeyedRng(parameters.seed, "image", person, image)
        outfit = outfits[number]
        pose, shot = sample_pose(rng, outfit), sample_shot(rng, camera)
        path = f"{camera}/{person:05d}_{image:02d}.jpg"
        (imgs / path).write_bytes(
            encode_jpeg(render_image(identity, outfit, pose, shot, parameters.height, parameters.width))
        )
        captions = write_captions(KeyedRng(parameters.seed, "captions", person, image), identity, outfit, pose)
        texts = [caption.text for caption in captions]
        record = {
            "split": parameters.split(person),
            "captions": texts,
            "file_path": path,
            "processed_tokens": [tokenize_caption(text) for text in texts],
            "id": person,
        }
        description = write_descriptions(
            KeyedRng(parameters.seed, "description", person, image), identity, outfit, pose
        )
        factors: Row = {"file_path": path, "id": person, "outfit_number": number}
        factors |= _round_floats(
            {"identity": asdict(identity), "outfit": asdict(outfit), "pose": asdict(pose), "shot": asdict(shot)}
        )
        factors["captions"] = [{key: item for key, item in asdict(c).items() if key != "text"} for c in captions]
        rows.append((record, {"file_path": path} | description, factors))
    return rows


def _render_identities(parameters: Parameters, imgs: Path, workers: int) -> Iterator[list[tuple[Row, Row, Row]]]:
    work = partial(render_identity, imgs=imgs, parameters=parameters)
    people = range(1, parameters.ids + 1)
    if workers == 1:
        yield from map(work, people)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(work, people, chunksize=4)


def _write_files(folder: Path, parameters: Parameters, workers: int, progress: Callable[[int, int], None]) -> Row:
    imgs, records = folder / "imgs", []
    with (
        open(folder / "descriptions.jsonl", "w", encoding="utf-8", newline="\n") as descriptions,
        open(folder / FACTORS, "w", encoding="utf-8", newline="\n") as factors,
    ):
        for done, rows in enumerate(_render_identities(parameters, imgs, workers), 1):
            for record, description, truth in rows:
                records.append(record)
                descriptions.write(json.dumps(description) + "\n")
                factors.write(json.dumps(truth) + "\n")
            progress(done, parameters.ids)
    counts = {}
    for split in SPLITS:
        rows_of = [record for record in records if record["split"] == split]
        captions = sum(len(record["captions"]) for record in rows_of)
        counts[split] = {"ids": len({r["id"] for r in rows_of}), "images": len(rows_of), "captions": captions}
    summary = {"version": VERSION, "pillow": PIL.__version__, "parameters": asdict(parameters), "counts": counts}
    for name, content in (("reid_raw.json", records), ("synthetic.json", summary)):
        (folder / name).write_text(json.dumps(content, indent=None if content is records else 2) + "\n", "utf-8")
    write_identity_queries(folder)
    return summary


def _read_finished(out: Path, parameters: Parameters) -> Row | None:
    """`synthetic.json` of a data set in `out` that this version has made with the same parameters and that has all its images."""
    try:
        summary = json.loads((out / "synthetic.json").read_text("utf-8"))
        images = sum(split["images"] for split in summary["counts"].values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    made = (summary.get("version"), summary.get("pillow"), summary.get("parameters"))
    if made != (VERSION, PIL.__version__, asdict(parameters)):
        return None
    return summary if sum(1 for _ in out.glob("imgs/*/*")) == images else None


def generate(
    out: Path,
    ids: int,
    seed: int = 0,
    images_per_id: int = 6,
    val_ids: int | None = None,
    test_ids: int | None = None,
    height: int = 192,
    width: int = 96,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Row:
    """Writes a data set to the folder `out`, which appears complete or not at all, and returns `synthetic.json`.

    A folder that has the same data set is left as it is: a process that was killed just after the last write can be repeated.
    A tenth of the identities goes to validation and 15 % to test unless `val_ids` and `test_ids` say otherwise.
    More than one worker starts processes, so the calling script must be importable (`if __name__ == "__main__"`).
    `progress` is called with (identities done, `ids`).

    Raises FileExistsError when `out` holds anything else, TypeError or ValueError for a bad parameter.
    """
    if val_ids is None:
        val_ids = max(1, ids // 10)
    if test_ids is None:
        test_ids = max(1, ids * 15 // 100)
    parameters = Parameters(ids, seed, images_per_id, val_ids, test_ids, height, width)
    if not isinstance(workers, int) or workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers!r}")
    finished = _read_finished(out, parameters)
    if finished:
        return finished
    with new_folder(out) as folder:
        return _write_files(folder, parameters, workers, progress)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder with an empty imgs/CAMERA for each camera, which replaces `out` when the block succeeds and is removed when it
    fails. Raises FileExistsError when `out` exists and is not an empty folder."""
    given, out = out, Path(os.path.abspath(out))
    with folder_lock(out, out.with_name(f".{out.name}.lock")):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise FileExistsError(f"{given} already exists and is not an empty folder; nothing was written")
        unfinished = out.with_name(f".{out.name}.unfinished")
        # Left by a killed process: no other one writes while the lock is held.
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            with naming_full_disk(out):
                for camera in CAMERAS:
                    (unfinished / "imgs" / camera).mkdir(parents=True)
                yield unfinished
                os.replace(unfinished, out)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
