"""True attributes of a rendered image, drawn at random: the person, the outfit, the pose and the shot."""

from dataclasses import dataclass

from training.synthetic.rng import KeyedRng

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "black": (34, 34, 38),
    "white": (236, 236, 232),
    "grey": (134, 136, 140),
    "red": (196, 34, 40),
    "orange": (234, 122, 30),
    "yellow": (240, 208, 56),
    "green": (44, 130, 66),
    "blue": (44, 100, 204),
    "navy": (26, 36, 86),
    "purple": (118, 56, 150),
    "pink": (238, 140, 176),
    "brown": (110, 70, 42),
    "beige": (212, 190, 150),
}
SKIN: dict[str, RGB] = {"fair": (238, 200, 174), "tan": (214, 162, 122), "brown": (158, 106, 72), "dark": (96, 64, 48)}
HAIR: dict[str, RGB] = {
    "black": (30, 27, 28),
    "brown": (88, 56, 34),
    "blond": (212, 174, 100),
    "red": (158, 74, 34),
    "grey": (172, 172, 174),
}
CAMERAS = ("cam_a", "cam_b", "cam_c", "cam_d", "cam_e", "cam_f")
OPEN_FRONT = ("jacket", "coat")
LONG_SLEEVES = ("shirt", "jacket", "coat", "hoodie", "sweater")

_LOWER_WEIGHTS = {"black": 20, "navy": 10, "blue": 10, "grey": 14, "beige": 10, "brown": 9, "white": 7, "green": 5}
_LOWER_COLOURS: dict[str, dict[str, float]] = {
    "trousers": {**_LOWER_WEIGHTS, "red": 3},
    "jeans": {"blue": 45, "navy": 20, "black": 18, "grey": 17},
    "shorts": {**_LOWER_WEIGHTS, "red": 8, "orange": 3, "yellow": 3},
    "skirt": {**_LOWER_WEIGHTS, "red": 10, "pink": 8, "purple": 7, "yellow": 5},
    "leggings": {"black": 50, "grey": 20, "navy": 14, "purple": 8, "brown": 8},
    "bare legs": {"none": 1},
}
_SHOE_COLOURS: dict[str, dict[str, float]] = {
    "sneakers": {"white": 35, "black": 22, "red": 11, "blue": 11, "grey": 12, "green": 4, "pink": 5},
    "leather shoes": {"black": 60, "brown": 40},
    "boots": {"black": 50, "brown": 40, "beige": 10},
    "sandals": {"brown": 50, "black": 30, "beige": 20},
    "high heels": {"black": 50, "red": 25, "beige": 15, "white": 10},
}
_BAG_COLOURS = {
    "black": 28,
    "brown": 14,
    "red": 11,
    "blue": 9,
    "grey": 9,
    "green": 8,
    "pink": 6,
    "yellow": 6,
    "beige": 5,
}


@dataclass(frozen=True)
class Identity:
    """Attributes that stay when a person changes clothes."""

    sex: str  # man, woman
    age: str  # child, young, adult, elderly
    build: str  # slim, average, heavy
    height: str  # short, average, tall
    skin: str
    hair: str  # bald, buzzed, short, curly, bob, long, ponytail, bun
    hair_colour: str
    beard: bool
    glasses: bool


@dataclass(frozen=True)
class Outfit:
    """Attributes that change: garments, their colour names and, in `rgb`, the rendered colours (before light and camera)."""

    upper: str  # T-shirt, shirt, jacket, coat, hoodie, sweater, dress
    upper_colour: str
    pattern: str  # plain, striped, checked, logo, dotted
    pattern_colour: str
    inner_colour: str  # of the shirt under an open jacket or coat, else "none"
    lower: str  # trousers, jeans, shorts, skirt, leggings, bare legs (under a dress)
    lower_colour: str
    shoes: str
    shoes_colour: str
    bag: str  # none, backpack, handbag, shoulder bag
    bag_colour: str
    bag_side: str  # left, right (of the wearer)
    hat: str  # none, cap, beanie
    hat_colour: str
    scarf_colour: str  # "none" without a scarf
    rgb: dict[str, RGB]


