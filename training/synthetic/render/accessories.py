"""Bags, phones and umbrellas."""

from training.synthetic.attributes import RGB, Outfit, Pose
from training.synthetic.render.canvas import Canvas, Tube, darker, lighter
from training.synthetic.render.skeleton import SIDES, Lens, Skeleton

_UMBRELLA: tuple[RGB, ...] = ((40, 42, 52), (150, 34, 44), (44, 74, 150), (56, 116, 80))


class Accessories:
    """Draws the accessories of one person, in the order in which `person.draw_person` calls the methods."""

    def __init__(self, canvas: Canvas, lens: Lens, skeleton: Skeleton, outfit: Outfit, pose: Pose) -> None:
        self.canvas, self.lens, self.skeleton, self.outfit, self.pose = canvas, lens, skeleton, outfit, pose
        self.px, self.colour = lens.size, outfit.rgb["bag"]
        self.hips = skeleton.build.leg - skeleton.lift

    def backpack(self) -> None:
        """The body of a backpack: a box behind the trunk, fully visible from behind and as a bulge from the side."""
        if self.outfit.bag != "backpack":
            return
        shoulder = self.skeleton.build.shoulder
        left, right = [], []
        top, bottom = self.skeleton.neck - 0.02, self.hips + 0.05
        for share, lateral, deep in (
            (0.0, 0.6, 0.025),
            (0.1, 0.84, 0.045),
            (0.5, 0.92, 0.056),
            (0.92, 0.92, 0.056),
            (1.0, 0.8, 0.04),
        ):
            x, y = self.lens((0.0, top + (bottom - top) * share, -0.105))
            half = self.lens.width(lateral * shoulder, deep)
            left.append((x - half, y))
            right.append((x + half, y))
        pack = Tube(left, right)
        self.canvas.tube(pack, self.colour)
        if self.lens.cos < -0.3:
            pocket = pack.patch(0.2, 0.8, 0.55, 0.9)
            self.canvas.polygon(pocket, darker(self.colour, 0.2), None)
            self.canvas.line([pack.at(0.12, 0.3), pack.at(0.5, 0.22), pack.at(0.88, 0.3)], darker(self.colour, 0.55), 2)
            self.canvas.line([pack.at(0.25, 0.6), pack.at(0.75, 0.6)], lighter(self.colour, 0.35), 2)

    def straps(self) -> None:
        """The shoulder straps of a backpack from the front or the side, or the strap of a shoulder bag."""
        shoulder, neck = self.skeleton.build.shoulder, self.skeleton.neck
        dark = darker(self.colour, 0.15)
        front = 1.0 if self.lens.cos > -0.2 else -1.0
        if self.outfit.bag == "backpack" and front > 0:
            for side in SIDES.values():
                if self.lens.depth((side * 0.1, 0.0, 0.0)) < -0.06:
                    continue
                path = [(side * shoulder * 0.62, neck - 0.014, 0.0), (side * shoulder * 0.66, neck - 0.08, 0.066)]
                path += [(side * shoulder * 0.72, neck - 0.16, 0.06), (side * shoulder * 0.86, neck - 0.2, 0.0)]
                self.canvas.line([self.lens(joint) for joint in path], dark, 0.026 * self.px)
        elif self.outfit.bag == "shoulder bag":
            side = SIDES[self.outfit.bag_side]
            path = [(-side * shoulder * 0.6, neck - 0.012, 0.0), (-side * shoulder * 0.3, neck - 0.1, front * 0.066)]
            path += [
                (side * shoulder * 0.45, neck - 0.25, front * 0.07),
                (side * shoulder * 0.95, self.hips + 0.04, 0.0),
            ]
            self.canvas.line([self.lens(joint) for joint in path], dark, 0.018 * self.px)

    def hip_bag(self) -> None:
        """The body of a shoulder bag at one hip."""
        if self.outfit.bag != "shoulder bag":
            return
        side = SIDES[self.outfit.bag_side]
        x, y = self.lens((side * (self.skeleton.build.hip * 1.0 + 0.03), self.hips + 0.03, 0.0))
        self._bag(x, y, self.lens.width(0.05, 0.085), 0.13 * self.px)

    def hip_bag_is_far(self) -> bool:
        """True if the wearer's body is between the camera and the shoulder bag."""
        return self.lens.depth((SIDES[self.outfit.bag_side] * 0.1, 0.0, 0.0)) < -0.05

    def hand_item(self, side: str) -> None:
        """A handbag, phone or umbrella in this hand."""
        hand = self.skeleton.arms[side][2]
        x, y = self.lens(hand)
        if self.outfit.bag == "handbag" and side == self.outfit.bag_side:
            half = self.lens.width(0.04, 0.075)
            top = y + 0.05 * self.px
            self.canvas.line(
                [(x - half * 0.6, top), (x - half * 0.35, y), (x + half * 0.35, y), (x + half * 0.6, top)],
                darker(self.colour),
                4,
            )
            self._bag(x, top, half, 0.11 * self.px)
        elif self.pose.arms[side] == "phone":
            wide, tall = 0.012 * self.px, 0.03 * self.px
            case = [(x - wide, y - tall), (x + wide, y - tall), (x + wide, y + tall * 0.4), (x - wide, y + tall * 0.4)]
            self.canvas.polygon(case, (28, 28, 34))

    def umbrella(self) -> None:
        """An open umbrella above the head."""
        if self.pose.action != "umbrella":
            return
        side = next(name for name, style in self.pose.arms.items() if style == "umbrella")
        hand = self.lens(self.skeleton.arms[side][2])
        colour = _UMBRELLA[int(self.pose.phase) % len(_UMBRELLA)]
        x, y = hand[0] + (self.lens.x - hand[0]) * 0.5, self.lens((0.0, 1.0 - self.skeleton.lift + 0.005, 0.0))[1]
        self.canvas.line([hand, (x, y - 0.08 * self.px)], (60, 60, 64), 3)
        wide, tall = 0.3 * self.px, 0.13 * self.px
        rim = [(x + wide * k / 4, y + (0.018 * self.px if k % 2 else 0.0)) for k in range(-4, 5)]
        arc = [(0.92, 0.45), (0.72, 0.74), (0.4, 0.93), (0.0, 1.0), (-0.4, 0.93), (-0.72, 0.74), (-0.92, 0.45)]
        self.canvas.polygon([*rim, *((x + wide * a, y - tall * b) for a, b in arc)], colour)
        for k in (-2, 0, 2):
            self.canvas.line(
                [(x + wide * k / 4, y), (x + wide * k / 9, y - tall * 0.7), (x, y - tall)], darker(colour), 2
            )
        light = self.canvas.light
        self.canvas.shadow(
            [
                (x, y - tall),
                (x + light * wide * 0.9, y - tall * 0.45),
                (x + light * wide, y),
                (x + light * wide * 0.3, y),
            ],
            145,
        )

    def _bag(self, x: float, y: float, half: float, tall: float) -> None:
        bag = Tube([(x - half * 0.85, y), (x - half, y + tall)], [(x + half * 0.85, y), (x + half, y + tall)])
        self.canvas.tube(bag, self.colour)
        self.canvas.line([bag.at(0, 0.35), bag.at(0.5, 0.45), bag.at(1, 0.35)], darker(self.colour, 0.5), 2)
        self.canvas.ellipse(bag.at(0.5, 0.45), 3, 3, (210, 190, 120), None)
        self.canvas.line([bag.at(0, 1), bag.at(1, 1)], darker(self.colour), 2)
