"""Hair over the forehead, and glasses."""

import numpy as np

from synthesis.face import SS, Face
from synthesis.pens import curve, mirrored, points, ramp, rgb

DOME = np.array([13, 2, -5, -7])  # heights of the outside of the hair, before its volume


def hairdo(face: Face) -> None:
    """A band from the hairline to the outside of the head, with strands along it or curls in it."""
    p, bald, rng, wide, out = face.p, face.bald, face.rng, face.wide, face.wide + face.volume
    length, long = p.length, p.length > 70
    u = np.linspace(1, -1, 7)
    y = 15 - 1.8 * p.hairline - 2 * face.child + 2 * (1 - p.male) - 30 * bald
    y = y + (max(0, 9 + 4 * p.sweep) if long else 3) * (u - np.clip(0.3 * p.part, -0.6, 0.6)) ** 2
    y += 7 * max(0, p.fringe) * max(0, 1 - 2 * bald) * (1 - 0.3 * np.sin(3 * u + p.part))
    y += (5 * bald + max(0, p.widow)) * np.exp(-((u / 0.3) ** 2))
    ear = min(length, 62) - 6
    xs = np.array([0.84 if long else 0.97, 0.97, 0.94, 0.87]) * wide
    side = points(xs, (length, ear, 40, 30 - 15 * bald))
    inner = curve(np.vstack([side, points(0.74 * wide * u, y), side[::-1] * (-1, 1)]))
    xs = out + 1 if long else wide + 0.5, out, out + 0.5, 0.99 * out
    side = points(xs, (length, ear - 4, 38, 24))
    dome = mirrored(points((0.93 * out, 0.76 * out, 0.42 * out, 0), DOME - 0.7 * face.volume))
    outer = curve(np.vstack([side, dome, side[::-1] * (-1, 1)]))
    strands, ink = face.layer('RGB', rgb(face.hair))
    if p.curly:
        t, s = rng.integers(0, len(inner), 110), rng.random((110, 1))
        shades = rng.uniform(0.8, 1.2, 110)
        centres = SS * face.place(inner[t] * (1 - s) + outer[t] * s)
        for (x, y), shade in zip(centres, shades, strict=True):
            ink.arc((x - 4, y - 4, x + 4, y + 4), 0, 260, fill=rgb(face.hair * shade), width=2)
    else:
        for s, shade in zip(np.linspace(0, 1, 20) ** 1.3, rng.uniform(0.75, 1.25, 20), strict=True):
            ink.line(face.flat(inner * (1 - s) + outer * s), fill=rgb(face.hair * shade), width=2)
    mask, ink = face.layer()
    opacity = 0.55 + 0.45 * ramp(face.age, 0, 2) - 0.25 * bald
    ink.polygon(face.flat(np.vstack([inner, outer[::-1]])), fill=int(255 * opacity))
    face.canvas.paste(strands, mask=mask)


def glasses(face: Face) -> None:
    """In some of the shots, of those who wear them."""
    if face.rng.random() < face.p.glasses * ramp(face.age, 2, 30):
        x, y, colour = face.eye_x, face.eye_y, rgb(face.rng.uniform(20, 90, 3))
        for side in (-1, 1):
            cx, cy = face.flat([(side * x, y + 1)], 1.8)
            lens = cx - 24, cy - 16, cx + 24, cy + 17
            face.ink.rounded_rectangle(lens, 12, outline=colour, width=2)
            temple = face.flat([(side * (x + 12), y), (side * face.wide, y)], 0.8)
            face.ink.line(temple, fill=colour, width=3)
        face.ink.line(face.flat([(12 - x, y), (x - 12, y)], 1.8), fill=colour, width=3)
