"""Sound miniature data sets of every layout for the tests of the validator, and what it says about them."""

import json

from tests.support.pedes_dataset import as_layout, make_pedes
from training.data.validation.validate import ValidationOptions

FILES = {"cuhk-pedes": "reid_raw.json", "icfg-pedes": "ICFG-PEDES.json", "rstpreid": "data_captions.json"}
FILES |= {"own": "records.jsonl"}
ALLOW = ValidationOptions(allow_counts=True)


def make(folder, name="cuhk-pedes", file=None):
    file, root = file or FILES[name], make_pedes(folder)
    records = json.loads((root / "reid_raw.json").read_text())
    for record in records:
        # make_pedes gives people the same words by chance.
        record["captions"] = [f"{text} Number {record['id']}." for text in record["captions"]]
    (root / "reid_raw.json").write_text(json.dumps(records))
    return root if name == "cuhk-pedes" else as_layout(root, name, file)


def edit(root, change, file="reid_raw.json"):
    records = json.loads((root / file).read_text())
    change(records)
    (root / file).write_text(json.dumps(records))


def levels(result):
    """Grave findings: check -> level."""
    return {finding.check: finding.level for finding in result.findings if finding.level in ("error", "warning")}


def texts(result, check):
    return [(finding.level, finding.text) for finding in result.findings if finding.check == check]


def copy(source, target):
    return lambda root: (root / "imgs" / target).write_bytes((root / "imgs" / source).read_bytes())


TRAIN, VAL, TEST = "train/0001_0.jpg", "val/0007_0.jpg", "test/0009_0.jpg"
