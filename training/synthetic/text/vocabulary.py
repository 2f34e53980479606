"""The vocabulary of the texts: words for colours, garments and people, and common misspellings."""

COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "black": ("black", "black", "black", "dark"),
    "white": ("white",),
    "grey": ("grey", "gray", "gray"),
    "red": ("red", "red", "red", "bright red"),
    "orange": ("orange",),
    "yellow": ("yellow", "yellow", "bright yellow"),
    "green": ("green", "green", "dark green"),
    "blue": ("blue", "blue", "bright blue"),
    "navy": ("navy", "dark blue", "dark blue", "navy blue"),
    "purple": ("purple", "purple", "violet"),
    "pink": ("pink", "pink", "light pink"),
    "brown": ("brown", "brown", "dark brown"),
    "beige": ("beige", "tan", "cream", "khaki"),
}
NEIGHBOURS: dict[str, tuple[str, ...]] = {
    "black": ("navy", "grey"),
    "white": ("beige", "grey"),
    "grey": ("black", "white", "beige"),
    "red": ("orange", "pink"),
    "orange": ("red", "yellow"),
    "yellow": ("orange", "beige"),
    "green": ("blue", "grey"),
    "blue": ("navy", "purple"),
    "navy": ("black", "blue"),
    "purple": ("pink", "blue"),
    "pink": ("red", "purple"),
    "brown": ("black", "beige"),
    "beige": ("white", "brown"),
}
GARMENT_WORDS: dict[str, tuple[str, ...]] = {
    "T-shirt": ("t-shirt", "t-shirt", "T-shirt", "tee shirt", "tee", "short sleeved top", "short sleeve shirt", "top"),
    "shirt": ("shirt", "shirt", "button up shirt", "long sleeved shirt"),
    "jacket": ("jacket", "jacket", "jacket", "coat", "windbreaker"),
    "coat": ("coat", "long coat", "long coat", "overcoat"),
    "hoodie": ("hoodie", "hoodie", "hooded sweatshirt", "sweatshirt", "hooded top"),
    "sweater": ("sweater", "sweater", "jumper", "pullover", "long sleeved top"),
    "dress": ("dress", "dress", "knee length dress"),
    "trousers": ("trousers", "pants", "pants", "slacks", "long pants"),
    "jeans": ("jeans", "jeans", "jeans", "denim pants"),
    "shorts": ("shorts", "shorts", "short pants"),
    "skirt": ("skirt", "skirt", "knee length skirt"),
    "leggings": ("leggings", "leggings", "tights", "tight pants"),
    "sneakers": ("sneakers", "sneakers", "trainers", "tennis shoes", "sports shoes", "shoes"),
    "leather shoes": ("leather shoes", "dress shoes", "shoes", "shoes"),
    "boots": ("boots", "boots", "ankle boots"),
    "sandals": ("sandals", "sandals", "flip flops"),
    "high heels": ("high heels", "heels", "high heeled shoes"),
    "backpack": ("backpack", "backpack", "rucksack", "school bag"),
    "handbag": ("handbag", "purse", "hand bag", "bag"),
    "shoulder bag": ("shoulder bag", "messenger bag", "side bag", "bag"),
    "cap": ("cap", "baseball cap", "hat"),
    "beanie": ("beanie", "knit hat", "winter hat"),
}
PLURALS = ("trousers", "jeans", "shorts", "leggings", "sneakers", "leather shoes", "boots", "sandals", "high heels")
PEOPLE: dict[tuple[str, str], tuple[str, ...]] = {
    ("man", "child"): ("boy", "young boy", "little boy", "male child"),
    ("man", "young"): ("man", "man", "young man", "young man", "guy", "male"),
    ("man", "adult"): ("man", "man", "man", "middle aged man", "gentleman", "male"),
    ("man", "elderly"): ("man", "old man", "elderly man", "older man", "senior man"),
    ("woman", "child"): ("girl", "young girl", "little girl", "female child"),
    ("woman", "young"): ("woman", "woman", "young woman", "young lady", "lady", "female"),
    ("woman", "adult"): ("woman", "woman", "woman", "middle aged woman", "lady", "female"),
    ("woman", "elderly"): ("woman", "old woman", "elderly woman", "older lady", "senior woman"),
}
HAIR_WORDS: dict[str, tuple[str, ...]] = {
    "buzzed": ("very short {} hair", "shaved {} hair", "short {} hair"),
    "short": ("short {} hair", "short {} hair", "{} hair"),
    "curly": ("curly {} hair", "curly {} hair", "frizzy {} hair"),
    "bob": ("chin length {} hair", "shoulder length {} hair", "medium length {} hair"),
    "long": ("long {} hair", "long {} hair", "long straight {} hair"),
    "ponytail": ("{} hair in a ponytail", "a {} ponytail", "{} hair tied back"),
    "bun": ("{} hair in a bun", "a {} bun", "{} hair tied up in a bun"),
}
HAIR_COLOURS: dict[str, tuple[str, ...]] = {
    "black": ("black", "black", "dark"),
    "brown": ("brown", "brown", "dark brown"),
    "blond": ("blond", "blonde", "light colored"),
    "red": ("red", "reddish brown", "ginger"),
    "grey": ("grey", "gray", "white"),
}
BALD_WORDS = ("a bald head", "almost no hair", "a bald head")
BEARD_WORDS = ("a beard", "a full beard")
GENERIC_PEOPLE = ("person", "person", "pedestrian", "individual")
BUILD_WORDS = {"slim": ("slim", "thin", "skinny", "slender"), "heavy": ("heavy", "heavy set", "overweight", "large")}
PATTERN_WORDS = {
    "striped": ("striped", "striped", "horizontally striped"),
    "checked": ("plaid", "checkered", "checked"),
    "dotted": ("polka dot", "dotted", "spotted"),
}
PATTERN_NOUNS = {"striped": ("stripes",), "checked": ("checks", "squares"), "dotted": ("dots", "polka dots", "spots")}
LOGO_WORDS = ("logo", "print", "graphic", "design")
INNER_WORDS = ("shirt", "t-shirt", "top")
BACKPACK_PLACES = ("on {his} back", "over both shoulders")
SIDE_PLACES = {"handbag": "in {his} %s hand", "shoulder bag": "on {his} %s side"}
ACTIONS = {
    ("walking", "front"): ("walking towards the camera", "walking forward", "walking toward us"),
    ("walking", "back"): ("walking away from the camera", "walking away", "seen from behind while walking"),
    ("standing", "front"): ("standing and facing the camera", "standing still", "facing forward"),
    ("standing", "back"): ("standing with {his} back to the camera", "facing away from the camera", "seen from behind"),
}
SIDE_ACTIONS = {"walking": "walking to the %s", "standing": "standing facing %s"}
UMBRELLA_ACTIONS = {
    "walking": ("holding an umbrella", "walking under an umbrella"),
    "standing": ("holding an umbrella", "carrying an umbrella"),
}
PHONE_ACTIONS = ("talking on the phone", "looking at a phone", "holding a phone")
MISSPELLINGS = {
    "wearing": ("wering", "wearig", "waering"),
    "trousers": ("trowsers", "trouser"),
    "striped": ("stripped", "stiped"),
    "carrying": ("carring", "carying"),
    "backpack": ("backpak", "back pack", "bagpack"),
    "jacket": ("jaket", "jackett"),
    "sneakers": ("sneekers", "snickers"),
    "sweater": ("sweeter", "swetter"),
    "shoes": ("shoe's", "shoos"),
    "walking": ("waking", "walkin"),
    "shoulder": ("sholder", "shouldar"),
    "camera": ("camara",),
    "leggings": ("legings",),
    "hoodie": ("hoody", "hoddie"),
    "length": ("lenght",),
    "pants": ("pans",),
}


def with_article(phrase: str) -> str:
    """The phrase after "a" or "an"."""
    return f"{'an' if phrase[0].lower() in 'aeiou' else 'a'} {phrase}"


def hair_phrase(template: str, colour: str) -> str:
    """A template of HAIR_WORDS with its colour, and the article that the colour needs."""
    phrase = template.format(colour)
    return with_article(phrase[2:]) if phrase.startswith("a ") else phrase


def join_phrases(phrases: list[str], last: str = " and ") -> str:
    """ "a", "a and b", "a, b and c"."""
    return last.join(filter(None, (", ".join(phrases[:-1]), phrases[-1]))) if phrases else ""


def capitalise(phrase: str) -> str:
    """The phrase with a capital first letter, the rest unchanged."""
    return phrase[0].upper() + phrase[1:]
