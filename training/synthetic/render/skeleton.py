"""Bodies as joints in three dimensions, and their projection into the image.

Lengths are in body heights: x to the right of a person seen from the front, y up from the ground, z towards the camera.
"""

from dataclasses import dataclass

from training.synthetic.attributes import Identity, Pose
from training.synthetic.render.canvas import Point, Tube
from training.synthetic.rng import cosine, sine

Joint = tuple[float, float, float]
SIDES = {"left": 1.0, "right": -1.0}  # the wearer's left is at positive x when facing the camera


@dataclass(frozen=True)
class Build:
    """Proportions of a body in body heights; `limb` and `belly` scale girths."""

    head: float
    shoulder: float
    hip: float
    leg: float
    limb: float
    belly: float
    stature: float  # relative to the usual body height in the image

    @classmethod
    def of(cls, identity: Identity) -> "Build":
        """The proportions of a person."""
        child, woman = identity.age == "child", identity.sex == "woman"
        girth = {"slim": 0.84, "average": 1.0, "heavy": 1.27}[identity.build]
        stature = {"short": 0.93, "average": 0.98, "tall": 1.03}[identity.height] * (0.8 if child else 1.0)
        width = (0.101 if child or woman else 0.118) * (0.5 + 0.5 * girth)
        return cls(
            head=0.182 if child else 0.149,
            shoulder=width,
            hip=(0.098 if woman else 0.088) * (0.4 + 0.6 * girth),
            leg=0.455 if child else 0.505,
            limb=girth * (0.95 if woman else 1.05),
            belly={"slim": 0.82, "average": 1.0, "heavy": 1.5}[identity.build],
            stature=stature,
        )


@dataclass(frozen=True)
class Lens:
    """Projection from body heights to pixels of the canvas: position, scale, yaw, roll, and elevation of the camera."""

    x: float
    ground: float
    size: float
    cos: float
    sin: float
    roll: float
    elevation: float

    def depth(self, joint: Joint) -> float:
        """Distance towards the camera, in body heights."""
        return joint[2] * self.cos - joint[0] * self.sin

    def __call__(self, joint: Joint) -> Point:
        """Pixel of a joint: an elevated camera enlarges the upper body and moves near joints down."""
        x, y = joint[0] * self.cos + joint[2] * self.sin, joint[1]
        near = 1.0 + self.elevation * (y - 0.5)
        px = x * near + self.roll * (y - 0.5)
        py = y * (1.0 - 0.12 * self.elevation) - self.depth(joint) * (0.1 + 0.6 * self.elevation)
        return self.x + px * self.size, self.ground - py * self.size

    def width(self, lateral: float, deep: float) -> float:
        """Half width in pixels of an elliptical section with these half axes (body heights)."""
        return ((lateral * self.cos) ** 2 + (deep * self.sin) ** 2) ** 0.5 * self.size


@dataclass(frozen=True)
class Skeleton:
    """Joints of one person in one pose."""

    build: Build
    arms: dict[str, tuple[Joint, Joint, Joint]]  # shoulder, elbow, hand
    legs: dict[str, tuple[Joint, Joint, Joint]]  # hip, knee, ankle
    toes: dict[str, tuple[Joint, Joint]]  # heel, toe
    neck: float
    lift: float  # drop of the hips when the legs are apart

    @property
    def crotch(self) -> float:
        """Height of the crotch."""
        return self.build.leg - 0.025 - self.lift


def _leg(build: Build, side: float, thigh: float, knee: float) -> tuple[Joint, Joint, Joint]:
    upper, lower = build.leg * 0.5, build.leg * 0.43
    x = side * build.hip * 0.56
    hip = (x, build.leg, 0.0)
    bent = (x * 0.95, hip[1] - upper * cosine(thigh), upper * sine(thigh))
    shin = thigh - knee
    return hip, bent, (x * 0.9, bent[1] - lower * cosine(shin), bent[2] + lower * sine(shin))


