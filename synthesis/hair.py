"""Hair over the forehead, and glasses."""

import numpy as np

from synthesis.face import SS, Face
from synthesis.pens import curve, mirrored, ramp, rgb


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
    side = np.array(
        [
            ((0.84 if long else 0.97) * wide, length),
            (0.97 * wide, ear),
            (0.94 * wide, 40),
            (0.87 * wide, 30 - 15 * bald),
        ]
    )
    inner = curve(np.vstack([side, np.stack([0.74 * wide * u, y], 1), side[::-1] * (-1, 1)]))
    side = np.array(
        [
            (out + 1 if long else wide + 0.5, length),
            (out, ear - 4),
            (out + 0.5, 38),
            (0.99 * out, 24),
        ]
    )
    dome = [
        (x * out, y - 0.7 * face.volume) for x, y in ((0.93, 13), (0.76, 2), (0.42, -5), (0, -7))
    ]
    outer = curve(np.vstack([side, mirrored(dome), side[::-1] * (-1, 1)]))
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
    ink.polygon(
        face.flat(np.vstack([inner, outer[::-1]])),
        fill=int(255 * (0.55 + 0.45 * ramp(face.age, 0, 2) - 0.25 * bald)),
    )
    face.canvas.paste(strands, mask=mask)


def glasses(face: Face) -> None:
    """In some of the shots, of those who wear them."""
    if face.rng.random() < face.p.glasses * ramp(face.age, 2, 30):
        x, y, colour = face.eye_x, face.eye_y, rgb(face.rng.uniform(20, 90, 3))
        for side in (-1, 1):
            cx, cy = face.flat([(side * x, y + 1)], 1.8)
            face.ink.rounded_rectangle(
                (cx - 24, cy - 16, cx + 24, cy + 17), 12, outline=colour, width=2
            )
            face.ink.line(
                face.flat([(side * (x + 12), y), (side * face.wide, y)], 0.8), fill=colour, width=3
            )
        face.ink.line(face.flat([(12 - x, y), (x - 12, y)], 1.8), fill=colour, width=3)
