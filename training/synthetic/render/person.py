"""A whole person, drawn from the parts farthest from the camera to the nearest."""

from training.synthetic.attributes import Identity, Outfit, Pose
from training.synthetic.render.accessories import Accessories
from training.synthetic.render.canvas import Canvas
from training.synthetic.render.garments import Garments, sides_far_to_near
from training.synthetic.render.head import Head
from training.synthetic.render.skeleton import Lens, pose_skeleton

_FAR = -0.045  # mean depth of an arm, in body heights, below which the trunk hides it


def draw_person(canvas: Canvas, lens: Lens, identity: Identity, outfit: Outfit, pose: Pose) -> None:
    """Draws the person and the shadow at the feet."""
    skeleton = pose_skeleton(identity, pose)
    garments = Garments(canvas, lens, skeleton, identity, outfit)
    accessories = Accessories(canvas, lens, skeleton, outfit, pose)
    _ground_shadow(canvas, lens)
    sides = sides_far_to_near(lens, skeleton)
    far = [s for s in sides if sum(lens.depth(joint) for joint in skeleton.arms[s]) / 3 < _FAR]
    from_behind = lens.cos < -0.2
    if not from_behind:
        accessories.backpack()
    for side in far:
        _arm(garments, accessories, side)
    if accessories.hip_bag_is_far():
        accessories.hip_bag()
    for side in sorted(sides, key=lambda s: lens.depth(skeleton.legs[s][0]) + 0.5 * lens.depth(skeleton.legs[s][2])):
        garments.leg(side)
    garments.pelvis()
    garments.neck()
    garments.upper()
    accessories.straps()
    if from_behind:
        accessories.backpack()
    if not accessories.hip_bag_is_far():
        accessories.hip_bag()
    garments.scarf()
    Head(canvas, lens, skeleton, identity, outfit).draw()
    for side in sides:
        if side not in far:
            _arm(garments, accessories, side)
    accessories.umbrella()


def _arm(garments: Garments, accessories: Accessories, side: str) -> None:
    accessories.hand_item(side)
    garments.arm(side)


def _ground_shadow(canvas: Canvas, lens: Lens) -> None:
    """A contact shadow, and a longer one away from the light."""
    size = lens.size
    away = -canvas.light
    canvas.ellipse((lens.x + away * 0.16 * size, lens.ground + 0.005 * size), 0.3 * size, 0.03 * size, None, 100)
    canvas.ellipse((lens.x + away * 0.03 * size, lens.ground + 0.008 * size), 0.15 * size, 0.026 * size, None, 78)
