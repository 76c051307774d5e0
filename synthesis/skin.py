"""The skin and what is behind the head: a sum of soft blobs, with creases, freckles and beard."""

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from synthesis.face import (
    HEIGHT,
    SS,
    WIDTH,
    DrawnFace,
    both,
    curve,
    fade,
    mirrored,
    points,
    rgb,
    tone,
)


def behind(face: DrawnFace) -> None:
    """Hair behind the head, neck, clothes, ears."""
    wide, out, ink = face.wide, face.wide + face.volume, face.ink
    if face.p.length > 70:
        end = face.p.length
        side = points((0, out - 5, out + 1, out + 1), (end + 3, end + 2, end - 5, 60))
        back = np.vstack([side, [(x * out, y - 3) for x, y in face.skull]])
        ink.polygon(face.flat(curve(mirrored(back))), fill=rgb(face.hair * 0.6))
    neck = points((-22, 22, 24, -24), (80, 80, 130, 130))
    ink.polygon(face.flat(neck), fill=rgb(face.skin * (0.66, 0.56, 0.52)))
    cloth = points((-60, -26, -14, 14, 26, 60, 60, -60), (108, 104, 114, 114, 104, 108, 140, 140))
    ink.polygon(face.flat(cloth), fill=rgb(face.rng.uniform(20, 235, 3)))
    lobe, xs = 62 + 1.3 * face.p.ear + 2 * face.old, wide + np.array([-3, 3, 5, 2.5, -3])
    ear = curve(points(xs, (52, 49, 54, lobe, lobe + 4)))
    for sign in (-1, 1):
        ink.polygon(face.flat(ear * (sign, 1), -0.5), fill=rgb(face.skin * (0.86, 0.74, 0.70)))


def creases(face: DrawnFace) -> np.ndarray:
    """Folds, wrinkles, freckles and age spots -> their depth of colour (112, 96, 1), 0..255."""
    p, lined, laugh = face.p, face.lined, max(face.smile, 0)
    mouth_w, mouth_y = face.mouth_w, face.mouth_y
    eye_x, eye_y, nose_w, nose_y = face.eye_x, face.eye_y, face.nose_w, face.nose_y
    image, ink = face.layer()

    def crease(strength, depth, xs, ys, mirror=True):
        for side in (1, -1)[: 1 + mirror]:
            if strength > 0.02:
                line = face.flat(curve(points(xs, ys)) * (side, 1), depth)
                ink.line(line, fill=int(255 * min(strength, 1)), width=2)

    for k in range(4):  # the forehead
        y, sag = 33 - 5 * k, 1.5 * np.sin(2.1 * k + 3 * p.part)
        line = y + sag, y - 1.5, y - 0.8, y - 1.5 + sag / 2, y
        crease(0.5 * lined - 0.06 * k, 0.6, (2 * k - 21, -9, 0, 9, 20 - k), line, False)
    for k in (-1, 0, 1):  # crow's feet
        x, y = eye_x + face.eye_w, eye_y + 1.2 * k
        strength = (0.45 + 0.2 * laugh) * lined - 0.05
        ys = y, y + 0.9 * k + 0.3, y + 2.2 * k + 0.8
        crease(strength, 0.8, (x + 1.5, x + 4, x + 6), ys)
    crease(0.5 * lined - 0.12, 1.4, (2.5, 2), (eye_y - 9, eye_y - 5))
    ys = eye_y + 5.5, eye_y + 7.5 + face.old, eye_y + 6  # below the eyes
    crease(0.08 + 0.5 * lined, 1, (eye_x - 6, eye_x - 1, eye_x + 6), ys)
    strength = 0.1 * face.adult + 0.65 * lined + 0.25 * laugh * face.adult  # nose to mouth
    xs = nose_w + 1.5, nose_w + 6, mouth_w + 4
    crease(strength, 1.4, xs, (nose_y, nose_y + 8, mouth_y - 1))
    xs = mouth_w + 2, mouth_w + 3.5, mouth_w + 2
    crease(0.6 * lined - 0.15, 1.2, xs, (mouth_y + 2, mouth_y + 8, mouth_y + 13))
    wing = nose_w - 2, nose_w, nose_w - 0.3, nose_w - 2.5  # of the nose
    crease(0.55, 2, wing, (nose_y - 2.5, nose_y, nose_y + 3, nose_y + 3.6))
    freckled = 0.5 * max(0, p.freckles - 0.6) * (p.melanin < 0.5) * fade(face.age, 3, 9)
    for k, (x, y, radius) in enumerate(p.spots):
        strength = max(freckled * (52 < y < 80), 0.4 * face.old * (k % 2) - 0.12)
        if strength > 0.02:
            face.dot(ink, (x, y), 0.6, radius, radius, int(255 * min(strength, 1)))
    return np.asarray(image.reduce(SS).filter(ImageFilter.GaussianBlur(0.6)), np.float32)[..., None]


