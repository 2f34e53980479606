"""What one annotator notices in a picture, in words: with omissions, and with the errors that people make."""

from dataclasses import dataclass, field

from training.synthetic.attributes import Identity, Outfit, Pose
from training.synthetic.rng import Dice
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
class Seen:
    """Phrases without articles; None or empty where the annotator said nothing."""

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
    """Looks at one picture; `effort` 0, 1, 2 raises the share of the attributes that get mentioned."""

    def __init__(self, dice: Dice, identity: Identity, outfit: Outfit, pose: Pose, effort: int = 0) -> None:
        self.dice, self.identity, self.outfit, self.pose, self.effort = dice, identity, outfit, pose, effort
        self.errors: list[str] = []
        self.face_shows = pose.facing != "back"

    def says(self, probability: float) -> bool:
        """Whether an attribute gets mentioned."""
        return self.dice.chance(probability + (1 - probability) * 0.45 * self.effort)

    def colour(self, part: str) -> str:
        """A word for the colour of a part of the outfit, now and then of a neighbouring colour."""
        name: str = getattr(self.outfit, f"{part}_colour")
        if self.dice.chance(WRONG_COLOUR):
            self.errors.append(f"colour:{part}")
            name = self.dice.pick(NEIGHBOURS[name])
        return self.dice.pick(COLOUR_WORDS[name])

    def look(self) -> Seen:
        """Everything that this annotator will write about."""
        dice = self.dice
        male = self.identity.sex == "man"
        noun, he, his = (
            dice.pick(PEOPLE[self.identity.sex, self.identity.age]),
            "he" if male else "she",
            "his" if male else "her",
        )
        if dice.chance(0.08 if self.face_shows else 0.16):
            noun, he, his = dice.pick(("person", "person", "pedestrian", "individual")), "they", "their"
        seen = Seen(noun, he, his, upper=self._upper(), lower=self._lower())
        if self.says(0.62):
            seen.shoes = f"{self.colour('shoes')} {dice.pick(GARMENT_WORDS[self.outfit.shoes])}"
        if self.outfit.hat != "none" and self.says(0.85):
            seen.hat = f"{self.colour('hat')} {dice.pick(GARMENT_WORDS[self.outfit.hat])}"
        if self.outfit.scarf_colour != "none" and self.says(0.75):
            seen.scarf = f"{self.colour('scarf')} scarf"
        if self.outfit.inner_colour != "none" and self.face_shows and self.says(0.5):
            seen.inner = f"{self.colour('inner')} {dice.pick(('shirt', 't-shirt', 'top'))}"
        self._bag(seen)
        self._person(seen)
        if self.says(0.8 if self.pose.action != "none" else 0.42):
            seen.action = self._action(his)
        seen.errors = self.errors
        return seen

    def _upper(self) -> str:
        dice, outfit = self.dice, self.outfit
        garment = dice.pick(GARMENT_WORDS[outfit.upper])
        if not self.dice.chance(0.97):
            return garment
        colour = self.colour("upper")
        if (
            outfit.pattern == "plain"
            or (outfit.pattern == "logo" and self.pose.facing != "front")
            or not self.says(0.86)
        ):
            return f"{colour} {garment}"
        other = self.colour("pattern")
        if outfit.pattern == "logo":
            design = dice.pick(("logo", "print", "graphic", "design"))
            return f"{colour} {garment} with {with_article(f'{other} {design}')} on the front"
        pattern = dice.pick(PATTERN_WORDS[outfit.pattern])
        form = dice.weighted({"both": 4, "with": 3, "one": 2})
        if form == "both":
            return f"{colour} and {other} {pattern} {garment}"
        if form == "with":
            return f"{colour} {garment} with {other} {dice.pick(PATTERN_NOUNS[outfit.pattern])}"
        return f"{pattern} {colour} {garment}"

    def _lower(self) -> str | None:
        outfit = self.outfit
        if outfit.lower == "bare legs":
            return "bare legs" if self.says(0.15) else None
        if not self.says(0.93):
            return None
        garment = self.dice.pick(GARMENT_WORDS[outfit.lower])
        if outfit.lower == "jeans" and outfit.lower_colour == "blue" and self.dice.chance(0.25):
            return garment
        return f"{self.colour('lower')} {garment}"

    def _bag(self, seen: Seen) -> None:
        outfit, dice = self.outfit, self.dice
        only_straps = outfit.bag == "backpack" and self.pose.facing == "front"
        if outfit.bag == "none" or not self.says(0.55 if only_straps else 0.88):
            return
        seen.bag = f"{self.colour('bag')} {dice.pick(GARMENT_WORDS[outfit.bag])}"
        if outfit.bag == "backpack":
            seen.bag_place = dice.pick(("on {his} back", "over both shoulders")) if self.says(0.3) else None
        elif self.says(0.35):
            side = outfit.bag_side
            if dice.chance(WRONG_SIDE):
                self.errors.append("side:bag")
                side = "left" if side == "right" else "right"
            place = "in {his} %s hand" if outfit.bag == "handbag" else "on {his} %s side"
            seen.bag_place = place % side
        if seen.bag_place:
            seen.bag_place = seen.bag_place.format(his=seen.his)

    def _person(self, seen: Seen) -> None:
        identity, dice = self.identity, self.dice
        if identity.hair == "bald":
            if self.outfit.hat == "none" and self.says(0.7):
                seen.hair = dice.pick(("a bald head", "almost no hair", "a bald head"))
        elif self.says(0.5 if self.outfit.hat == "none" else 0.22):
            seen.hair = dice.pick(HAIR_WORDS[identity.hair]).format(dice.pick(HAIR_COLOURS[identity.hair_colour]))
            if seen.hair.startswith("a "):
                seen.hair = with_article(seen.hair[2:])
        if self.face_shows and identity.glasses and self.says(0.6):
            seen.face.append("glasses")
        if self.face_shows and identity.beard and self.says(0.65):
            seen.face.append(dice.pick(("a beard", "a full beard")))
        if identity.build in BUILD_WORDS and self.says(0.22):
            seen.build = dice.pick(BUILD_WORDS[identity.build])
        elif identity.height != "average" and self.says(0.14):
            seen.build = identity.height
        elif identity.skin == "dark" and self.says(0.1):
            seen.build = "dark skinned"

    def _action(self, his: str) -> str:
        dice, pose = self.dice, self.pose
        if pose.action == "umbrella":
            return dice.pick(
                (
                    "holding an umbrella",
                    "walking under an umbrella" if pose.gait == "walking" else "carrying an umbrella",
                )
            )
        if pose.action == "phone" and self.face_shows:
            return dice.pick(("talking on the phone", "looking at a phone", "holding a phone"))
        if pose.facing in ("front", "back"):
            return dice.pick(_ACTIONS[pose.gait, pose.facing]).format(his=his)
        side = pose.facing
        if dice.chance(WRONG_SIDE):
            self.errors.append("side:facing")
            side = "left" if side == "right" else "right"
        return f"{pose.gait} {'to the' if pose.gait == 'walking' else 'facing'} {side}"
