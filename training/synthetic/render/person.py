"""A dressed person, drawn from the parts that are farthest from the camera to the nearest."""

from training.synthetic.attributes import Identity, Outfit, Pose
from training.synthetic.render.accessories import Carried
from training.synthetic.render.canvas import Canvas
from training.synthetic.render.garments import Wardrobe, nearest_last
from training.synthetic.render.head import Head
from training.synthetic.render.skeleton import Lens, stand

_FAR = -0.045  # mean depth of an arm, in body heights, below which the trunk hides it


def draw_person(canvas: Canvas, lens: Lens, identity: Identity, outfit: Outfit, pose: Pose) -> None:
    """Draw the person and the shadow at the feet."""
    skeleton = stand(identity, pose)
    clothes = Wardrobe(canvas, lens, skeleton, identity, outfit)
    things = Carried(canvas, lens, skeleton, outfit, pose)
    _ground_shadow(canvas, lens)
    sides = nearest_last(lens, skeleton)
    far = [s for s in sides if sum(lens.depth(joint) for joint in skeleton.arms[s]) / 3 < _FAR]
    from_behind = lens.cos < -0.2
    if not from_behind:
        things.pack()
    for side in far:
        _arm(clothes, things, side)
    if things.hip_bag_is_far():
        things.hip_bag()
    for side in sorted(sides, key=lambda s: lens.depth(skeleton.legs[s][0]) + 0.5 * lens.depth(skeleton.legs[s][2])):
        clothes.leg(side)
    clothes.pelvis()
    clothes.neck()
    clothes.upper()
    things.straps()
    if from_behind:
        things.pack()
    if not things.hip_bag_is_far():
        things.hip_bag()
    clothes.scarf()
    Head(canvas, lens, skeleton, identity, outfit).draw()
    for side in sides:
        if side not in far:
            _arm(clothes, things, side)
    things.umbrella()


def _arm(clothes: Wardrobe, things: Carried, side: str) -> None:
    things.in_hand(side)
    clothes.arm(side)


def _ground_shadow(canvas: Canvas, lens: Lens) -> None:
    """A contact shadow, and a longer one away from the light."""
    size = lens.size
    away = -canvas.light
    canvas.ellipse((lens.x + away * 0.16 * size, lens.ground + 0.005 * size), 0.3 * size, 0.03 * size, None, 100)
    canvas.ellipse((lens.x + away * 0.03 * size, lens.ground + 0.008 * size), 0.15 * size, 0.026 * size, None, 78)