def _arm(build: Build, side: float, neck: float, style: str, swing: float) -> tuple[Joint, Joint, Joint]:
    x, y = side * build.shoulder * 0.86, neck - 0.06
    out = side * (0.022 + 0.02 * max(build.belly - 1.0, 0.0))
    if style == "pocket":
        elbow, hand = (x + out * 2.2, y - 0.165, -0.04), (x + out * 0.3, y - 0.3, 0.04)
    elif style == "bent":
        elbow, hand = (x + out * 1.4, y - 0.17, -0.02), (x - out * 1.2, y - 0.2, 0.125)
    elif style == "phone":
        elbow, hand = (x + out * 1.6, y - 0.16, 0.05), (x - side * 0.045, y + 0.035, 0.11)
    elif style == "umbrella":
        elbow, hand = (x + out * 1.4, y - 0.165, 0.03), (x - side * 0.03, y - 0.05, 0.14)
    else:
        elbow = (x + out, y - 0.165 * cosine(swing), 0.165 * sine(swing))
        fore = swing + 14 + max(swing, 0) * 0.6
        hand = (x + out * 1.3, elbow[1] - 0.165 * cosine(fore), elbow[2] + 0.165 * sine(fore))
    return (x, y, 0.0), elbow, hand


def pose_skeleton(identity: Identity, pose: Pose) -> Skeleton:
    """The joints of this person in this pose, with the lower foot on the ground."""
    build = Build.of(identity)
    stride = (15.0 if identity.age == "elderly" else 23.0) if pose.gait == "walking" else 3.0
    neck = 1.0 - build.head - 0.012
    arms, legs, toes = {}, {}, {}
    for name, side in SIDES.items():
        angle = pose.phase + (0.0 if name == "left" else 180.0)
        swing = stride * sine(angle)
        knee = (0.12 * stride + 1.1 * stride * max(cosine(angle), 0.0)) if pose.gait == "walking" else 2.0
        legs[name] = _leg(build, side, swing + 2.0, knee)
        arms[name] = _arm(build, side, neck, pose.arms[name], -0.9 * swing)
    lift = min(leg[2][1] for leg in legs.values()) - 0.035
    for name, leg in legs.items():
        hip, knee_joint, ankle = ((x, y - lift, z) for x, y, z in leg)
        legs[name] = (hip, knee_joint, ankle)
        spread = SIDES[name] * 0.018
        heel, toe = (ankle[0], ankle[1] - 0.014, ankle[2] - 0.03), (ankle[0] + spread, ankle[1] - 0.022, ankle[2] + 0.1)
        toes[name] = (heel, toe)
    arms = {name: _lower_arm(arm, lift) for name, arm in arms.items()}
    return Skeleton(build, arms, legs, toes, neck - lift, lift)


def _lower_arm(arm: tuple[Joint, Joint, Joint], lift: float) -> tuple[Joint, Joint, Joint]:
    shoulder, elbow, hand = ((x, y - lift, z) for x, y, z in arm)
    return shoulder, elbow, hand


def trunk(lens: Lens, skeleton: Skeleton, hem: float, ease: float, flare: float = 0.0) -> Tube:
    """A garment on the trunk from the neck down to the height `hem`; `ease` and `flare` widen it (body heights)."""
    build, neck = skeleton.build, skeleton.neck
    waist, hips = build.leg + 0.11 - skeleton.lift, build.leg + 0.005 - skeleton.lift
    belly = build.belly
    rows = [  # height, half width, half depth, forward offset of the centre
        (neck + 0.012, 0.036, 0.04, -0.004),
        (neck - 0.006, build.shoulder * 0.55, 0.046, -0.004),
        (neck - 0.024, build.shoulder * 0.9 + ease * 0.3, 0.054, -0.004),
        (neck - 0.048, build.shoulder + ease * 0.4, 0.058, -0.002),
        (neck - 0.11, build.shoulder * 0.9 + ease * 0.5, 0.062 + ease + 0.012 * belly, 0.004),
        (waist, build.hip * 0.92 * (0.62 + 0.38 * belly) + ease, 0.056 * belly + ease, 0.012 * belly),
        (hips, build.hip * 1.04 + ease, 0.064 * (0.7 + 0.3 * belly) + ease, 0.0),
    ]
    if hem < hips:
        rows.append((hem, build.hip * 1.04 + ease + flare, 0.064 + ease + flare, 0.0))
    else:
        rows[-1] = (hem, *rows[-1][1:])
    left, right = [], []
    for y, lateral, deep, forward in rows:
        x, row = lens((0.0, y, forward))
        half = lens.width(lateral, deep)
        left.append((x - half, row))
        right.append((x + half, row))
    return Tube(left, right)
