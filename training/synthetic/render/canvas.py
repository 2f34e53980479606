"""A supersampled image, reduced at the end, with a second layer that holds light and shade."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from training.synthetic.attributes import RGB

Point = tuple[float, float]
SUPERSAMPLE = 3
NEUTRAL = 128  # the shade that leaves a colour as it is
_BANDS = ((0.0, 148), (0.16, 138), (0.36, 126), (0.62, 110), (0.82, 94))  # across a lit cylinder: start, shade


def mix(colour: RGB, other: RGB, share: float) -> RGB:
    """`colour` with this share of `other`."""
    part = int(share * 256)
    red, green, blue = (a + ((b - a) * part >> 8) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def darker(colour: RGB, share: float = 0.4) -> RGB:
    """The colour of an outline or a fold."""
    return mix(colour, (12, 12, 18), share)


def lighter(colour: RGB, share: float = 0.3) -> RGB:
    """The colour of a seam or a highlight."""
    return mix(colour, (250, 250, 248), share)


def _whole(points: Sequence[Point]) -> list[tuple[int, int]]:
    return [(int(x + 1000.5) - 1000, int(y + 1000.5) - 1000) for x, y in points]


class Tube:
    """A body part or a garment as cross sections: `left[i]` and `right[i]` are the ends of section i."""

    def __init__(self, left: list[Point], right: list[Point]) -> None:
        self.left, self.right = left, right
        stops = [0.0]
        for i in range(1, len(left)):
            dx = left[i][0] + right[i][0] - left[i - 1][0] - right[i - 1][0]
            dy = left[i][1] + right[i][1] - left[i - 1][1] - right[i - 1][1]
            stops.append(stops[-1] + (dx * dx + dy * dy) ** 0.5 / 2)
        self.length = stops[-1] or 1.0
        self.stops = [stop / self.length for stop in stops]

    @classmethod
    def along(cls, joints: Sequence[Point], radii: Sequence[float]) -> "Tube":
        """A limb through `joints` with a half width at each; u = 0 is its left side in the image."""
        left, right = [], []
        last = len(joints) - 1
        for i, (x, y) in enumerate(joints):
            (x0, y0), (x1, y1) = joints[max(i - 1, 0)], joints[min(i + 1, last)]
            dx, dy = x1 - x0, y1 - y0
            length = (dx * dx + dy * dy) ** 0.5 or 1.0
            nx, ny = dy / length * radii[i], -dx / length * radii[i]
            left.append((x - nx, y - ny))
            right.append((x + nx, y + ny))
        if sum(p[0] for p in left) > sum(p[0] for p in right):
            left, right = right, left
        return cls(left, right)

    def at(self, u: float, v: float) -> Point:
        """The point at share u from left to right and share v of the length from the first to the last section."""
        i = 0
        while i < len(self.stops) - 2 and self.stops[i + 1] <= v:
            i += 1
        t = (v - self.stops[i]) / ((self.stops[i + 1] - self.stops[i]) or 1.0)
        (ax, ay), (bx, by) = self.left[i], self.left[i + 1]
        (cx, cy), (dx, dy) = self.right[i], self.right[i + 1]
        lx, ly, rx, ry = ax + (bx - ax) * t, ay + (by - ay) * t, cx + (dx - cx) * t, cy + (dy - cy) * t
        return lx + (rx - lx) * u, ly + (ry - ly) * u

    def outline(self) -> list[Point]:
        """The closed contour."""
        return self.left + self.right[::-1]

    def patch(self, u0: float, u1: float, v0: float, v1: float) -> list[Point]:
        """The contour of the part between two shares u and two shares v."""
        inner = [v for v in self.stops if v0 < v < v1]
        return [self.at(u0, v) for v in (v0, *inner, v1)] + [self.at(u1, v) for v in (v1, *inner[::-1], v0)]


class Canvas:
    """`image` (RGB) and `shade` (L), both SUPERSAMPLE times as large as the final image; coordinates in their pixels."""

    def __init__(self, background: Image.Image, light: int) -> None:
        size = (background.width * SUPERSAMPLE, background.height * SUPERSAMPLE)
        self.image = background.resize(size, Image.Resampling.NEAREST)
        self.shade = Image.new("L", size, NEUTRAL)
        self.light = light
        self._draw, self._shade = ImageDraw.Draw(self.image), ImageDraw.Draw(self.shade)

    def polygon(self, points: Sequence[Point], colour: RGB, shade: int | None = NEUTRAL) -> None:
        """Fills a contour; `shade` None leaves the light unchanged."""
        whole = _whole(points)
        self._draw.polygon(whole, fill=colour)
        if shade is not None:
            self._shade.polygon(whole, fill=shade)

    def shadow(self, points: Sequence[Point], shade: int) -> None:
        """Darkens or brightens a contour."""
        self._shade.polygon(_whole(points), fill=shade)

    def ellipse(self, centre: Point, rx: float, ry: float, colour: RGB | None, shade: int | None = NEUTRAL) -> None:
        """Fills an upright ellipse; `colour` None changes the light only."""
        (box0, box1) = _whole([(centre[0] - rx, centre[1] - ry), (centre[0] + rx, centre[1] + ry)])
        if colour is not None:
            self._draw.ellipse((box0, box1), fill=colour)
        if shade is not None:
            self._shade.ellipse((box0, box1), fill=shade)

    def ball(self, centre: Point, rx: float, ry: float, colour: RGB) -> None:
        """An ellipse that is lit like a ball."""
        self.ellipse(centre, rx, ry, darker(colour, 0.35))
        self.ellipse(centre, rx - 1.5, ry - 1.5, colour, 100)
        self.ellipse((centre[0] + self.light * rx * 0.18, centre[1] - ry * 0.1), rx * 0.8, ry * 0.86, None, 126)
        self.ellipse((centre[0] + self.light * rx * 0.4, centre[1] - ry * 0.25), rx * 0.42, ry * 0.5, None, 144)

    def line(self, points: Sequence[Point], colour: RGB, width: float = 2) -> None:
        """An open line."""
        self._draw.line(_whole(points), fill=colour, width=max(1, int(width + 0.5)))

    def tube(self, tube: Tube, colour: RGB, outlined: bool = True) -> None:
        """A body part or a garment, shaded from the side of the light, with a thin dark contour."""
        self.polygon(tube.outline(), colour)
        ends = [start for start, _ in _BANDS] + [1.0]
        for i, (start, shade) in enumerate(_BANDS):
            u0, u1 = (start, ends[i + 1]) if self.light < 0 else (1 - ends[i + 1], 1 - start)
            self.shadow(tube.patch(u0, u1, 0, 1), shade)
        if outlined:
            self.line(tube.left, darker(colour))
            self.line(tube.right, darker(colour))

    def finish(self) -> "np.ndarray":
        """The reduced image times its blurred shade, (height, width, 3) int32, 0..510."""
        pixels = np.asarray(self.image.reduce(SUPERSAMPLE), dtype=np.int32)
        shade = np.asarray(self.shade.reduce(SUPERSAMPLE), dtype=np.int32)
        return (pixels * blur(shade)[:, :, None]) >> 7


def blur(pixels: np.ndarray) -> np.ndarray:
    """A [1 2 1] blur of the first two axes in integers, edges repeated; same shape and dtype."""
    padded = np.concatenate([pixels[:1], pixels, pixels[-1:]])
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    padded = np.concatenate([rows[:, :1], rows, rows[:, -1:]], axis=1)
    return (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:] + 8) >> 4
