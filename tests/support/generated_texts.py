"""Hand-written texts in the style of vision-language models: valid ones, invalid ones, a file of both, and a folder of styles."""

import json
from pathlib import Path
from typing import Any

from training.describe.options import read_data
from training.describe.text.prompts import load_schema
from training.describe.text.text_checks import Limits, check_texts

# (identity, clothing): no check may fail. Each contains a trap or two, such as a word that means clothes elsewhere.
VALID_TEXTS = (
    (
        "Here is a woman in her sixties, of short stature, with grey curls, small round glasses and a lined face.",
        "A dark blue abaya with a black headscarf covering the hair, a pink cap over the forehead, and grey flats.",
    ),
    (
        "A young woman with a slim build and medium height. Her long dark hair is tied back with a hair "
        "band, and she has fair skin.",
        "A red short-sleeved T-shirt with a white print, dark blue skinny jeans, and white sneakers. A black backpack is carried "
        "on both shoulders.",
    ),
    (
        "An elderly man of short stature with a bald head, a white beard and blue eyes. He has tan skin and "
        "a stocky build.",
        "A grey suit jacket over a light blue shirt with an open collar, matching grey trousers and polished "
        "brown leather shoes.",
    ),
    (
        "The person is a middle-aged male of average height and heavy build, with white hair cut short and glasses.",
        "The person wears a knee-length beige trench coat, black tights and black ankle boots, and holds a "
        "brown leather handbag.",
    ),
    (
        "Teenage boy, tall and thin, curly brown hair on top and shaved sides, light skin, no glasses.",
        "Oversized black hoodie with the hood down, grey sweatpants, chunky white trainers, and a skin-tight "
        "black glove on one hand.",
    ),
    (
        "A woman in her thirties with an average build. She has shoulder-length blonde hair with bangs and a "
        "round face.",
        "A sleeveless floral dress reaching the knees, beige sandals, a straw hat, and a small tote bag on "
        "the left arm.",
    ),
    (
        "This adult man has a muscular physique, dark skin, a shaved head and a thick black beard. He is tall.",
        "A plain white tank top, baby blue shorts, white socks and slide sandals.",
    ),
    (
        "A little girl, about six years old, with a slender figure and black hair in two pigtails; her skin is pale.",
        "A pink dress with white polka dots over striped leggings; pink rubber boots and a hair clip with a bow.",
    ),
    (
        "Female pedestrian, petite, collar-length auburn hair, her face turned away from the camera.",
        "Navy blazer, white blouse, a plaid skirt, black heels; a camel hair scarf around the neck.",
    ),
    (
        "A broad-shouldered man with greying hair at the temples, a bald spot at the top of the head, and "
        "wrinkles around the eyes.",
        "A dark green padded jacket worn open over a black sweater, loose khaki cargo pants, and hiking boots. "
        "The jacket has a small logo on the chest.",
    ),
    (
        "The subject is a young man wearing his black hair in a top knot, with a clean shaven chin and a "
        "narrow jawline.",
        "The outfit is sporty: a black and yellow tracksuit top with three stripes along the sleeves, matching bottoms, "
        "yellow running shoes, and wireless headphones.",
    ),
    (
        "woman w/ long straight black hair, thin, medium height, skin is light",
        "white tee & blue jeans, black flats, carrying a grey purse",
    ),
    (
        "A man whose hair is hidden; he is of medium build, appears in profile, and has bags under his eyes.",
        "A motorcycle helmet, a black leather jacket with a zipper, and faded jeans; the feet are not in the picture.",
    ),
)
# (kind, text, check that must fail, beginning of the reason); other checks may pass or fail.
INVALID_TEXTS = (
    ("identity", "A young man with short hair in a denim jacket.", "leak", "denim (material), jacket (upper)"),
    ("identity", "A tall woman with a ponytail and a baseball cap.", "leak", "cap (hat)"),
    ("identity", "An old man with grey hair, dressed casually.", "leak", "dressed (outfit)"),
    ("identity", "A girl with dark hair and sunglasses pushed up.", "leak", "sunglasses (accessories)"),
    ("identity", "A slim man with brown hair, holding two shopping-bags.", "leak", "bags (bag)"),
    ("clothing", "The man's shirt is red and his trousers are black.", "leak", "man (sex), his (sex)"),
    ("clothing", "A red dress and black shoes on a young lady.", "leak", "young (age), lady (sex)"),
    ("clothing", "Black coat, black trousers and long blonde hair.", "leak", "hair (hair)"),
    ("clothing", "White shirt, blue jeans, glasses.", "leak", "glasses (glasses)"),
    ("identity", "A tall adult person of medium build.", "coverage", "does not cover sex, hair"),
    ("clothing", "Black trousers and white trainers.", "coverage", "does not cover upper"),
    ("clothing", "A shirt, trousers and a pair of shoes.", "coverage", "does not cover colour"),
    ("identity", "", "syntax", "is empty"),
    ("identity", "A **young** woman with black hair.", "syntax", "has markup: '**'"),
    ("clothing", "1. Red shirt\n2. Blue jeans", "syntax", "has markup: '1.'"),
    ("clothing", 'A red shirt", "clothing": "blue jeans', "syntax", "has remains of JSON"),
    ("clothing", "A [colour] shirt and blue jeans.", "syntax", "has a placeholder: '[colour]'"),
    ("clothing", "Red shirt, blue jeans, shoes not specified.", "syntax", "has a placeholder: 'not specified'"),
    ("identity", "A woman with long hair.\nShe is tall.", "syntax", "has more than one line"),
    ("identity", "Identity description: a woman with long hair.", "syntax", "begins with a label"),
    ("identity", "Here is a description of the person: a tall woman with red hair.", "syntax", "begins with a label"),
    ("identity", 'A woman with "long hair.', "syntax", "has unbalanced quotes or brackets"),
    ("identity", '"A woman with long hair."', "syntax", "is in quotation marks as a whole"),
    ("identity", "A woman with long hair. \U0001f600", "syntax", "has a non-text character"),
    ("identity", "A woman with long\u00c2\u00a0hair.", "syntax", "has wrongly decoded characters"),
    ("identity", ", a woman with long hair.", "syntax", "begins with ','"),
    ("identity", "A tall woman with long hair and", "syntax", "breaks off: '...  tall woman with long hair and'"),
    ("identity", "A tall woman. She has long ha", "syntax", "breaks off"),
    ("identity", "A woman 1234567890 1234567890 hair 123 -- 77", "syntax", "is not made of words"),
    ("identity", "A YOUNG WOMAN WITH LONG DARK HAIR.", "syntax", "is in capital letters"),
    ("identity", "A woman with longdarkbrownhairtiedbackinaponytail hair.", "syntax", "has a word of 36 characters"),
    ("identity", "Woman, long hair.", "length", "has 3 words, expected 4 to 80"),
    ("identity", " ".join(["A woman with long hair is tall, and"] * 12), "length", "has 96 words, expected 4 to 80"),
    ("identity", "一名年轻女子 with long hair, a woman.", "language", "has 6 letters that are not Latin (Cjk)"),
    (
        "identity",
        "Une femme avec de longs cheveux bruns.",
        "language",
        "is not English: 14% of its words are known, expected 35%",
    ),
    ("identity", "I\u2019m sorry, I can\u2019t describe this woman's hair.", "refusal", "refuses: I'm sorry"),
    ("identity", "A woman with long long long hair.", "repetition", "repeats 'long'"),
    ("identity", "A woman with long hair with long hair.", "repetition", "repeats 'with long hair'"),
    (
        "identity",
        "She has long hair. A tall woman. She has long hair.",
        "repetition",
        "repeats the sentence 'she has long hair'",
    ),
    ("identity", "This is possibly a woman with long hair.", "hedging", "hedges: possibly"),
)
# Rejected, since the identity text names a coat.
LEAKING_TEXTS = ("A tall woman with long hair in a red coat.", "A red coat, blue jeans and white shoes.")


