"""Heads: face, hair, beard, glasses and hats, seen from any side."""

from training.synthetic.attributes import HAIR, RGB, SKIN, Identity, Outfit
from training.synthetic.render.canvas import Canvas, Point, Tube, darker, lighter, mix
from training.synthetic.render.skeleton import Lens, Skeleton


class Head:
    """Draws one head: `h` is its height in pixels, (`x`, `y`) its centre; `turn` > 0 looks right in the image."""

    def __init__(self, canvas: Canvas, lens: Lens, skeleton: Skeleton, identity: Identity, outfit: Outfit) -> None:
        self.canvas, self.identity, self.outfit = canvas, identity, outfit
        build = skeleton.build
        self.h = build.head * lens.size * (1.0 + lens.elevation * 0.5)
        self.x, self.y = lens((0.0, 1.0 - build.head / 2 - skeleton.lift, 0.014))
        self.turn, self.towards = lens.sin, lens.cos
        self.skin = SKIN[identity.skin]
        colour = HAIR[identity.hair_colour]
        self.hair = mix(colour, self.skin, 0.45) if identity.hair == "buzzed" else colour
        self.faces = lens.cos > -0.5

    def point(self, dx: float, dy: float) -> Point:
        """A point in head heights from the centre."""
        return self.x + dx * self.h, self.y + dy * self.h

    def draw(self) -> None:
        """Draws the whole head."""
        self._back_of_hair()
        if self.faces:
            self._face()
            if self.outfit.hat == "none" and self.identity.hair != "bald":
                self._fringe()
        self._tied_hair()
        if self.outfit.hat != "none":
            self._hat()

    def _back_of_hair(self) -> None:
        style, canvas, h = self.identity.hair, self.canvas, self.h
        back = -0.07 * self.turn
        if style in ("long", "bob"):
            length, wide = (0.62, 0.4) if style == "bob" else (1.12, 0.42)
            behind = 0.12 if abs(self.turn) > 0.6 else 0.0
            x = back - behind * self.turn
            taper = 0.9 if self.towards < -0.3 else 0.8
            fall = [
                self.point(x, -0.2),
                self.point(x, 0.1),
                self.point(x * 1.4, length - 0.15),
                self.point(x * 1.5, length),
            ]
            radii = [wide * h * r for r in (0.95, 1.05, taper, taper * 0.75)]
            if abs(self.turn) > 0.6:
                radii = [r * 0.72 for r in radii]
            if style == "bob" or self.towards < 0.35:
                canvas.tube(Tube.along(fall, radii), self.hair)
            else:
                for side in (-1, 1):
                    lock = [
                        self.point(x + side * 0.3, -0.1),
                        self.point(x + side * 0.37, 0.3),
                        self.point(x + side * 0.36, length),
                    ]
                    canvas.tube(Tube.along(lock, [0.12 * h, 0.13 * h, 0.08 * h]), self.hair)
        if style == "bald":
            canvas.ball(self.point(back, -0.04), 0.4 * h, 0.47 * h, self.skin)
            if not self.faces or abs(self.turn) > 0.6:
                canvas.ellipse(
                    self.point(back - 0.2 * self.turn, 0.2),
                    (0.39 - 0.18 * abs(self.turn)) * h,
                    0.1 * h,
                    self.hair,
                    None,
                )
        elif style == "curly":
            for dx, dy in ((-0.3, -0.3), (0.3, -0.3), (-0.4, 0.0), (0.4, 0.0), (0, -0.42), (-0.3, 0.2), (0.3, 0.2)):
                canvas.ball(self.point(back + dx, dy), 0.19 * h, 0.19 * h, self.hair)
            canvas.ellipse(self.point(back, -0.08), 0.44 * h, 0.46 * h, self.hair, 118)
        else:
            grow = 0.0 if style == "buzzed" else 0.03
            canvas.ball(self.point(back, -0.06), (0.4 + grow) * h, (0.46 + grow) * h, self.hair)
        if not self.faces and style not in ("long", "bob", "curly"):
            canvas.ellipse(self.point(0, 0.39), 0.2 * h, 0.1 * h, darker(self.skin, 0.14), None)
            for side in (-1, 1):
                canvas.ball(self.point(side * 0.42, 0.04), 0.04 * h, 0.09 * h, darker(self.skin, 0.08))

    def _face(self) -> None:
        canvas, h, turn = self.canvas, self.h, self.turn
        side = abs(turn)
        x = 0.17 * turn
        width = 0.36 - 0.1 * side
        ear_x = -0.1 * turn if side > 0.5 else 0.0
        if self.identity.hair not in ("long", "bob", "curly"):
            for sign in (-1, 1) if side <= 0.5 else (0,):
                canvas.ball(self.point(ear_x + sign * 0.38, 0.04), 0.06 * h, 0.1 * h, darker(self.skin, 0.08))
        canvas.ball(self.point(x, 0.05), width * h, 0.45 * h, self.skin)
        if side > 0.5:
            tip = self.point(x + (width + 0.09) * turn, 0.1)
            canvas.polygon(
                [self.point(x + width * 0.8 * turn, -0.04), tip, self.point(x + width * 0.75 * turn, 0.2)],
                self.skin,
                None,
            )
            canvas.ellipse(self.point(-0.09 * turn, 0.06), 0.055 * h, 0.1 * h, darker(self.skin, 0.16), None)
        else:
            nose = self.point(x + 0.1 * turn, 0.13)
            canvas.line([self.point(x + 0.08 * turn, 0.02), nose], darker(self.skin, 0.18), 3)
        if self.identity.beard:
            self._beard(x, width)
        self._features(x)

    def _features(self, x: float) -> None:
        canvas, h, turn = self.canvas, self.h, self.turn
        side = abs(turn)
        eyes = [x + 0.2 * turn] if side > 0.62 else [x + 0.14 * turn - 0.145, x + 0.14 * turn + 0.145]
        brow = darker(self.hair, 0.3) if self.identity.hair_colour != "blond" else darker(self.hair, 0.45)
        for eye in eyes:
            canvas.ellipse(self.point(eye, 0.015), 0.06 * h, 0.036 * h, (240, 238, 234), None)
            canvas.ellipse(self.point(eye + 0.02 * turn, 0.015), 0.034 * h, 0.038 * h, (38, 28, 26), None)
            canvas.line([self.point(eye - 0.08, -0.07), self.point(eye + 0.08, -0.07)], brow, 3)
            if self.identity.glasses:
                rim = [self.point(eye + dx, 0.015 + dy) for dx, dy in _RIM]
                canvas.line([*rim, rim[0]], (26, 24, 28), 3)
        if self.identity.glasses:
            bridge = (eyes[0] - 0.34 * turn, eyes[0]) if side > 0.62 else (eyes[0] + 0.09, eyes[1] - 0.09)
            canvas.line([self.point(bridge[0], 0.0), self.point(bridge[1], 0.0)], (26, 24, 28), 3)
        lips: RGB = (
            (176, 62, 70) if self.identity.sex == "woman" and self.identity.age != "child" else darker(self.skin, 0.42)
        )
        half = 0.1 - 0.05 * side
        mouth = x + 0.14 * turn
        canvas.line([self.point(mouth - half, 0.27), self.point(mouth + half, 0.27)], lips, 4 if lips[0] == 176 else 3)
        if self.identity.age == "elderly":
            for eye in eyes:
                canvas.line([self.point(eye - 0.06, 0.09), self.point(eye + 0.06, 0.1)], darker(self.skin, 0.22), 2)
            canvas.line(
                [self.point(mouth - half - 0.06, 0.2), self.point(mouth - half - 0.04, 0.32)],
                darker(self.skin, 0.22),
                2,
            )

    def _beard(self, x: float, width: float) -> None:
        colour = HAIR[self.identity.hair_colour]
        w = width * 0.98
        jaw = [(-w, 0.1), (-w * 0.62, 0.2), (-w * 0.3, 0.19), (w * 0.3, 0.19), (w * 0.62, 0.2), (w, 0.1)]
        jaw += [(w * 0.86, 0.34), (w * 0.5, 0.5), (0.0, 0.54), (-w * 0.5, 0.5), (-w * 0.86, 0.34)]
        self.canvas.polygon([self.point(x + 0.05 * self.turn + dx, dy) for dx, dy in jaw], colour, None)

    def _fringe(self) -> None:
        """Hair over the forehead; in profile it reaches lower behind the ear."""
        turn, style = self.turn, self.identity.hair
        side = abs(turn)
        low = -0.2 if style != "buzzed" else -0.26
        x = 0.17 * turn
        width = 0.375 - 0.06 * side
        if side > 0.5:
            sign = 1 if turn > 0 else -1
            shape = [(0.44, low + 0.02), (0.36, -0.38), (0.15, -0.51), (-0.15, -0.52), (-0.36, -0.36), (-0.44, -0.05)]
            shape += [(-0.36, 0.2), (-0.16, 0.22), (-0.13, 0.0), (-0.02, -0.02), (0.08, -0.14), (0.3, low)]
            points = [self.point(sign * dx, dy) for dx, dy in shape]
        else:
            shape = [
                (-width, 0.0),
                (-width, -0.3),
                (-0.2, -0.5),
                (0.0, -0.535),
                (0.2, -0.5),
                (width, -0.3),
                (width, 0.0),
            ]
            shape += [(width - 0.05, -0.12), (0.2, low - 0.03), (-0.04, low - 0.09), (-0.22, low), (0.05 - width, -0.1)]
            points = [self.point(x * 0.6 + dx, dy) for dx, dy in shape]
        self.canvas.polygon(points, self.hair, 122)
        shine = [self.point(x * 0.5 + self.canvas.light * 0.18 + dx, -0.4 + abs(dx) * 0.5) for dx in (-0.12, 0.0, 0.12)]
        self.canvas.line(shine, lighter(self.hair, 0.22), 3)

    def _tied_hair(self) -> None:
        """Ponytails and buns."""
        style, canvas, h, turn = self.identity.hair, self.canvas, self.h, self.turn
        if style == "ponytail" and (self.towards < 0.5 or abs(turn) > 0.5):
            tail = [self.point(-0.36 * turn, -0.16), self.point(-0.52 * turn, 0.2), self.point(-0.5 * turn, 0.75)]
            canvas.tube(Tube.along(tail, [0.1 * h, 0.15 * h, 0.06 * h]), self.hair)
            canvas.ellipse(self.point(-0.38 * turn, -0.15), 0.08 * h, 0.08 * h, (150, 40, 60), None)
        elif style == "bun" and self.outfit.hat == "none":
            canvas.ball(self.point(-0.38 * turn, -0.44 - 0.06 * max(self.towards, 0)), 0.2 * h, 0.18 * h, self.hair)

    def _hat(self) -> None:
        canvas, h, colour, turn = self.canvas, self.h, self.outfit.rgb["hat"], self.turn
        low = -0.14 if self.outfit.hat == "cap" else -0.1
        dome = [
            (-0.45, low),
            (-0.45, -0.3),
            (-0.33, -0.5),
            (-0.12, -0.59),
            (0.12, -0.59),
            (0.33, -0.5),
            (0.45, -0.3),
            (0.45, low),
        ]
        left = [self.point(dx - 0.02 * turn, dy) for dx, dy in dome[:4]]
        right = [self.point(dx - 0.02 * turn, dy) for dx, dy in dome[:3:-1]]
        canvas.tube(Tube(left[::-1], right[::-1]), colour)
        if self.outfit.hat == "beanie":
            band = [
                self.point(-0.47, low - 0.15),
                self.point(0.47, low - 0.15),
                self.point(0.47, low + 0.02),
                self.point(-0.47, low + 0.02),
            ]
            canvas.polygon(band, darker(colour, 0.25), None)
            canvas.ball(self.point(0, -0.62), 0.1 * h, 0.09 * h, lighter(colour, 0.2))
        elif self.towards > -0.5:
            brim = 0.34 * turn
            wide = 0.36 - 0.04 * abs(turn)
            canvas.ellipse(self.point(brim * 1.25, low + 0.01), wide * h, 0.075 * h, darker(colour, 0.3), None)
        else:
            canvas.ellipse(self.point(0, low - 0.03), 0.12 * h, 0.06 * h, darker(self.hair, 0.1), None)


_RIM = ((-0.1, -0.06), (0.1, -0.06), (0.1, 0.06), (-0.1, 0.06))
