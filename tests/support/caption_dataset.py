"""A data set of captions by the eight writers of the synthetic set, with their truth, and pictures of one pixel."""

import json
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from training.synthetic.attributes import sample_identity, sample_outfit, sample_pose
from training.synthetic.rng import KeyedRng
from training.synthetic.text.captions import write_captions


def write_people(root: Path, ids: int, images_per_id: int = 3, seed: int = 5) -> Path:
    """Writes reid_raw.json, imgs/ and factors.jsonl of so many train identities, and one of val and of test, and returns
    root."""
    records, factors = [], []
    for person in range(1, ids + 3):
        identity = sample_identity(KeyedRng(seed, "identity", person))
        for image in range(images_per_id):
            rng, path = KeyedRng(seed, person, image), f"cam_a/{person:04d}_{image}.jpg"
            outfit = sample_outfit(rng, identity)
            pose = sample_pose(rng, outfit)
            captions = write_captions(rng, identity, outfit, pose)
            (root / "imgs/cam_a").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (1, 1)).save(root / "imgs" / path)
            split = {ids + 1: "val", ids + 2: "test"}.get(person, "train")
            texts = [caption.text for caption in captions]
            records.append({"split": split, "captions": texts, "file_path": path, "id": person, "processed_tokens": []})
            row = {"file_path": path, "outfit_number": 0, "identity": asdict(identity), "outfit": asdict(outfit)}
            row |= {"pose": asdict(pose), "captions": [{"style": caption.style} for caption in captions]}
            factors.append(row)
    (root / "reid_raw.json").write_text(json.dumps(records))
    (root / "factors.jsonl").write_text("".join(json.dumps(row) + "\n" for row in factors))
    return root
