"""Clothes: sleeves, trunks, trousers, skirts and shoes on a skeleton."""

from training.synthetic.attributes import LONG_SLEEVES, OPEN_FRONT, RGB, SKIN, Identity, Outfit
from training.synthetic.render.canvas import Canvas, Point, Tube, darker, lighter
from training.synthetic.render.skeleton import SIDES, Joint, Lens, Skeleton, trunk

_HEMS = {
    "T-shirt": 0.0,
    "shirt": -0.012,
    "jacket": 0.005,
    "coat": -0.2,
    "hoodie": -0.01,
    "sweater": 0.0,
    "dress": -0.17,
}
_EASE = {
    "T-shirt": 0.006,
    "shirt": 0.006,
    "jacket": 0.017,
    "coat": 0.02,
    "hoodie": 0.017,
    "sweater": 0.012,
    "dress": 0.0,
}
_SHAPES = {  # half widths of a leg at hip, knee, calf and ankle; bare skin is the last one
    "trousers": (0.055, 0.043, 0.041, 0.037),
    "jeans": (0.053, 0.038, 0.036, 0.03),
    "leggings": (0.05, 0.032, 0.033, 0.021),
    "skin": (0.047, 0.03, 0.032, 0.019),
}


class Garments:
    """Draws the garments of one person, in the order in which `person.draw_person` calls the methods."""

    def __init__(self, canvas: Canvas, lens: Lens, skeleton: Skeleton, identity: Identity, outfit: Outfit) -> None:
        self.canvas, self.lens, self.skeleton, self.outfit = canvas, lens, skeleton, outfit
        self.skin = SKIN[identity.skin]
        self.rgb = outfit.rgb
        self.px = lens.size
        hem = skeleton.build.leg - skeleton.lift + _HEMS[outfit.upper]
        flare = {"coat": 0.02, "dress": 0.045}.get(outfit.upper, 0.0)
        self.body = trunk(lens, skeleton, hem, _EASE[outfit.upper], flare)

    def leg(self, side: str) -> None:
        """One leg with its shoe, skin and garment."""
        hip, knee, ankle = self.skeleton.legs[side]
        calf = tuple(k + 0.35 * (a - k) for k, a in zip(knee, ankle, strict=True))
        girth, kind = self.skeleton.build.limb, self.outfit.lower
        joints = [self.lens(j) for j in (hip, knee, (calf[0], calf[1], calf[2] - 0.006), ankle)]
        covered = kind in _SHAPES
        radii = [r * self.px * girth for r in _SHAPES["skin"]]
        if not covered:
            self._limb(joints, radii, self.skin)
        self.shoe(side)
        if covered:
            radii = [r * self.px * (0.35 + 0.65 * girth) for r in _SHAPES[kind]]
            leg = self._limb(joints, radii, self.rgb["lower"])
            if kind == "jeans":
                self.canvas.line([leg.at(0.5, v) for v in (0.2, 0.5, 0.9)], lighter(self.rgb["lower"], 0.07), 9)
            if kind != "leggings":
                for v in (0.46, 0.53, 0.93):
                    self.canvas.line([leg.at(0.15, v), leg.at(0.6, v + 0.02)], darker(self.rgb["lower"], 0.3), 1)
        elif kind == "shorts":
            (x0, y0), (x1, y1) = joints[:2]
            end = (x0 + (x1 - x0) * 0.86, y0 + (y1 - y0) * 0.86)
            self._limb(
                [joints[0], end], [0.06 * self.px * girth, 0.056 * self.px * (0.3 + 0.7 * girth)], self.rgb["lower"]
            )

    def shoe(self, side: str) -> None:
        """The foot of one leg, pointing in the walking direction."""
        heel, toe = self.skeleton.toes[side]
        ankle = self.skeleton.legs[side][2]
        kind, colour, px = self.outfit.shoes, self.rgb["shoes"], self.px
        middle: Joint = tuple(0.5 * (a + b) for a, b in zip(heel, toe, strict=True))  # type: ignore[assignment]
        points = [self.lens(j) for j in (heel, (middle[0], middle[1] + 0.004, middle[2]), toe)]
        wide = abs(self.lens.cos)
        sole = {"sneakers": (236, 236, 236) if sum(colour) < 560 else (150, 150, 154)}.get(kind, (30, 28, 28))
        if kind == "boots":
            top = self.lens((ankle[0], ankle[1] + 0.085, ankle[2]))
            self._limb([top, self.lens(ankle), points[0]], [0.031 * px, 0.027 * px, 0.024 * px], colour)
        elif kind != "sandals":
            self.canvas.ball(self.lens(ankle), 0.022 * px, 0.02 * px, colour if kind != "high heels" else self.skin)
        low = [(x, y + 0.008 * px) for x, y in points]
        radii = [0.022 * px, (0.021 + 0.005 * wide) * px, (0.013 + 0.011 * wide) * px]
        self.canvas.polygon(Tube.along(low, radii).outline(), sole)
        self.canvas.ellipse(low[2], radii[2], radii[2] * 0.8, sole)
        top_colour = self.skin if kind == "sandals" else colour
        self.canvas.tube(Tube.along(points, radii), top_colour, outlined=False)
        self.canvas.ellipse(points[2], radii[2], radii[2] * 0.8, top_colour, 120)
        if kind == "sandals":
            self.canvas.line([points[0], points[1], points[2]], colour, 4)
            self.canvas.line(
                [(points[1][0] - radii[1], points[1][1]), (points[1][0] + radii[1], points[1][1])], colour, 3
            )
        elif kind == "high heels":
            spike = (points[0][0], points[0][1] + 0.03 * px)
            self.canvas.line([points[0], spike], colour, 4)
        elif kind == "sneakers":
            self.canvas.line(
                [points[1], (points[1][0] * 0.5 + points[2][0] * 0.5, points[1][1])], lighter(colour, 0.6), 2
            )

    def pelvis(self) -> None:
        """The seat of the trousers, or a skirt."""
        skeleton, kind = self.skeleton, self.outfit.lower
        top, hips = skeleton.build.leg + 0.08 - skeleton.lift, skeleton.build.leg - skeleton.lift
        if kind == "bare legs":
            return
        colour, hip = self.rgb["lower"], skeleton.build.hip
        rows = [(top, hip * 0.95, 0.058), (hips, hip * 1.04, 0.068), (skeleton.crotch - 0.022, hip * 0.8, 0.05)]
        if kind == "skirt":
            rows[2:] = [(hips - 0.06, hip * 1.1 + 0.008, 0.075), (hips - 0.205, hip * 1.12 + 0.03, 0.095)]
        seat = self._rows(rows)
        self.canvas.tube(seat, colour, outlined=kind == "skirt")
        if kind == "skirt":
            for u in (0.3, 0.55, 0.8):
                self.canvas.line([seat.at(u, 0.5), seat.at(u + 0.04 * (u - 0.5), 1.0)], darker(colour, 0.25), 2)
            self.canvas.line([seat.at(0, 1), seat.at(1, 1)], darker(colour), 2)
        elif self.lens.cos > 0.3:
            self.canvas.line([seat.at(0.5, 0.4), seat.at(0.5, 1.0)], darker(colour), 1)

    def upper(self) -> None:
        """The garment on the trunk with its pattern and details."""
        canvas, outfit, body, colour = self.canvas, self.outfit, self.body, self.rgb["upper"]
        canvas.tube(body, colour)
        self.decorate(body, front=self.lens.cos > 0.45)
        canvas.line([body.at(0, 1), body.at(0.5, 1.01), body.at(1, 1)], darker(colour), 2)
        for v, u in ((0.62, 0.12), (0.68, 0.7), (0.8, 0.15)):
            canvas.line([body.at(u, v), body.at(u + 0.16, v + 0.03)], darker(colour, 0.22), 2)
        if outfit.upper == "sweater":
            canvas.polygon(body.patch(0, 1, 0.93, 1), darker(colour, 0.18), None)
        if outfit.upper == "dress":
            canvas.line([body.at(0, 0.5), body.at(1, 0.5)], darker(colour, 0.45), 4)
        if self.lens.cos > -0.2:
            self._front()
        if outfit.upper == "hoodie":
            self._hood()

    def _front(self) -> None:
        """Collars, buttons, zips and open fronts, shifted towards the side to which the body turns."""
        canvas, kind, body, colour = self.canvas, self.outfit.upper, self.body, self.rgb["upper"]
        middle = 0.5 + 0.46 * self.lens.sin
        spread = 0.13 * max(self.lens.cos, 0.15)

        def at(u: float, v: float) -> Point:
            return body.at(min(max(u, 0.0), 1.0), v)

        if kind in OPEN_FRONT and self.outfit.inner_colour != "none":
            inside = [at(middle - spread, 0.02), *(at(middle - spread * 1.3, v) for v in (0.3, 0.6, 0.98))]
            inside += [*(at(middle + spread * 1.3, v) for v in (0.98, 0.6, 0.3)), at(middle + spread, 0.02)]
            canvas.polygon(inside, self.rgb["inner"], None)
            canvas.line(inside[:4], darker(colour), 3)
            canvas.line(inside[4:], darker(colour), 3)
        elif kind in (*OPEN_FRONT, "shirt"):
            canvas.line([at(middle, v) for v in (0.05, 0.3, 0.6, 1.0)], darker(colour, 0.45), 2)
            if kind == "shirt":
                for v in (0.2, 0.38, 0.56, 0.74):
                    canvas.ellipse(at(middle, v), 2, 2, lighter(colour, 0.5), None)
        if kind in (*OPEN_FRONT, "shirt"):
            for sign in (-1, 1):
                lapel = [at(middle + sign * spread * 0.7, 0.0), at(middle + sign * spread * 2.1, 0.1), at(middle, 0.2)]
                canvas.polygon(lapel, lighter(colour, 0.14), None)
                canvas.line(lapel[1:], darker(colour), 1)
        elif kind in ("T-shirt", "dress"):
            low = 0.13 if kind == "T-shirt" else 0.18
            canvas.polygon(
                [at(middle - spread * 1.3, 0.0), at(middle, low), at(middle + spread * 1.3, 0.0)], self.skin, None
            )
        if kind == "hoodie":
            pocket = [at(middle - 2 * spread, 0.8), at(middle - spread, 0.66), at(middle + spread, 0.66)]
            canvas.line([*pocket, at(middle + 2 * spread, 0.8)], darker(colour), 2)
            for sign in (-1, 1):
                canvas.line(
                    [at(middle + sign * spread * 0.5, 0.1), at(middle + sign * spread * 0.6, 0.28)], (235, 235, 235), 2
                )

    def _hood(self) -> None:
        x, y = self.lens((0.0, self.skeleton.neck - 0.006, -0.028))
        wide = self.lens.width(0.066, 0.052)
        drop = 0.03 if self.lens.cos > 0 else 0.052
        self.canvas.ball((x, y), wide, drop * self.px, darker(self.rgb["upper"], 0.1))

    def arm(self, side: str) -> None:
        """One arm with its sleeve and hand."""
        shoulder, elbow, hand = (self.lens(j) for j in self.skeleton.arms[side])
        girth, px, kind, colour = self.skeleton.build.limb, self.px, self.outfit.upper, self.rgb["upper"]
        self.canvas.ball(hand, 0.019 * px, 0.022 * px, self.skin)
        if kind in LONG_SLEEVES:
            ease = 1 + 8 * _EASE[kind]
            radii = [r * px * (0.3 + 0.7 * girth) * ease for r in (0.034, 0.028, 0.021)]
            sleeve = self._limb([shoulder, elbow, hand], radii, colour)
            self.decorate(sleeve, front=False)
            self.canvas.line([sleeve.at(0.2, 0.5), sleeve.at(0.7, 0.54)], darker(colour, 0.3), 1)
            if kind in ("hoodie", "sweater", "jacket"):
                self.canvas.polygon(sleeve.patch(0, 1, 0.9, 1), darker(colour, 0.25), None)
            return
        self._limb([shoulder, elbow, hand], [r * px * girth for r in (0.028, 0.023, 0.016)], self.skin)
        share = 0.66 if kind == "T-shirt" else 0.34
        end = (shoulder[0] + (elbow[0] - shoulder[0]) * share, shoulder[1] + (elbow[1] - shoulder[1]) * share)
        sleeve = self._limb([shoulder, end], [0.035 * px * girth, 0.037 * px * girth], colour)
        self.decorate(sleeve, front=False)

    def neck(self) -> None:
        """The neck, which collars partly cover."""
        neck = self.skeleton.neck
        joints = [self.lens((0.0, neck - 0.03, 0.0)), self.lens((0.0, neck + 0.045, 0.008))]
        width = (0.028 + 0.006 * (self.skeleton.build.limb - 1)) * self.px
        self.canvas.tube(Tube.along(joints, [width * 1.15, width]), darker(self.skin, 0.14))

    def scarf(self) -> None:
        """A scarf around the neck, with an end on the chest when seen from the front."""
        if self.outfit.scarf_colour == "none":
            return
        colour, neck = self.rgb["scarf"], self.skeleton.neck
        x, y = self.lens((0.0, neck + 0.004, 0.006))
        self.canvas.ball((x, y), self.lens.width(0.064, 0.06), 0.027 * self.px, colour)
        if self.lens.cos > -0.2:
            start = (x + self.lens.sin * 0.04 * self.px + 0.02 * self.px * self.lens.cos, y)
            end = (start[0] + 0.01 * self.px, start[1] + 0.15 * self.px)
            self.canvas.tube(Tube.along([start, end], [0.02 * self.px, 0.023 * self.px]), colour)

    def decorate(self, tube: Tube, front: bool) -> None:
        """The pattern of the upper garment on its trunk or on a sleeve; a logo is visible on the front only."""
        pattern, colour, canvas, px = self.outfit.pattern, self.rgb["pattern"], self.canvas, self.px
        if pattern == "striped":
            count = max(1, int(tube.length / (0.05 * px) + 0.5))
            for i in range(count):
                canvas.polygon(tube.patch(0, 1, (i + 0.45) / count, (i + 0.95) / count), colour, None)
        elif pattern == "checked":
            count = max(1, int(tube.length / (0.042 * px) + 0.5))
            across = (0.12, 0.3, 0.48, 0.66, 0.84) if tube is self.body else (0.3, 0.7)
            for i in range(count):
                canvas.line([tube.at(u, (i + 0.5) / count) for u in (0, 0.5, 1)], colour, 3)
            for u in across:
                canvas.line([tube.at(u, v / 6) for v in range(7)], colour, 3)
        elif pattern == "dotted":
            count = max(1, int(tube.length / (0.036 * px) + 0.5))
            across = (0.1, 0.3, 0.5, 0.7, 0.9) if tube is self.body else (0.25, 0.75)
            for i in range(count):
                for u in across:
                    canvas.ellipse(tube.at(u + 0.08 * (i % 2) - 0.04, (i + 0.5) / count), 4, 4, colour, None)
        elif pattern == "logo" and front:
            middle = 0.5 + 0.42 * self.lens.sin
            canvas.polygon(tube.patch(middle - 0.2, middle + 0.2, 0.3, 0.37), colour, None)
            canvas.ellipse(tube.at(middle, 0.47), 0.03 * px, 0.026 * px, colour, None)

    def _limb(self, joints: list[Point], radii: list[float], colour: RGB) -> Tube:
        tube = Tube.along(joints, radii)
        for joint, radius in zip(joints[:-1], radii[:-1], strict=True):
            self.canvas.ellipse(joint, radius * 0.97, radius * 0.97, colour, 124)
        self.canvas.tube(tube, colour)
        return tube

    def _rows(self, rows: list[tuple[float, float, float]]) -> Tube:
        left, right = [], []
        for y, lateral, deep in rows:
            x, row = self.lens((0.0, y, 0.0))
            half = self.lens.width(lateral, deep)
            left.append((x - half, row))
            right.append((x + half, row))
        return Tube(left, right)


def sides_far_to_near(lens: Lens, skeleton: Skeleton) -> list[str]:
    """The sides of the body, the farther from the camera first."""
    return sorted(SIDES, key=lambda side: lens.depth((SIDES[side] * 0.1, 0.0, 0.0)))
