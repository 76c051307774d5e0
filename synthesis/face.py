"""A person, and their face in its own frame (x from the midline, y down), posed point by point."""

import functools
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFilter

HEIGHT, WIDTH, SS = 112, 96, 2  # shapes are drawn SS times as large and averaged down
TRAITS = """width jaw cheek chin_width chin_length eye_x eye_y eye_size eye_open eye_tilt crease
    lash brow_y brow_thick brow_arch brow_tilt brow_gap nose_length nose_width bridge tip mouth_y
    mouth_width upper_lip lower_lip bow corners ear hairline widow part sweep fringe volume
    undertone flush hair_shade freckles beard jowl""".split()

# light to dark, dark to fair, brown to grey
SKIN = [(244, 210, 190), (236, 196, 170), (222, 176, 144), (200, 150, 116), (170, 120, 88)]
SKIN += [(134, 92, 66), (100, 68, 52)]
HAIR = [(30, 26, 28), (54, 38, 30), (90, 60, 40), (134, 94, 56), (188, 150, 96)]
IRIS = [(52, 32, 22), (92, 60, 34), (112, 98, 54), (84, 118, 92), (88, 128, 168), (116, 134, 146)]
RED_HAIR, GREY_HAIR = np.array((150, 72, 36.0)), np.array((196, 194, 192.0))


def fade(age: float, start: float, stop: float) -> float:
    """0 before start, 1 after stop, smooth between."""
    t = min(max((age - start) / (stop - start), 0), 1)
    return t * t * (3 - 2 * t)


def rgb(colour: Iterable[float]) -> tuple[int, ...]:
    """A colour as Pillow takes it: three whole numbers from 0 to 255."""
    return tuple(min(255, max(0, int(v))) for v in colour)


@functools.cache
def spline(k: int, n: int = 6) -> np.ndarray:
    """The matrix ((k - 1) * n + 1, k) that takes k points to a Catmull-Rom curve through them."""
    t = np.linspace(0, 1, n, endpoint=False)[:, None]
    terms = [-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2]
    weights = np.hstack(terms) / 2
    padded = np.eye(k)[[0, *range(k), k - 1]]
    padded[0], padded[-1] = 2 * padded[1] - padded[2], 2 * padded[-2] - padded[-3]
    return np.vstack([weights @ padded[i : i + 4] for i in range(k - 1)] + [padded[-2]])


def points(xs: ArrayLike, ys: ArrayLike) -> np.ndarray:
    """Points (k, 2) of their coordinates."""
    return np.stack([np.asarray(xs), np.asarray(ys)], 1)


def curve(through: ArrayLike) -> np.ndarray:
    """Points (6 (k - 1) + 1, 2) of a smooth line through k points."""
    through = np.asarray(through, float)
    return spline(len(through)) @ through


def mirrored(right: ArrayLike) -> np.ndarray:
    """Points from the right side to the midline (k, 2) -> on to the left side (2k - 1, 2)."""
    right = np.asarray(right, float)
    return np.vstack([right, right[-2::-1] * (-1, 1)])


def both(x: float, *rest: float) -> list[tuple]:
    """The same on the right and on the left of the midline."""
    return [(x, *rest), (-x, *rest)]


def tone(a: float, *where: float) -> tuple:
    """A soft blob of light (a > 0) or shadow: skin turns redder as it darkens."""
    return (*where, a, 1.25 * a, 1.3 * a)


def mix(palette: ArrayLike, t: float) -> np.ndarray:
    """The colour at t in 0..1 along a palette (n, 3)."""
    channels = np.array(palette, float).T
    at, places = t * (len(channels[0]) - 1), range(len(channels[0]))
    return np.array([np.interp(at, places, channel) for channel in channels])


