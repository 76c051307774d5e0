"""Eyes, brows, nostrils and moles, mouth, hair, glasses: functions that paint on the canvas."""

import numpy as np

from synthesis.face import GREY_HAIR, SS, DrawnFace, both, curve, fade, mirrored, points, rgb

DOME = np.array([13, 2, -5, -7])  # heights of the outside of the hair, before its volume


def eyes(face: DrawnFace) -> None:
    """Balls, irises and pupils, seen between the lids; then lashes and creases."""
    p, x, y, w, h = face.p, face.eye_x, face.eye_y, face.eye_w, face.eye_h
    white = np.array((240, 236, 232)) - np.array((8, 14, 22)) * face.old
    balls, ink = face.layer('RGB', rgb(white))
    mask, hole = face.layer()
    tilt = 0.7 * p.eye_tilt + 0.5 - 1.2 * face.old
    iris, pupil = 3.5 + 0.6 * face.child, 1.6 + 0.2 * face.child
    inner, outer = (x - w, y + 1), (x + w, y - tilt)
    hood = (x + 0.6 * w, y - 0.75 * h - 0.4 * tilt + 0.8 * face.old)
    upper = curve([inner, (x - 0.5 * w, y - 0.8 * h), (x, y - h), hood, outer])
    lower = curve([outer, (x + 0.4 * w, y + 0.7 * h), (x - 0.4 * w, y + 0.75 * h), inner])
    for side in (-1, 1):
        hole.polygon(face.flat(np.vstack([upper, lower]) * (side, 1), 1), fill=255)
        ink.line(face.flat((upper + (0, 0.6)) * (side, 1), 1), fill=(176, 168, 166), width=4)
        centre = np.array([side * x, y - 0.3]) + face.gaze * (1, 0.6)
        discs = (iris, p.iris * 0.55), (iris - 0.7, p.iris * 1.15), (pupil, (12, 10, 12))
        for radius, colour in discs:
            face.dot(ink, centre, 1.2, radius, radius, rgb(colour))
        face.dot(ink, centre + (1 + 0.5 * face.light, -1.3), 1.2, 0.7, 0.7, (255, 255, 255))
    face.canvas.paste(balls, mask=mask)
    for side in (-1, 1):
        for line, colour, width in (
            (lower, face.skin * (0.72, 0.55, 0.52), 1),
            (upper, face.dark * 0.5, 2 + (p.lash > 0.8 * p.male)),
            (upper[3:] - (0, 1.9 + 0.6 * p.crease), face.skin * (0.66, 0.52, 0.49), 1),
        ):
            face.ink.line(face.flat(line * (side, 1), 1), fill=rgb(colour), width=width)


def brows(face: DrawnFace) -> None:
    """Two strokes that thin out, less dark in children."""
    p, x = face.p, face.eye_x
    y = face.eye_y - 9.4 - 0.9 * p.brow_y + 0.6 * p.male
    y = y - 0.5 * face.child + 0.8 * face.old - 0.5 * face.smile
    arch, tilt = 1.6 + 0.8 * p.brow_arch, 0.9 * p.brow_tilt
    ys = y + 0.4 + tilt, y - 0.7 - 0.5 * arch, y - arch - 0.4 * tilt, y + 1.6 - tilt + face.old
    spine = curve(points((x - 9.5 - p.brow_gap, x - 2, x + 6, x + 12.5), ys))
    thick = max(0.7, 1.5 + 0.6 * p.brow_thick + 0.6 * p.male - 0.6 * face.child)
    half = thick * np.linspace(1, 0.25, len(spine))[:, None] * (0, 1)
    bare = 0.2 + 0.3 * face.child
    hair = p.hair * (1 - 0.7 * face.grey) + GREY_HAIR * 0.7 * face.grey
    colour = 0.85 * hair * (1 - bare) + face.skin * 0.8 * bare
    brow = np.vstack([spine - half, (spine + half)[::-1]])
    for side in (-1, 1):
        face.ink.polygon(face.flat(brow * (side, 1), 1), fill=rgb(colour))


def nostrils_and_moles(face: DrawnFace) -> None:
    """What is a dark dot."""
    dots = both(0.48 * face.nose_w, face.nose_y + 3.2, 2.2, 1.5, 0.7)
    dots += [(x, y, 0.8, r, r) for x, y, r in face.p.moles]
    for x, y, depth, rx, ry in dots:
        face.dot(face.ink, (x, y), depth, rx, ry, rgb(face.dark * 0.75))


def mouth(face: DrawnFace) -> None:
    """Lips, the line between them or the teeth, a shine on the lower one."""
    p, w, y, gap = face.p, face.mouth_w, face.mouth_y, face.opening
    lift = 1.0 + 2.2 * face.smile + 0.5 * p.corners - 1.2 * face.old
    fullness = 1 - 0.42 * face.old
    up = (2.9 + 0.8 * p.upper_lip + 0.8 * p.melanin) * fullness
    low = (3.9 + 0.8 * p.lower_lip + 0.8 * p.melanin) * fullness
    lips = face.skin * ((0.88, 0.62, 0.61) - (1 - p.male) * face.adult * np.array((0, 0.06, 0.04)))
    corner = (w, y - lift)
    above = mirrored([corner, (0.5 * w, y - 0.3 * lift + 0.2), (0, y + 0.4)])
    below = above + [(0, 0), (0, 0.8 * gap), (0, gap), (0, 0.8 * gap), (0, 0)]
    ys = y - 0.72 * up - 0.3 * lift, y - up - 0.4 * p.bow, y - 0.75 * up + 0.4 * p.bow
    bow = mirrored([corner, *points((0.55 * w, 0.22 * w, 0), ys)])
    bottom = mirrored([corner, (0.6 * w, y + 0.65 * low + gap - 0.3 * lift), (0, y + low + gap)])
    lip = (bow, above, lips * 0.86), (below, bottom, lips), (above, below, (232, 226, 216))
    for one, other, colour in lip[: 2 + (gap > 0)]:
        outline = np.vstack([curve(one), curve(other)[::-1]])
        face.ink.polygon(face.flat(outline, 1.6), fill=rgb(colour))
    face.ink.line(face.flat(curve(above), 1.6), fill=rgb(face.dark * 0.7), width=2)
    shine = [(-0.3 * w, y + 0.5 * low + gap), (0.3 * w, y + 0.5 * low + gap)]
    face.ink.line(face.flat(shine, 1.6), fill=rgb(lips * 1.12), width=3)


def hairdo(face: DrawnFace) -> None:
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
    opacity = 0.55 + 0.45 * fade(face.age, 0, 2) - 0.25 * bald
    ink.polygon(face.flat(np.vstack([inner, outer[::-1]])), fill=int(255 * opacity))
    face.canvas.paste(strands, mask=mask)


def glasses(face: DrawnFace) -> None:
    """In some of the shots, of those who wear them."""
    if face.rng.random() < face.p.glasses * fade(face.age, 2, 30):
        x, y, colour = face.eye_x, face.eye_y, rgb(face.rng.uniform(20, 90, 3))
        for side in (-1, 1):
            cx, cy = face.flat([(side * x, y + 1)], 1.8)
            lens = cx - 24, cy - 16, cx + 24, cy + 17
            face.ink.rounded_rectangle(lens, 12, outline=colour, width=2)
            temple = face.flat([(side * (x + 12), y), (side * face.wide, y)], 0.8)
            face.ink.line(temple, fill=colour, width=3)
        face.ink.line(face.flat([(12 - x, y), (x - 12, y)], 1.8), fill=colour, width=3)