def complexion(face: DrawnFace) -> None:
    """The shaded skin: log colour is a sum of soft blobs, the head's roundness and creases."""
    p, child, old, adult = face.p, face.child, face.old, face.adult
    eye_x, eye_y, nose_w, nose_y = face.eye_x, face.eye_y, face.nose_w, face.nose_y
    mouth_y = face.mouth_y
    nose, slant = 1 - 0.5 * child, 0.05 * face.light
    flush = 0.06 + 0.04 * child, -0.02 - 0.05 * child - 0.03 * p.flush, -0.03 - 0.03 * child
    blobs = np.array(
        [  # x, y, depth, half-width, half-height, then red, green, blue
            *both(*tone(-0.14 - 0.05 * old, eye_x, eye_y - 2, 1, 9, 5)),
            *both(*tone(-0.03 - 0.12 * old, eye_x, eye_y + 6 + old, 1, 7, 2.5)),
            *both(*tone(nose * (-0.10 - 0.03 * p.bridge), 5.5, eye_y - 2, 1.5, 3.5, 6)),
            tone(nose * (0.09 + 0.03 * p.bridge), 0, (eye_y + nose_y) / 2 - 2, 2, 2.2, 9),
            tone(nose * (slant - 0.06), 5, nose_y - 9, 2, 2.6, 8),
            tone(nose * (-slant - 0.06), -5, nose_y - 9, 2, 2.6, 8),
            tone(0.13, 0, nose_y - 1, 2.5, 3.4 + 0.4 * p.tip, 3),
            tone(-0.22, 0, nose_y + 5.5, 2, nose_w, 2.5),
            tone(-0.07, 0, mouth_y - 8, 1.6, 2, 3),
            tone(-0.14, 0, mouth_y + 8.5, 1.2, 10, 2.5),
            *both(25 - 3 * child, 75 + 3 * old, 0.7, 9, 7, *flush),
            *both(*tone(0.07, 25 + 0.8 * p.cheek, 67, 0.7, 8, 4)),
            *both(*tone(-0.08 * adult - 0.08 * old - 0.02 * p.cheek, 27, 85, 0.5, 6, 8)),
            tone(0.08, 0, face.chin_y - 6, 1.2, 8, 4),
            tone(-0.25, 0, face.chin_y + 1, 0, 30, 4),
            tone(0.08, 0, 28, 0.5, 22, 12),
        ]
    )
    at, blobs = face.place(blobs[:, :2], blobs[:, 2]).astype(np.float32), blobs.astype(np.float32)
    x, y = np.arange(WIDTH, dtype=np.float32) + 0.5, np.arange(HEIGHT, dtype=np.float32) + 0.5
    gx = np.exp(-0.5 * ((x - at[:, :1]) / blobs[:, 3:4]) ** 2)
    gy = np.exp(-0.5 * ((y - at[:, 1:]) / blobs[:, 4:5]) ** 2)
    field = np.stack([(gy * blobs[:, c, None]).T @ gx for c in (5, 6, 7)], 2)
    ((cx, cy),) = face.place([(0, 58)], 0.6)
    x, y = (x - cx) / face.wide, (y[:, None] - cy) / 62
    round_off = 0.05 - 0.28 * (x * x + y * y) ** 2 + 0.22 * face.light * x
    field += round_off[..., None] * np.array((1, 1.15, 1.25), np.float32)
    field -= creases(face) * np.array((0.0018, 0.0026, 0.0027), np.float32)
    blotches = Image.fromarray((p.blotches * (0.01 + 0.03 * old)).astype(np.float32))
    blotches = blotches.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    field += np.asarray(blotches)[..., None] * np.array((0.6, 1, 1), np.float32)
    skin = Image.fromarray(np.clip(np.float32(face.skin) * np.exp(field), 0, 255).astype(np.uint8))
    face.head, ink = face.layer()
    ink.polygon(face.flat(face.outline), fill=255)
    face.canvas.paste(skin.resize(face.canvas.size, Image.Resampling.BILINEAR), mask=face.head)


def beard(face: DrawnFace) -> None:
    """A man's beard, as far as he has one, and none before 16."""
    strength = 0.6 * face.p.male * max(0, face.p.beard) * fade(face.age, 16, 26)
    if strength:
        mask, ink = face.layer()
        jaw = face.outline[face.outline[:, 1] > 64]
        xs = face.wide - 5, face.cheek - 9, 20, 9, 0
        inner = curve(mirrored(points(xs, (66, 78, 84, face.mouth_y - 7.5, face.mouth_y - 8))))
        half = len(jaw) // 2
        edge = face.flat(np.vstack([inner, jaw[half:], jaw[:half]]))
        ink.polygon(edge, fill=int(255 * min(0.9, strength)))
        soft = mask.reduce(2 * SS).filter(ImageFilter.GaussianBlur(0.7))
        soft = soft.resize(mask.size, Image.Resampling.BILINEAR)
        face.canvas.paste(rgb(face.hair * 0.85), mask=ImageChops.darker(soft, face.head))