@functools.lru_cache(1)
def person(identity: int) -> SimpleNamespace:
    """The traits of `identity`: standard normal, cut at 2.2; colours; the years when age shows."""
    rng = np.random.default_rng(np.random.SeedSequence([17, identity]))
    traits = np.clip(rng.normal(size=len(TRAITS)), -2.2, 2.2).tolist()
    p = SimpleNamespace(**dict(zip(TRAITS, traits, strict=True)))
    p.male = float(rng.random() < 0.5)
    p.melanin = rng.random()
    p.skin = mix(SKIN, p.melanin) * (1 + 0.03 * p.undertone * np.array([0.3, 0, -1]))
    # light hair and eyes come with light skin
    fair = rng.random() * np.clip(1.25 - 1.6 * p.melanin, 0.12, 1)
    p.hair = (RED_HAIR if fair > 0.9 else mix(HAIR, fair / 0.9)) * (1 + 0.1 * p.hair_shade)
    light = np.clip(fair + 0.25 * rng.normal(), 0, 1) if p.melanin < 0.55 else 0.25 * rng.random()
    p.iris = mix(IRIS, light)
    p.curly = rng.random() < 0.1 + 0.5 * p.melanin
    p.length = rng.choice([52, 58, 64] if p.male else [62, 86, 125, 125])  # of the hair
    p.bald = rng.random() ** 1.5 if p.male else 0.15 * rng.random()
    p.glasses = rng.choice([0, 0, 0.2, 0.9])
    p.grey_at, p.wrinkled_at = rng.normal((54, 50), (8, 6))
    p.moles = rng.uniform((-26, 56, 0.7), (26, 104, 1.1), (rng.poisson(0.6), 3))  # x, y, radius
    p.spots = rng.uniform((-34, 12, 0.5), (34, 104, 1.5), (40, 3))
    p.blotches = rng.normal(size=(14, 12))
    return p