def make_rows(data: Path) -> list[dict]:
    """Rows, one per image: seven ok, three rejected with their checks, one failed, one of them without a style."""
    paths = sorted(read_data("cuhk-pedes", str(data)))[:12]
    made = []
    for i, path in enumerate(paths):
        identity, clothing = LEAKING_TEXTS if i in (2, 5, 8) else VALID_TEXTS[i]
        row = {"file_path": path, "identity": identity, "clothing": clothing, "style": i % 3, "model": "some-model"}
        row |= {"prompt_hash": "0" * 16, "params": {}, "status": "ok"}
        checks = check_texts(identity, clothing, load_schema(), Limits())
        if i in (2, 5, 8):
            reason = "; ".join(f"{name}: {why}" for name, why in checks.items() if why)
            row |= {"status": "rejected", "reason": reason}
        made.append(row | {"checks": checks})
    made[11] |= {"status": "failed", "reason": "timeout: no answer within 60 s", "identity": None, "clothing": None}
    del made[11]["checks"], made[10]["checks"], made[10]["style"]
    return made


def write_rows(path: Path, made: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


TERSE = ["Man; black jacket; blue jeans; white shoes.", "Woman; red coat; black trousers; brown boots; bag."]
LONG = ["The man is wearing a red shirt. The man is wearing black trousers. The man is wearing white shoes."] * 2


def lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def paths_of(root: Path, split: str) -> set[str]:
    """The file paths of a split."""
    return {r["file_path"] for r in json.loads((root / "reid_raw.json").read_text()) if r["split"] == split}


def write_styles(folder: Path, root: Path) -> Path:
    """Writes styles.json and styles.jsonl: every second training image in a terse style, the others in a repetitive one."""
    folder.mkdir()
    styles = [{"style": i, "size": 5, "examples": text, "markers": []} for i, text in enumerate((TERSE, LONG))]
    (folder / "styles.json").write_text(json.dumps({"method": "dbscan", "styles": styles}))
    rows = [
        {"file_path": path, "caption": caption, "style": (number + caption) % 2}
        for number, path in enumerate(sorted(paths_of(root, "train")))
        for caption in (0, 1)
    ]
    (folder / "styles.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
