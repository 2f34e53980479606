"""Cameras: the scene, light, blur, contrast and noise of each one, in integer arithmetic throughout."""

from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image

from training.synthetic.attributes import Identity, Outfit, Pose, Shot
from training.synthetic.render.background import panorama
from training.synthetic.render.canvas import SUPERSAMPLE, Canvas, blur
from training.synthetic.render.person import draw_person
from training.synthetic.render.skeleton import Build, Lens
from training.synthetic.rng import cosine, sine

JPEG_QUALITY = 92


@dataclass(frozen=True)
class Camera:
    """The constant look of one camera; gains and contrast in 1/256."""

    scene: str
    light: int  # -1: from the left, 1: from the right
    elevation: float  # 0: at eye level, 0.2: from a first floor
    gains: tuple[int, int, int]
    contrast: int
    blurs: int
    noise: int  # half the range of the noise, in grey levels


CAMERAS: dict[str, Camera] = {
    "cam_a": Camera("street", 1, 0.08, (250, 252, 262), 250, 1, 7),
    "cam_b": Camera("wall", -1, 0.04, (276, 262, 244), 262, 0, 5),
    "cam_c": Camera("shops", 1, 0.1, (232, 236, 240), 270, 1, 9),
    "cam_d": Camera("park", -1, 0.02, (262, 268, 250), 250, 0, 5),
    "cam_e": Camera("hall", 1, 0.14, (250, 262, 256), 228, 1, 6),
    "cam_f": Camera("crossing", -1, 0.2, (238, 240, 258), 258, 1, 8),
}


@lru_cache(maxsize=16)
def _scene(name: str, height: int, width: int) -> np.ndarray:
    return panorama(name, height, width)


def noise(seed: int, count: int) -> np.ndarray:
    """(count,) int32 triangular noise in -255..255 from SplitMix64 (Steele, Lea, Flood 2014), implemented here
    because NumPy does not guarantee the streams of its generators across versions."""
    state = np.arange(1, (count + 3) // 4 + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state += np.uint64(seed) * np.uint64(0xD1342543DE82EF95 >> 32)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    octets = state.astype("<u8").view(np.uint8).astype(np.int32)
    return (octets[0::2] - octets[1::2])[:count]


def _lens(camera: Camera, identity: Identity, pose: Pose, shot: Shot, height: int, width: int) -> Lens:
    body = (0.72 if pose.action == "umbrella" else 0.86) * Build.of(identity).stature * shot.scale
    return Lens(
        x=(0.5 + shot.offset_x) * width * SUPERSAMPLE,
        ground=(0.95 + shot.offset_y) * height * SUPERSAMPLE,
        size=body * height * SUPERSAMPLE,
        cos=cosine(pose.yaw),
        sin=sine(pose.yaw),
        roll=sine(shot.roll),
        elevation=camera.elevation,
    )


def render_image(identity: Identity, outfit: Outfit, pose: Pose, shot: Shot, height: int, width: int) -> np.ndarray:
    """Renders one image, (height, width, 3) uint8."""
    camera = CAMERAS[shot.camera]
    scene = _scene(camera.scene, height, width)
    start = int(shot.pan * (scene.shape[1] - width))
    canvas = Canvas(Image.fromarray(np.ascontiguousarray(scene[:, start : start + width])), camera.light)
    draw_person(canvas, _lens(camera, identity, pose, shot, height, width), identity, outfit, pose)
    pixels = canvas.finish()
    for _ in range(camera.blurs):
        pixels = blur(pixels)
    gains = np.array(camera.gains, dtype=np.int32) * int(shot.light * 256) >> 8
    pixels = ((((pixels - 128) * camera.contrast >> 8) + 128) * gains) >> 8
    grain = noise(shot.noise_seed, height * width).reshape(height, width, 1) * camera.noise >> 8
    tint = noise(shot.noise_seed + 1, pixels.size).reshape(pixels.shape) * camera.noise >> 9
    return np.clip(pixels + grain + tint, 0, 255).astype(np.uint8)


def encode_jpeg(pixels: np.ndarray) -> bytes:
    """The bytes of a JPEG file, identical under the same version of Pillow."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