@dataclass(frozen=True)
class Pose:
    """Posture of the person. `yaw` in degrees: 0 towards the camera, 90 to the right of the image."""

    facing: str  # front, back, left, right (of the image)
    yaw: float
    gait: str  # standing, walking
    phase: float  # of the walking cycle, degrees
    arms: dict[str, str]  # left, right: down, pocket, bent, phone, umbrella
    action: str  # none, phone, umbrella


@dataclass(frozen=True)
class Shot:
    """One image of one camera: offsets and sizes as shares of the image, light relative to the camera's own."""

    camera: str
    pan: float  # position of the crop in the scene, 0..1
    offset_x: float
    offset_y: float
    scale: float
    light: float
    roll: float  # degrees
    noise_seed: int


def sample_shade(rng: KeyedRng, name: str) -> RGB:
    """Draws an RGB value near the named colour, close enough to keep its name."""
    gain, fade = rng.uniform(0.9, 1.1), rng.uniform(0.0, 0.2)
    base = COLOURS.get(name, (0, 0, 0))
    grey = sum(base) / 3 * fade
    red, green, blue = (min(250, max(12, int((c * (1 - fade) + grey) * gain) + rng.integer(-7, 7))) for c in base)
    return red, green, blue


def sample_identity(rng: KeyedRng) -> Identity:
    """Draws a person."""
    sex = rng.choice(("man", "woman"))
    age = rng.weighted_choice({"child": 0.13, "young": 0.37, "adult": 0.33, "elderly": 0.17})
    build = rng.weighted_choice({"slim": 0.33, "average": 0.4, "heavy": 0.27})
    if sex == "man":
        styles = {"bald": 10, "buzzed": 20, "short": 48, "curly": 14, "long": 5, "ponytail": 3}
        if age == "child":
            styles["bald"] = 0
        elif age == "elderly":
            styles["bald"] = 35
    else:
        styles = {"short": 12, "curly": 14, "bob": 20, "long": 28, "ponytail": 16, "bun": 10}
    skin = rng.weighted_choice({"fair": 0.4, "tan": 0.28, "brown": 0.17, "dark": 0.15})
    colours = {"black": 40, "brown": 30, "blond": 20, "red": 10} if skin == "fair" else {"black": 65, "brown": 30}
    hair_colour = rng.weighted_choice(colours)
    if age == "elderly" and rng.chance(0.85):
        hair_colour = "grey"
    grown_man = sex == "man" and age in ("adult", "elderly")
    return Identity(
        sex=sex,
        age=age,
        build=build,
        height=rng.weighted_choice({"short": 0.28, "average": 0.44, "tall": 0.28}),
        skin=skin,
        hair=rng.weighted_choice(styles),
        hair_colour=hair_colour,
        beard=grown_man and rng.chance(0.35),
        glasses=rng.chance(0.22),
    )


def _sample_upper(rng: KeyedRng, identity: Identity) -> tuple[str, str, str, str]:
    kinds = {"T-shirt": 26, "shirt": 15, "jacket": 19, "coat": 11, "hoodie": 13, "sweater": 12}
    if identity.sex == "woman":
        kinds["dress"] = 14
    upper = rng.weighted_choice(kinds)
    colour = rng.choice(tuple(COLOURS))
    patterns = {
        "T-shirt": {"plain": 40, "striped": 22, "logo": 28, "dotted": 10},
        "shirt": {"plain": 42, "striped": 20, "checked": 38},
        "hoodie": {"plain": 65, "logo": 35},
        "sweater": {"plain": 55, "striped": 45},
        "dress": {"plain": 50, "dotted": 25, "striped": 15, "checked": 10},
    }
    pattern = rng.weighted_choice(patterns.get(upper, {"plain": 1}))
    light = colour in ("white", "yellow", "beige", "pink", "orange")
    other = rng.choice(("black", "navy", "red", "blue", "green") if light else ("white", "yellow", "black", "beige"))
    if other == colour or (other == "black" and colour in ("navy", "brown")):
        other = "white"
    inner = "none"
    if upper in OPEN_FRONT and rng.chance(0.6):
        inner = rng.choice([name for name in ("white", "black", "grey", "red", "blue", "yellow") if name != colour])
    return upper, colour, pattern if pattern == "plain" else f"{pattern}/{other}", inner


