"""What never changes about somebody."""

import functools
from types import SimpleNamespace

import numpy as np
from numpy.typing import ArrayLike

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
    # how far down the hair reaches
    p.length = rng.choice([52, 58, 64] if p.male else [62, 86, 125, 125])
    p.bald = rng.random() ** 1.5 if p.male else 0.15 * rng.random()
    p.glasses = rng.choice([0, 0, 0.2, 0.9])
    p.grey_at, p.wrinkled_at = rng.normal((54, 50), (8, 6))
    p.moles = rng.uniform((-26, 56, 0.7), (26, 104, 1.1), (rng.poisson(0.6), 3))  # x, y, radius
    p.spots = rng.uniform((-34, 12, 0.5), (34, 104, 1.5), (40, 3))
    p.blotches = rng.normal(size=(14, 12))
    return p
