"""The skin and what is behind the head: a sum of soft blobs, with creases, freckles and beard."""

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from synthesis.face import HEIGHT, SS, WIDTH, Face
from synthesis.pens import both, curve, mirrored, ramp, rgb, tone


def behind(face: Face) -> None:
    """Hair behind the head, neck, clothes, ears."""
    wide, out = face.wide, face.wide + face.volume
    if face.p.length > 70:
        end = face.p.length
        back = [
            (0, end + 3),
            (out - 5, end + 2),
            (out + 1, end - 5),
            (out + 1, 60),
            *((x * out, y - 3) for x, y in face.skull),
        ]
        face.ink.polygon(face.flat(curve(mirrored(back))), fill=rgb(face.hair * 0.6))
    face.ink.polygon(
        face.flat([(-22, 80), (22, 80), (24, 130), (-24, 130)]),
        fill=rgb(face.skin * (0.66, 0.56, 0.52)),
    )
    cloth = [
        (-60, 108),
        (-26, 104),
        (-14, 114),
        (14, 114),
        (26, 104),
        (60, 108),
        (60, 140),
        (-60, 140),
    ]
    face.ink.polygon(face.flat(cloth), fill=rgb(face.rng.uniform(20, 235, 3)))
    lobe = 62 + 1.3 * face.p.ear + 2 * face.old
    for side in (-1, 1):
        ear = [
            (wide - 3, 52),
            (wide + 3, 49),
            (wide + 5, 54),
            (wide + 2.5, lobe),
            (wide - 3, lobe + 4),
        ]
        face.ink.polygon(
            face.flat(curve(ear) * (side, 1), -0.5), fill=rgb(face.skin * (0.86, 0.74, 0.70))
        )


def creases(face: Face) -> np.ndarray:
    """Folds, wrinkles, freckles and age spots -> their depth of colour (112, 96, 1), 0..255."""
    p, lined, laugh = face.p, face.lined, max(face.smile, 0)
    mouth_w, mouth_y = face.mouth_w, face.mouth_y
    eye_x, eye_y, nose_w, nose_y = face.eye_x, face.eye_y, face.nose_w, face.nose_y
    image, ink = face.layer()

    def crease(strength, depth, points, mirror=True):
        for side in (1, -1)[: 1 + mirror]:
            if strength > 0.02:
                ink.line(
                    face.flat(curve(points) * (side, 1), depth),
                    fill=int(255 * min(strength, 1)),
                    width=2,
                )

    for k in range(4):
        y, sag = 33 - 5 * k, 1.5 * np.sin(2.1 * k + 3 * p.part)
        crease(
            0.5 * lined - 0.06 * k,
            0.6,
            [
                (2 * k - 21, y + sag),
                (-9, y - 1.5),
                (0, y - 0.8),
                (9, y - 1.5 + sag / 2),
                (20 - k, y),
            ],
            False,
        )
    for k in (-1, 0, 1):
        x, y = eye_x + face.eye_w, eye_y + 1.2 * k
        crease(
            (0.45 + 0.2 * laugh) * lined - 0.05,
            0.8,
            [(x + 1.5, y), (x + 4, y + 0.9 * k + 0.3), (x + 6, y + 2.2 * k + 0.8)],
        )
    crease(0.5 * lined - 0.12, 1.4, [(2.5, eye_y - 9), (2, eye_y - 5)])
    crease(
        0.08 + 0.5 * lined,
        1,
        [(eye_x - 6, eye_y + 5.5), (eye_x - 1, eye_y + 7.5 + face.old), (eye_x + 6, eye_y + 6)],
    )
    crease(
        0.1 * face.adult + 0.65 * lined + 0.25 * laugh * face.adult,
        1.4,
        [(nose_w + 1.5, nose_y), (nose_w + 6, nose_y + 8), (mouth_w + 4, mouth_y - 1)],
    )
    crease(
        0.6 * lined - 0.15,
        1.2,
        [(mouth_w + 2, mouth_y + 2), (mouth_w + 3.5, mouth_y + 8), (mouth_w + 2, mouth_y + 13)],
    )
    crease(
        0.55,
        2,
        [
            (nose_w - 2, nose_y - 2.5),
            (nose_w, nose_y),
            (nose_w - 0.3, nose_y + 3),
            (nose_w - 2.5, nose_y + 3.6),
        ],
    )
    freckled = 0.5 * max(0, p.freckles - 0.6) * (p.melanin < 0.5) * ramp(face.age, 3, 9)
    for k, (x, y, radius) in enumerate(p.spots):
        strength = max(freckled * (52 < y < 80), 0.4 * face.old * (k % 2) - 0.12)
        if strength > 0.02:
            face.dot(ink, (x, y), 0.6, radius, radius, int(255 * min(strength, 1)))
    return np.asarray(image.reduce(SS).filter(ImageFilter.GaussianBlur(0.6)), np.float32)[..., None]


def complexion(face: Face) -> None:
    """The shaded skin: log colour is a sum of soft blobs, the head's roundness and creases."""
    p, child, old, adult = face.p, face.child, face.old, face.adult
    eye_x, eye_y, nose_w, nose_y = face.eye_x, face.eye_y, face.nose_w, face.nose_y
    mouth_y = face.mouth_y
    nose, slant = 1 - 0.5 * child, 0.05 * face.light
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
            *both(
                25 - 3 * child,
                75 + 3 * old,
                0.7,
                9,
                7,
                0.06 + 0.04 * child,
                -0.02 - 0.05 * child - 0.03 * p.flush,
                -0.03 - 0.03 * child,
            ),
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
    field += (0.05 - 0.28 * (x * x + y * y) ** 2 + 0.22 * face.light * x)[..., None] * np.float32(
        (1, 1.15, 1.25)
    )
    field -= creases(face) * np.float32((0.0018, 0.0026, 0.0027))
    blotches = Image.fromarray((p.blotches * (0.01 + 0.03 * old)).astype(np.float32)).resize(
        (WIDTH, HEIGHT), Image.BICUBIC
    )
    field += np.asarray(blotches)[..., None] * np.float32((0.6, 1, 1))
    skin = Image.fromarray(np.clip(np.float32(face.skin) * np.exp(field), 0, 255).astype(np.uint8))
    face.head, ink = face.layer()
    ink.polygon(face.flat(face.outline), fill=255)
    face.canvas.paste(skin.resize(face.canvas.size, Image.BILINEAR), mask=face.head)


def beard(face: Face) -> None:
    """A man's beard, as far as he has one, and none before 16."""
    strength = 0.6 * face.p.male * max(0, face.p.beard) * ramp(face.age, 16, 26)
    if strength:
        mask, ink = face.layer()
        jaw = face.outline[face.outline[:, 1] > 64]
        inner = curve(
            mirrored(
                [
                    (face.wide - 5, 66),
                    (face.cheek - 9, 78),
                    (20, 84),
                    (9, face.mouth_y - 7.5),
                    (0, face.mouth_y - 8),
                ]
            )
        )
        ink.polygon(
            face.flat(np.vstack([inner, jaw[len(jaw) // 2 :], jaw[: len(jaw) // 2]])),
            fill=int(255 * min(0.9, strength)),
        )
        soft = (
            mask.reduce(2 * SS)
            .filter(ImageFilter.GaussianBlur(0.7))
            .resize(mask.size, Image.BILINEAR)
        )
        face.canvas.paste(rgb(face.hair * 0.85), mask=ImageChops.darker(soft, face.head))