def _sample_lower(rng: KeyedRng, identity: Identity, upper: str) -> tuple[str, str]:
    if upper == "dress":
        kinds: dict[str, float] = {"bare legs": 60, "leggings": 40}
    else:
        kinds = {"trousers": 36, "jeans": 34, "shorts": 18 if upper != "coat" else 0}
        if identity.sex == "woman":
            kinds |= {"skirt": 20, "leggings": 14}
    lower = rng.weighted_choice(kinds)
    return lower, rng.weighted_choice(_LOWER_COLOURS[lower])


def sample_outfit(rng: KeyedRng, identity: Identity) -> Outfit:
    """Draws an outfit that this person may wear on one day."""
    upper, upper_colour, pattern, inner_colour = _sample_upper(rng, identity)
    lower, lower_colour = _sample_lower(rng, identity, upper)
    shoes_kinds: dict[str, float] = {"sneakers": 48, "leather shoes": 22, "boots": 14, "sandals": 8}
    if identity.sex == "woman" and identity.age in ("young", "adult"):
        shoes_kinds["high heels"] = 14
    shoes = rng.weighted_choice(shoes_kinds)
    bags: dict[str, float] = {"none": 38, "backpack": 28, "shoulder bag": 20}
    if identity.sex == "woman" and identity.age != "child":
        bags["handbag"] = 22
    bag = rng.weighted_choice(bags)
    hat = rng.weighted_choice({"none": 74, "cap": 15, "beanie": 11})
    scarf = upper in ("jacket", "coat", "sweater") and rng.chance(0.22)
    names = {
        "upper": upper_colour,
        "pattern": pattern.partition("/")[2] or "none",
        "inner": inner_colour,
        "lower": lower_colour,
        "shoes": rng.weighted_choice(_SHOE_COLOURS[shoes]),
        "bag": rng.weighted_choice(_BAG_COLOURS) if bag != "none" else "none",
        "hat": rng.weighted_choice(_BAG_COLOURS) if hat != "none" else "none",
        "scarf": rng.choice([c for c in COLOURS if c != upper_colour]) if scarf else "none",
    }
    return Outfit(
        upper=upper,
        pattern=pattern.partition("/")[0],
        lower=lower,
        shoes=shoes,
        bag=bag,
        bag_side=rng.choice(("left", "right")),
        hat=hat,
        rgb={part: sample_shade(rng, name) for part, name in names.items()},
        **{f"{part}_colour": name for part, name in names.items()},
    )


def sample_pose(rng: KeyedRng, outfit: Outfit) -> Pose:
    """Draws a pose; a hand that carries a handbag is not used for a phone or an umbrella."""
    facing = rng.weighted_choice({"front": 32, "back": 28, "left": 20, "right": 20})
    yaw = {"front": 0.0, "back": 180.0, "left": -90.0, "right": 90.0}[facing] + rng.uniform(-22, 22)
    arms = {side: rng.weighted_choice({"down": 60, "pocket": 22, "bent": 18}) for side in ("left", "right")}
    action = rng.weighted_choice({"none": 0.85, "phone": 0.1, "umbrella": 0.05})
    busy = outfit.bag_side if outfit.bag == "handbag" else "none"
    if busy != "none":
        arms[busy] = "down"
    if action != "none":
        arms["left" if busy == "right" else "right"] = action
    return Pose(facing, yaw, rng.weighted_choice({"walking": 68, "standing": 32}), rng.uniform(0, 360), arms, action)


def sample_shot(rng: KeyedRng, camera: str) -> Shot:
    """Draws the position, light and noise of one image of a camera."""
    return Shot(
        camera=camera,
        pan=rng.uniform(0, 1),
        offset_x=rng.uniform(-0.06, 0.06),
        offset_y=rng.uniform(-0.02, 0.02),
        scale=rng.uniform(0.95, 1.05),
        light=rng.uniform(0.88, 1.12),
        roll=rng.uniform(-2.0, 2.0),
        noise_seed=rng.integer(0, 2**32 - 1),
    )