class DrawnFace:
    """One person at one age in one shot: the bones as attributes, and the canvas to paint on."""

    def __init__(self, identity: int, age: float, shot: int):
        self.p = p = person(identity)
        self.rng = rng = np.random.default_rng(np.random.SeedSequence([23, identity, shot]))
        self.age = age
        self.child = child = np.exp(-((age / 11) ** 1.6))  # 1 at birth, .55 at 8, .07 at 20
        self.adult = fade(age, 8, 22)
        self.old = old = 1.3 * fade(age, 25, 100)
        self.lined = max(0, (age - p.wrinkled_at) / 40 + 0.45) ** 1.5 * fade(age, 18, 45)
        self.grey = fade(age, p.grey_at - 20, p.grey_at + 22)
        self.bald = p.bald * fade(age, 22, 70)

        roll, scale = np.radians(rng.normal(0, 2.5)), rng.normal(1, 0.02)
        self.turn = scale * np.array([[np.cos(roll), np.sin(roll)], [-np.sin(roll), np.cos(roll)]])
        self.origin = rng.normal((WIDTH / 2, 62), 1.2) - (0, 62) @ self.turn
        self.yaw, self.light = rng.normal(0, 1.2), rng.uniform(-1, 1)
        self.gaze, self.smile = rng.normal(0, 0.5, 2), np.clip(rng.normal(0.3, 0.5), -0.5, 1.2)
        self.opening = rng.uniform(1, 3.5) if self.smile > rng.uniform(0.3, 1.5) else 0

        self.eye_x = 17.6 + p.eye_x + 0.6 * child
        self.eye_y = 51.6 + 0.7 * p.eye_y + 4.5 * child
        self.eye_w = 7.2 + 0.6 * p.eye_size + 1.5 * child
        open_h = 3.7 + 0.6 * p.eye_open + 1.9 * child - 0.9 * old - 0.5 * max(self.smile, 0)
        self.eye_h = max(1.7, open_h)
        self.nose_y = 72.5 + 1.2 * p.nose_length - 0.8 * child + 1.4 * old
        self.nose_w = 7.2 + 1.1 * p.nose_width + 0.9 * p.melanin + 0.6 * p.male - 2.2 * child
        self.nose_w += 0.7 * old
        self.mouth_y = 92.0 + 0.8 * p.mouth_y - 2.5 * child
        self.mouth_w = 14.2 + 1.4 * p.mouth_width - 3.5 * child + 1.3 * max(self.smile, 0)
        self.chin_y = 109.5 + 1.6 * p.chin_length + p.male - 4 * child
        self.wide = 38 + 1.6 * p.width + 1.5 * child
        self.cheek = self.wide - 1.5 + 0.9 * p.cheek + 1.5 * child - 1.5 * old
        self.jaw = 29.5 + p.width + 2.2 * p.jaw + 1.3 * p.male + 3 * child
        self.jaw += (1.5 + 0.7 * p.jowl) * old
        self.chin = 13 + 1.8 * p.chin_width + 1.5 * p.male + child + old
        self.skull = [(0.97, 22), (0.8, 3), (0.45, -6), (0, -8)]
        xs = 0, self.chin, 0.55 * self.chin + 0.5 * self.jaw, self.jaw, self.cheek, self.wide
        chin = points(xs, (self.chin_y, self.chin_y - 2.5, self.chin_y - 9, 88, 70, 50))
        top = [(x * self.wide, y) for x, y in self.skull]
        self.outline = curve(mirrored(np.vstack([chin, top])))

        self.hair = p.hair * (1 + 0.3 * child) * (1 - self.grey) + GREY_HAIR * self.grey
        self.skin = p.skin * (1 - 0.06 * old)
        self.dark = self.skin * (0.55, 0.42, 0.40)  # lashes, nostrils, the gap between the lips
        self.volume = max(1, 4 + 1.3 * p.volume + 3 * p.curly - 3 * self.bald)
        background = rng.uniform(40, 225, 3) * 0.5 + rng.uniform(40, 225) * 0.5
        self.canvas, self.ink = self.layer('RGB', rgb(background))
        self.head = self.canvas  # where the skin is: a mask, once that is drawn

    # pens: points are in the face's frame; depth is 0 at the outline and 2.5 at the tip of the
    # nose, which moves most with yaw

    def layer(self, mode: str = 'L', colour: Any = 0) -> tuple[Image.Image, ImageDraw.ImageDraw]:
        """An empty picture of the canvas's size, and the pen that draws on it."""
        image = Image.new(mode, (WIDTH * SS, HEIGHT * SS), colour)
        return image, ImageDraw.Draw(image)

    def place(self, at: ArrayLike, depth: ArrayLike = 0.0) -> np.ndarray:
        """(k, 2) in the face's frame -> (k, 2) in pixels of the crop."""
        shift = self.origin + np.multiply.outer(self.yaw * np.asarray(depth), self.turn[0])
        return np.asarray(at) @ self.turn + shift

    def flat(self, at: ArrayLike, depth: ArrayLike = 0.0) -> list[float]:
        """x and y of the points one after the other, on the canvas, as Pillow's pens take them."""
        return (SS * self.place(at, depth)).ravel().tolist()

    def dot(self, ink: Any, xy: Any, depth: float, rx: float, ry: float, colour: Any) -> None:
        """An ellipse around `xy` with half axes `rx` and `ry`."""
        x, y = self.flat([xy], depth)
        ink.ellipse((x - SS * rx, y - SS * ry, x + SS * rx, y + SS * ry), fill=colour)

    def photograph(self) -> np.ndarray:
        """Blur, contrast, exposure, colour cast, uneven light and noise -> uint8 (112, 96, 3)."""
        rng = self.rng
        soft = self.canvas.reduce(SS).filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 0.8)))
        image = (np.asarray(soft, np.float32) - 128) * rng.normal(1, 0.07) + 128
        across = np.linspace(-0.5, 0.5, WIDTH) * self.light * 0.2
        down = np.linspace(-0.5, 0.5, HEIGHT) * rng.normal(0, 0.15)
        light = 1 + across[None, :, None] + down[:, None, None]
        gain = rng.normal(1, 0.08) * rng.normal(1, 0.03, 3) * light
        noise = rng.uniform(1, 5) * rng.standard_normal(image.shape, np.float32)
        image = image * gain.astype(np.float32) + noise
        return np.clip(image, 0, 255).astype(np.uint8)
