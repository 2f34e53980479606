"""Notes of one annotator about an image, in words: with omissions and with typical human errors."""

from dataclasses import dataclass, field

from training.synthetic.attributes import Identity, Outfit, Pose
from training.synthetic.rng import KeyedRng
from training.synthetic.text.vocabulary import (
    BUILD_WORDS,
    COLOUR_WORDS,
    GARMENT_WORDS,
    HAIR_COLOURS,
    HAIR_WORDS,
    NEIGHBOURS,
    PATTERN_NOUNS,
    PATTERN_WORDS,
    PEOPLE,
    with_article,
)

WRONG_COLOUR, WRONG_SIDE = 0.04, 0.05
_ACTIONS = {
    ("walking", "front"): ("walking towards the camera", "walking forward", "walking toward us"),
    ("walking", "back"): ("walking away from the camera", "walking away", "seen from behind while walking"),
    ("standing", "front"): ("standing and facing the camera", "standing still", "facing forward"),
    ("standing", "back"): ("standing with {his} back to the camera", "facing away from the camera", "seen from behind"),
}


@dataclass
class Notes:
    """Phrases without articles; None or empty where the annotator mentions nothing."""

    noun: str
    he: str
    his: str
    upper: str
    lower: str | None
    shoes: str | None = None
    hat: str | None = None
    scarf: str | None = None
    inner: str | None = None
    bag: str | None = None
    bag_place: str | None = None
    hair: str | None = None
    face: list[str] = field(default_factory=list)  # glasses, a beard
    build: str | None = None
    action: str | None = None
    errors: list[str] = field(default_factory=list)

    def worn(self) -> list[str]:
        """Upper and lower garment with articles."""
        phrases = [with_article(self.upper)]
        if self.lower:
            phrases.append(with_article(self.lower) if "skirt" in self.lower else self.lower)
        return phrases

    def looks(self) -> list[str]:
        """Hair and face."""
        return ([self.hair] if self.hair else []) + self.face

    def extras(self) -> list[str]:
        """Hat and scarf with articles."""
        return [with_article(phrase) for phrase in (self.hat, self.scarf) if phrase]


