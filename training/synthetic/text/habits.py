"""Habits of the annotators: how often they mention a part and how often they err. The oracle reads the same numbers."""

from training.synthetic.attributes import Identity, Outfit, Pose
from training.synthetic.text.vocabulary import BUILD_WORDS

WRONG_COLOUR, WRONG_SIDE = 0.04, 0.05
OTHER_SIDE = {"left": "right", "right": "left"}
# The colour of the upper garment is said, and that of blue jeans is not.
UPPER_COLOUR, JEANS_WITHOUT_COLOUR = 0.97, 0.25
# Weights of "red and white striped shirt", "red shirt with white stripes" and "striped red shirt".
PATTERN_FORMS = {"both": 4, "with": 3, "one": 2}
# Share of what is left unsaid that each step of effort adds.
EFFORT = 0.45
# The decision to mention a part, where no choice of words follows.
MENTIONED = "mentioned"


def raised(rate: float, effort: int) -> float:
    """Probability of a mention at an effort, from that at effort 0."""
    return rate + (1 - rate) * EFFORT * effort


def face_visible(pose: Pose) -> bool:
    """True unless the person is seen from behind."""
    return pose.facing != "back"


def shows_phone(pose: Pose) -> bool:
    """True for a phone that can be seen."""
    return pose.action == "phone" and face_visible(pose)


def may_lack_colour(outfit: Outfit) -> bool:
    """True for blue jeans."""
    return outfit.lower == "jeans" and outfit.lower_colour == "blue"


def generic_noun_rate(pose: Pose) -> float:
    """Probability of a noun that names neither sex nor age."""
    return 0.08 if face_visible(pose) else 0.16


def mention_rates(identity: Identity, outfit: Outfit, pose: Pose) -> dict[str, float]:
    """Probability at effort 0 of mentioning each part, once the annotator comes to it; 0 for what is not there or hidden."""
    face, bare_head = face_visible(pose), outfit.hat == "none"
    pattern = outfit.pattern != "plain" and (outfit.pattern != "logo" or pose.facing == "front")
    only_straps = outfit.bag == "backpack" and pose.facing == "front"
    hair = (0.7 if bare_head else 0.0) if identity.hair == "bald" else (0.5 if bare_head else 0.22)
    return {
        "pattern": 0.86 if pattern else 0.0,
        "lower": 0.15 if outfit.lower == "bare legs" else 0.93,
        "shoes": 0.62,
        "hat": 0.0 if bare_head else 0.85,
        "scarf": 0.75 if outfit.scarf_colour != "none" else 0.0,
        "inner": 0.5 if outfit.inner_colour != "none" and face else 0.0,
        "bag": 0.0 if outfit.bag == "none" else 0.55 if only_straps else 0.88,
        "bag_place": 0.3 if outfit.bag == "backpack" else 0.35,
        "hair": hair,
        "glasses": 0.6 if face and identity.glasses else 0.0,
        "beard": 0.65 if face and identity.beard else 0.0,
        "build": 0.22 if identity.build in BUILD_WORDS else 0.0,
        "height": 0.14 if identity.height != "average" else 0.0,
        "skin": 0.1 if identity.skin == "dark" else 0.0,
        "action": 0.8 if pose.action != "none" else 0.42,
    }
