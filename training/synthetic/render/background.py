"""Backgrounds: one wide scene per camera, of which every image shows a crop."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from training.synthetic.attributes import RGB
from training.synthetic.render.canvas import blur, darker, lighter, mix
from training.synthetic.rng import KeyedRng

WIDTHS = 3  # width of a scene in image widths
_SCALE = 2


class _Scene:
    """Drawing in relative coordinates: x in image widths from the left of the scene, y in image heights from the top."""

    def __init__(self, height: int, width: int, rng: KeyedRng) -> None:
        self.wide, self.high = width * _SCALE, height * _SCALE
        self.image = Image.new("RGB", (self.wide * WIDTHS, self.high))
        self.draw, self.rng = ImageDraw.Draw(self.image), rng

    def _xy(self, x: float, y: float) -> tuple[int, int]:
        return int(x * self.wide + 0.5), int(y * self.high + 0.5)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: RGB, edge: RGB | None = None) -> None:
        self.draw.rectangle((self._xy(x0, y0), self._xy(x1, y1)), fill=colour, outline=edge)

    def polygon(self, points: list[tuple[float, float]], colour: RGB) -> None:
        self.draw.polygon([self._xy(x, y) for x, y in points], fill=colour)

    def oval(self, x: float, y: float, rx: float, ry: float, colour: RGB) -> None:
        self.draw.ellipse((self._xy(x - rx, y - ry), self._xy(x + rx, y + ry)), fill=colour)

    def line(self, x0: float, y0: float, x1: float, y1: float, colour: RGB, width: int = 2) -> None:
        self.draw.line((self._xy(x0, y0), self._xy(x1, y1)), fill=colour, width=width)

    def fade(self, y0: float, y1: float, top: RGB, bottom: RGB) -> None:
        for i in range(32):
            start, end = y0 + (y1 - y0) * i / 32, y0 + (y1 - y0) * (i + 1) / 32
            self.box(0, start, WIDTHS, end, mix(top, bottom, i / 31))


def _paving(scene: _Scene, horizon: float, colour: RGB, columns: int, rows: int) -> None:
    """Slabs in perspective."""
    scene.fade(horizon, 1.0, darker(colour, 0.12), lighter(colour, 0.08))
    joint = darker(colour, 0.2)
    for i in range(rows):
        share = (i + 1) / rows
        y = horizon + (1 - horizon) * share * share
        scene.line(0, y, WIDTHS, y, joint, 2)
    middle = WIDTHS / 2
    for i in range(-columns * 2, columns * 2 + 1):
        scene.line(middle + i * WIDTHS / columns * 0.6, horizon, middle + i * WIDTHS / columns * 1.5, 1.0, joint, 2)


def _street(scene: _Scene) -> None:
    """Facades with windows, a pavement, a kerb, parked cars and asphalt."""
    rng, x = scene.rng, 0.0
    while x < WIDTHS:
        wide, colour = (
            rng.uniform(0.6, 0.95),
            rng.choice(((176, 160, 140), (150, 142, 138), (186, 172, 156), (140, 122, 112))),
        )
        scene.box(x, 0, x + wide, 0.42, colour)
        scene.line(x, 0, x, 0.42, darker(colour), 4)
        for row in (0.03, 0.2):
            for column in range(3):
                left = x + wide * (0.1 + 0.29 * column)
                scene.box(left, row, left + wide * 0.18, row + 0.11, (74, 86, 98), lighter(colour, 0.5))
                scene.line(left + wide * 0.09, row, left + wide * 0.09, row + 0.11, lighter(colour, 0.5))
        x += wide
    scene.fade(0.42, 0.52, (150, 148, 144), (166, 164, 160))
    scene.box(0, 0.52, WIDTHS, 0.535, (194, 192, 186))
    scene.fade(0.535, 1.0, (92, 94, 98), (120, 122, 126))
    for start in (0.1, 1.25, 2.2):
        colour = rng.choice(((150, 30, 36), (40, 60, 110), (200, 202, 204), (52, 54, 58)))
        scene.polygon(
            [(start + 0.12, 0.45), (start + 0.22, 0.36), (start + 0.55, 0.36), (start + 0.66, 0.45)], (70, 84, 96)
        )
        scene.box(start, 0.44, start + 0.76, 0.52, colour, darker(colour))
        for wheel in (0.15, 0.6):
            scene.oval(start + wheel, 0.525, 0.065, 0.033, (26, 26, 28))
            scene.oval(start + wheel, 0.525, 0.03, 0.015, (150, 150, 152))


def _wall(scene: _Scene) -> None:
    """A brick wall with doors above a pavement."""
    brick: RGB = (158, 104, 84)
    scene.box(0, 0, WIDTHS, 0.62, brick)
    rows = 26
    for row in range(rows):
        y = 0.62 * row / rows
        scene.line(0, y, WIDTHS, y, (176, 142, 124))
        for column in range(30):
            x = (column + 0.5 * (row % 2)) * WIDTHS / 30
            scene.line(x, y, x, y + 0.62 / rows, (176, 142, 124))
    for x, colour in ((0.25, (66, 84, 78)), (1.5, (92, 62, 46)), (2.45, (70, 78, 104))):
        scene.box(x - 0.03, 0.08, x + 0.41, 0.62, (202, 196, 186))
        scene.box(x, 0.1, x + 0.38, 0.62, colour, darker(colour))
        for y in (0.14, 0.38):
            scene.box(x + 0.06, y, x + 0.32, y + 0.19, darker(colour, 0.15), darker(colour, 0.4))
        scene.oval(x + 0.34, 0.37, 0.018, 0.009, (214, 188, 110))
    scene.box(0.85, 0.1, 1.3, 0.33, (206, 204, 198))
    scene.box(0.88, 0.115, 1.27, 0.315, (84, 98, 112))
    scene.box(0, 0.6, WIDTHS, 0.635, (120, 112, 106))
    _paving(scene, 0.635, (164, 160, 154), 9, 7)


def _shops(scene: _Scene) -> None:
    """Lit shop windows under coloured signs."""
    rng = scene.rng
    signs = ((44, 88, 80), (130, 44, 56), (52, 64, 116), (164, 118, 48))
    for i in range(4):
        x, wide = i * 0.78 - 0.05, 0.78
        scene.box(x, 0, x + wide, 0.1, signs[i])
        for letter in range(6):
            left = x + 0.14 + letter * 0.085
            scene.box(left, 0.035, left + rng.uniform(0.03, 0.06), 0.065, (232, 226, 210))
        scene.box(x, 0.1, x + wide, 0.58, (66, 66, 70))
        scene.box(x + 0.04, 0.12, x + wide - 0.04, 0.54, mix((204, 196, 170), (150, 170, 184), rng.uniform(0.2, 0.9)))
        scene.box(x + 0.04, 0.46, x + wide - 0.04, 0.54, (158, 148, 134))
        for k in range(4):
            left, tall = x + 0.09 + k * 0.16, rng.uniform(0.06, 0.2)
            colour = rng.choice(((176, 92, 84), (96, 120, 150), (204, 170, 96), (110, 130, 100), (226, 222, 214)))
            scene.box(left, 0.48 - tall, left + 0.1, 0.48, colour)
        scene.polygon([(x + 0.2, 0.12), (x + 0.34, 0.12), (x + 0.16, 0.54), (x + 0.06, 0.54)], (214, 214, 206))
        scene.line(x + wide / 2, 0.12, x + wide / 2, 0.54, (66, 66, 70), 5)
    scene.box(0, 0.58, WIDTHS, 0.6, (104, 104, 106))
    _paving(scene, 0.6, (150, 148, 150), 12, 9)


def _park(scene: _Scene) -> None:
    """Trees, a hedge, lawn, a bench and a sandy path."""
    rng = scene.rng
    scene.fade(0, 0.36, (190, 208, 216), (206, 214, 204))
    for i in range(9):
        x = i * 0.38 + rng.uniform(-0.08, 0.08)
        scene.box(x - 0.03, 0.15, x + 0.03, 0.44, (92, 74, 56))
        for _ in range(7):
            green = rng.choice(((70, 104, 58), (84, 120, 66), (60, 92, 54), (100, 134, 76)))
            scene.oval(x + rng.uniform(-0.17, 0.17), 0.12 + rng.uniform(-0.12, 0.12), 0.15, 0.07, green)
    scene.box(0, 0.35, WIDTHS, 0.43, (72, 100, 62))
    scene.fade(0.43, 0.66, (104, 138, 78), (126, 156, 92))
    for x in (0.5, 2.1):
        scene.box(x, 0.43, x + 0.5, 0.45, (116, 84, 56))
        scene.box(x, 0.48, x + 0.5, 0.5, (128, 94, 64))
        for leg in (0.04, 0.44):
            scene.box(x + leg, 0.45, x + leg + 0.02, 0.55, (60, 60, 62))
    scene.fade(0.66, 1.0, (188, 172, 142), (206, 192, 164))
    for _ in range(120):
        x, y = rng.uniform(0, WIDTHS), rng.uniform(0.67, 1.0)
        scene.oval(x, y, 0.012, 0.004, (166, 150, 122))
    for _ in range(16):
        scene.oval(rng.uniform(0, WIDTHS), rng.uniform(0.68, 0.98), 0.16, 0.022, (170, 156, 130))


def _hall(scene: _Scene) -> None:
    """A bright hall with columns, glass doors and large tiles."""
    scene.fade(0, 0.5, (196, 198, 196), (222, 220, 214))
    for i in range(5):
        x = i * 0.7 + 0.1
        scene.box(x + 0.16, 0.06, x + 0.58, 0.5, (150, 170, 176), (110, 116, 118))
        scene.line(x + 0.37, 0.06, x + 0.37, 0.5, (110, 116, 118), 4)
        scene.polygon([(x + 0.2, 0.5), (x + 0.3, 0.06), (x + 0.36, 0.06), (x + 0.26, 0.5)], (176, 192, 196))
        for share in range(6):
            scene.box(
                x - 0.08 + share * 0.027,
                0,
                x - 0.08 + (share + 1) * 0.027,
                0.53,
                mix((238, 234, 226), (150, 146, 140), share / 5),
            )
    scene.box(0, 0.5, WIDTHS, 0.52, (128, 124, 118))
    _paving(scene, 0.52, (198, 190, 178), 6, 6)
    for i in range(5):
        scene.polygon(
            [(i * 0.7 + 0.3, 0.55), (i * 0.7 + 0.5, 0.55), (i * 0.7 + 0.46, 0.85), (i * 0.7 + 0.2, 0.85)],
            (214, 208, 198),
        )


def _crossing(scene: _Scene) -> None:
    """A zebra crossing on asphalt, seen from above, with a far pavement and posts."""
    scene.fade(0, 0.16, (140, 150, 138), (158, 158, 150))
    for i in range(7):
        scene.box(
            i * 0.45 + 0.05, 0, i * 0.45 + 0.33, 0.1, mix((116, 128, 140), (176, 166, 150), scene.rng.uniform(0, 1))
        )
    scene.box(0, 0.15, WIDTHS, 0.17, (196, 194, 188))
    scene.fade(0.17, 1.0, (84, 86, 90), (108, 110, 114))
    for i in range(9):
        x = i * 0.42 - 0.2
        scene.polygon([(x, 0.3), (x + 0.19, 0.3), (x + 0.06, 0.92), (x - 0.17, 0.92)], (212, 212, 206))
    for i in range(60):
        scene.oval(scene.rng.uniform(0, WIDTHS), scene.rng.uniform(0.2, 1.0), 0.02 + 0.0005 * i, 0.006, (92, 94, 98))
    for x in (0.3, 1.4, 2.6):
        scene.box(x, 0.02, x + 0.035, 0.2, (60, 62, 66))
        scene.oval(x + 0.018, 0.02, 0.04, 0.02, (200, 160, 50))


SCENES: dict[str, Callable[[_Scene], None]] = {
    "street": _street,
    "wall": _wall,
    "shops": _shops,
    "park": _park,
    "hall": _hall,
    "crossing": _crossing,
}


def panorama(name: str, height: int, width: int) -> np.ndarray:
    """The whole scene behind one camera: (height, WIDTHS * width, 3) uint8, slightly out of focus."""
    scene = _Scene(height, width, KeyedRng("scene", name))
    SCENES[name](scene)
    pixels = np.asarray(scene.image.reduce(_SCALE), dtype=np.int32)
    return blur(pixels).astype(np.uint8)