class Annotator:
    """Describes one image; `effort` 0, 1, 2 raises the share of the attributes that are mentioned."""

    def __init__(self, rng: KeyedRng, identity: Identity, outfit: Outfit, pose: Pose, effort: int = 0) -> None:
        self.rng, self.identity, self.outfit, self.pose, self.effort = rng, identity, outfit, pose, effort
        self.errors: list[str] = []
        self.face_visible = pose.facing != "back"

    def mentions(self, probability: float) -> bool:
        """True if an attribute is mentioned, with this probability at effort 0."""
        return self.rng.chance(probability + (1 - probability) * 0.45 * self.effort)

    def colour(self, part: str) -> str:
        """A word for the colour of a part of the outfit; with probability WRONG_COLOUR for a neighbouring colour."""
        name: str = getattr(self.outfit, f"{part}_colour")
        if self.rng.chance(WRONG_COLOUR):
            self.errors.append(f"colour:{part}")
            name = self.rng.choice(NEIGHBOURS[name])
        return self.rng.choice(COLOUR_WORDS[name])

    def take_notes(self) -> Notes:
        """Everything that this annotator writes about the image."""
        rng = self.rng
        male = self.identity.sex == "man"
        noun, he, his = (
            rng.choice(PEOPLE[self.identity.sex, self.identity.age]),
            "he" if male else "she",
            "his" if male else "her",
        )
        if rng.chance(0.08 if self.face_visible else 0.16):
            noun, he, his = rng.choice(("person", "person", "pedestrian", "individual")), "they", "their"
        notes = Notes(noun, he, his, upper=self._upper(), lower=self._lower())
        if self.mentions(0.62):
            notes.shoes = f"{self.colour('shoes')} {rng.choice(GARMENT_WORDS[self.outfit.shoes])}"
        if self.outfit.hat != "none" and self.mentions(0.85):
            notes.hat = f"{self.colour('hat')} {rng.choice(GARMENT_WORDS[self.outfit.hat])}"
        if self.outfit.scarf_colour != "none" and self.mentions(0.75):
            notes.scarf = f"{self.colour('scarf')} scarf"
        if self.outfit.inner_colour != "none" and self.face_visible and self.mentions(0.5):
            notes.inner = f"{self.colour('inner')} {rng.choice(('shirt', 't-shirt', 'top'))}"
        self._bag(notes)
        self._person(notes)
        if self.mentions(0.8 if self.pose.action != "none" else 0.42):
            notes.action = self._action(his)
        notes.errors = self.errors
        return notes

    def _upper(self) -> str:
        rng, outfit = self.rng, self.outfit
        garment = rng.choice(GARMENT_WORDS[outfit.upper])
        if not self.rng.chance(0.97):
            return garment
        colour = self.colour("upper")
        if (
            outfit.pattern == "plain"
            or (outfit.pattern == "logo" and self.pose.facing != "front")
            or not self.mentions(0.86)
        ):
            return f"{colour} {garment}"
        other = self.colour("pattern")
        if outfit.pattern == "logo":
            design = rng.choice(("logo", "print", "graphic", "design"))
            return f"{colour} {garment} with {with_article(f'{other} {design}')} on the front"
        pattern = rng.choice(PATTERN_WORDS[outfit.pattern])
        form = rng.weighted_choice({"both": 4, "with": 3, "one": 2})
        if form == "both":
            return f"{colour} and {other} {pattern} {garment}"
        if form == "with":
            return f"{colour} {garment} with {other} {rng.choice(PATTERN_NOUNS[outfit.pattern])}"
        return f"{pattern} {colour} {garment}"

    def _lower(self) -> str | None:
        outfit = self.outfit
        if outfit.lower == "bare legs":
            return "bare legs" if self.mentions(0.15) else None
        if not self.mentions(0.93):
            return None
        garment = self.rng.choice(GARMENT_WORDS[outfit.lower])
        if outfit.lower == "jeans" and outfit.lower_colour == "blue" and self.rng.chance(0.25):
            return garment
        return f"{self.colour('lower')} {garment}"

    def _bag(self, notes: Notes) -> None:
        outfit, rng = self.outfit, self.rng
        only_straps = outfit.bag == "backpack" and self.pose.facing == "front"
        if outfit.bag == "none" or not self.mentions(0.55 if only_straps else 0.88):
            return
        notes.bag = f"{self.colour('bag')} {rng.choice(GARMENT_WORDS[outfit.bag])}"
        if outfit.bag == "backpack":
            notes.bag_place = rng.choice(("on {his} back", "over both shoulders")) if self.mentions(0.3) else None
        elif self.mentions(0.35):
            side = outfit.bag_side
            if rng.chance(WRONG_SIDE):
                self.errors.append("side:bag")
                side = "left" if side == "right" else "right"
            place = "in {his} %s hand" if outfit.bag == "handbag" else "on {his} %s side"
            notes.bag_place = place % side
        if notes.bag_place:
            notes.bag_place = notes.bag_place.format(his=notes.his)

    def _person(self, notes: Notes) -> None:
        identity, rng = self.identity, self.rng
        if identity.hair == "bald":
            if self.outfit.hat == "none" and self.mentions(0.7):
                notes.hair = rng.choice(("a bald head", "almost no hair", "a bald head"))
        elif self.mentions(0.5 if self.outfit.hat == "none" else 0.22):
            notes.hair = rng.choice(HAIR_WORDS[identity.hair]).format(rng.choice(HAIR_COLOURS[identity.hair_colour]))
            if notes.hair.startswith("a "):
                notes.hair = with_article(notes.hair[2:])
        if self.face_visible and identity.glasses and self.mentions(0.6):
            notes.face.append("glasses")
        if self.face_visible and identity.beard and self.mentions(0.65):
            notes.face.append(rng.choice(("a beard", "a full beard")))
        if identity.build in BUILD_WORDS and self.mentions(0.22):
            notes.build = rng.choice(BUILD_WORDS[identity.build])
        elif identity.height != "average" and self.mentions(0.14):
            notes.build = identity.height
        elif identity.skin == "dark" and self.mentions(0.1):
            notes.build = "dark skinned"

    def _action(self, his: str) -> str:
        rng, pose = self.rng, self.pose
        if pose.action == "umbrella":
            return rng.choice(
                (
                    "holding an umbrella",
                    "walking under an umbrella" if pose.gait == "walking" else "carrying an umbrella",
                )
            )
        if pose.action == "phone" and self.face_visible:
            return rng.choice(("talking on the phone", "looking at a phone", "holding a phone"))
        if pose.facing in ("front", "back"):
            return rng.choice(_ACTIONS[pose.gait, pose.facing]).format(his=his)
        side = pose.facing
        if rng.chance(WRONG_SIDE):
            self.errors.append("side:facing")
            side = "left" if side == "right" else "right"
        return f"{pose.gait} {'to the' if pose.gait == 'walking' else 'facing'} {side}"
