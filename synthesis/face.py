"""A face, drawn in its own frame (x from the midline, y down the crop) and posed point by point."""
import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from synthesis.pens import both, curve, mirrored, ramp, rgb, tone
from synthesis.person import GREY_HAIR, person

HEIGHT, WIDTH, SS = 112, 96, 2  # shapes are drawn SS times as large and averaged down


class Face:
    """One person at one age in one shot: the bones as attributes, a layer a method."""

    def __init__(self, identity, age, shot):
        self.p = p = person(identity)
        self.rng = rng = np.random.default_rng(np.random.SeedSequence([23, identity, shot]))
        self.age = age
        self.child = child = np.exp(-((age / 11) ** 1.6))  # 1 at birth, 0.55 at eight, 0.07 at twenty
        self.adult = ramp(age, 8, 22)
        self.old = old = 1.3 * ramp(age, 25, 100)
        self.lined = max(0, (age - p.wrinkled_at) / 40 + 0.45) ** 1.5 * ramp(age, 18, 45)
        self.grey = ramp(age, p.grey_at - 20, p.grey_at + 22)
        self.bald = p.bald * ramp(age, 22, 70)

        roll, scale = np.radians(rng.normal(0, 2.5)), rng.normal(1, 0.02)
        self.turn = scale * np.array([[np.cos(roll), np.sin(roll)], [-np.sin(roll), np.cos(roll)]])
        self.origin = rng.normal((WIDTH / 2, 62), 1.2) - (0, 62) @ self.turn
        self.yaw, self.light = rng.normal(0, 1.2), rng.uniform(-1, 1)
        self.gaze, self.smile = rng.normal(0, 0.5, 2), np.clip(rng.normal(0.3, 0.5), -0.5, 1.2)
        self.opening = rng.uniform(1, 3.5) if self.smile > rng.uniform(0.3, 1.5) else 0

        self.eye_x = 17.6 + p.eye_x + 0.6 * child
        self.eye_y = 51.6 + 0.7 * p.eye_y + 4.5 * child
        self.eye_w = 7.2 + 0.6 * p.eye_size + 1.5 * child
        self.eye_h = max(1.7, 3.7 + 0.6 * p.eye_open + 1.9 * child - 0.9 * old - 0.5 * max(self.smile, 0))
        self.nose_y = 72.5 + 1.2 * p.nose_length - 0.8 * child + 1.4 * old
        self.nose_w = 7.2 + 1.1 * p.nose_width + 0.9 * p.melanin + 0.6 * p.male - 2.2 * child + 0.7 * old
        self.mouth_y = 92.0 + 0.8 * p.mouth_y - 2.5 * child
        self.mouth_w = 14.2 + 1.4 * p.mouth_width - 3.5 * child + 1.3 * max(self.smile, 0)
        self.chin_y = 109.5 + 1.6 * p.chin_length + p.male - 4 * child
        self.wide = 38 + 1.6 * p.width + 1.5 * child
        self.cheek = self.wide - 1.5 + 0.9 * p.cheek + 1.5 * child - 1.5 * old
        self.jaw = 29.5 + p.width + 2.2 * p.jaw + 1.3 * p.male + 3 * child + (1.5 + 0.7 * p.jowl) * old
        self.chin = 13 + 1.8 * p.chin_width + 1.5 * p.male + child + old
        self.skull = [(0.97, 22), (0.8, 3), (0.45, -6), (0, -8)]
        self.outline = curve(mirrored([
            (0, self.chin_y), (self.chin, self.chin_y - 2.5), (0.55 * self.chin + 0.5 * self.jaw, self.chin_y - 9), (self.jaw, 88),
            (self.cheek, 70), (self.wide, 50), *((x * self.wide, y) for x, y in self.skull)]))

        self.hair = p.hair * (1 + 0.3 * child) * (1 - self.grey) + GREY_HAIR * self.grey
        self.skin = p.skin * (1 - 0.06 * old)
        self.dark = self.skin * (0.55, 0.42, 0.40)  # lashes, nostrils, the gap between the lips
        self.volume = max(1, 4 + 1.3 * p.volume + 3 * p.curly - 3 * self.bald)
        self.canvas, self.ink = self.layer("RGB", rgb(rng.uniform(40, 225, 3) * 0.5 + rng.uniform(40, 225) * 0.5))

    # pens: points in the face's frame, depth 0 at the outline .. 2.5 at the tip of the nose, which moves most with yaw

    def layer(self, mode="L", colour=0):
        image = Image.new(mode, (WIDTH * SS, HEIGHT * SS), colour)
        return image, ImageDraw.Draw(image)

    def place(self, points, depth=0.0):
        """(k, 2) in the face's frame -> (k, 2) in pixels of the crop."""
        return np.asarray(points) @ self.turn + (self.origin + np.multiply.outer(self.yaw * depth, self.turn[0]))

    def flat(self, points, depth=0.0):
        return (SS * self.place(points, depth)).ravel().tolist()

    def dot(self, ink, xy, depth, rx, ry, colour):
        x, y = self.flat([xy], depth)
        ink.ellipse((x - SS * rx, y - SS * ry, x + SS * rx, y + SS * ry), fill=colour)

    # layers, back to front

    def behind(self):
        """Hair behind the head, neck, clothes, ears."""
        wide, out = self.wide, self.wide + self.volume
        if self.p.length > 70:
            end = self.p.length
            back = [(0, end + 3), (out - 5, end + 2), (out + 1, end - 5), (out + 1, 60), *((x * out, y - 3) for x, y in self.skull)]
            self.ink.polygon(self.flat(curve(mirrored(back))), fill=rgb(self.hair * 0.6))
        self.ink.polygon(self.flat([(-22, 80), (22, 80), (24, 130), (-24, 130)]), fill=rgb(self.skin * (0.66, 0.56, 0.52)))
        cloth = [(-60, 108), (-26, 104), (-14, 114), (14, 114), (26, 104), (60, 108), (60, 140), (-60, 140)]
        self.ink.polygon(self.flat(cloth), fill=rgb(self.rng.uniform(20, 235, 3)))
        lobe = 62 + 1.3 * self.p.ear + 2 * self.old
        for side in (-1, 1):
            ear = [(wide - 3, 52), (wide + 3, 49), (wide + 5, 54), (wide + 2.5, lobe), (wide - 3, lobe + 4)]
            self.ink.polygon(self.flat(curve(ear) * (side, 1), -0.5), fill=rgb(self.skin * (0.86, 0.74, 0.70)))

    def creases(self):
        """Folds, wrinkles, freckles and age spots -> their depth of colour (112, 96, 1), 0..255."""
        p, lined, laugh, mouth_w, mouth_y = self.p, self.lined, max(self.smile, 0), self.mouth_w, self.mouth_y
        eye_x, eye_y, nose_w, nose_y = self.eye_x, self.eye_y, self.nose_w, self.nose_y
        image, ink = self.layer()

        def crease(strength, depth, points, mirror=True):
            for side in (1, -1)[: 1 + mirror]:
                if strength > 0.02:
                    ink.line(self.flat(curve(points) * (side, 1), depth), fill=int(255 * min(strength, 1)), width=2)

        for k in range(4):
            y, sag = 33 - 5 * k, 1.5 * np.sin(2.1 * k + 3 * p.part)
            crease(0.5 * lined - 0.06 * k, 0.6, [(2 * k - 21, y + sag), (-9, y - 1.5), (0, y - 0.8), (9, y - 1.5 + sag / 2), (20 - k, y)], False)
        for k in (-1, 0, 1):
            x, y = eye_x + self.eye_w, eye_y + 1.2 * k
            crease((0.45 + 0.2 * laugh) * lined - 0.05, 0.8, [(x + 1.5, y), (x + 4, y + 0.9 * k + 0.3), (x + 6, y + 2.2 * k + 0.8)])
        crease(0.5 * lined - 0.12, 1.4, [(2.5, eye_y - 9), (2, eye_y - 5)])
        crease(0.08 + 0.5 * lined, 1, [(eye_x - 6, eye_y + 5.5), (eye_x - 1, eye_y + 7.5 + self.old), (eye_x + 6, eye_y + 6)])
        crease(0.1 * self.adult + 0.65 * lined + 0.25 * laugh * self.adult, 1.4,
               [(nose_w + 1.5, nose_y), (nose_w + 6, nose_y + 8), (mouth_w + 4, mouth_y - 1)])
        crease(0.6 * lined - 0.15, 1.2, [(mouth_w + 2, mouth_y + 2), (mouth_w + 3.5, mouth_y + 8), (mouth_w + 2, mouth_y + 13)])
        crease(0.55, 2, [(nose_w - 2, nose_y - 2.5), (nose_w, nose_y), (nose_w - 0.3, nose_y + 3), (nose_w - 2.5, nose_y + 3.6)])
        freckled = 0.5 * max(0, p.freckles - 0.6) * (p.melanin < 0.5) * ramp(self.age, 3, 9)
        for k, (x, y, radius) in enumerate(p.spots):
            strength = max(freckled * (52 < y < 80), 0.4 * self.old * (k % 2) - 0.12)
            if strength > 0.02:
                self.dot(ink, (x, y), 0.6, radius, radius, int(255 * min(strength, 1)))
        return np.asarray(image.reduce(SS).filter(ImageFilter.GaussianBlur(0.6)), np.float32)[..., None]

    def complexion(self):
        """The shaded skin: log colour is a sum of soft blobs, a rounding towards the outline, creases and blotches."""
        p, child, old, adult = self.p, self.child, self.old, self.adult
        eye_x, eye_y, nose_w, nose_y, mouth_y = self.eye_x, self.eye_y, self.nose_w, self.nose_y, self.mouth_y
        nose, slant = 1 - 0.5 * child, 0.05 * self.light
        blobs = np.array([  # x, y, depth, half-width, half-height, then red, green, blue
            *both(*tone(-0.14 - 0.05 * old, eye_x, eye_y - 2, 1, 9, 5)), *both(*tone(-0.03 - 0.12 * old, eye_x, eye_y + 6 + old, 1, 7, 2.5)),
            *both(*tone(nose * (-0.10 - 0.03 * p.bridge), 5.5, eye_y - 2, 1.5, 3.5, 6)),
            tone(nose * (0.09 + 0.03 * p.bridge), 0, (eye_y + nose_y) / 2 - 2, 2, 2.2, 9),
            tone(nose * (slant - 0.06), 5, nose_y - 9, 2, 2.6, 8), tone(nose * (-slant - 0.06), -5, nose_y - 9, 2, 2.6, 8),
            tone(0.13, 0, nose_y - 1, 2.5, 3.4 + 0.4 * p.tip, 3), tone(-0.22, 0, nose_y + 5.5, 2, nose_w, 2.5),
            tone(-0.07, 0, mouth_y - 8, 1.6, 2, 3), tone(-0.14, 0, mouth_y + 8.5, 1.2, 10, 2.5),
            *both(25 - 3 * child, 75 + 3 * old, 0.7, 9, 7, 0.06 + 0.04 * child, -0.02 - 0.05 * child - 0.03 * p.flush, -0.03 - 0.03 * child),
            *both(*tone(0.07, 25 + 0.8 * p.cheek, 67, 0.7, 8, 4)),
            *both(*tone(-0.08 * adult - 0.08 * old - 0.02 * p.cheek, 27, 85, 0.5, 6, 8)),
            tone(0.08, 0, self.chin_y - 6, 1.2, 8, 4), tone(-0.25, 0, self.chin_y + 1, 0, 30, 4), tone(0.08, 0, 28, 0.5, 22, 12)])
        at, blobs = self.place(blobs[:, :2], blobs[:, 2]).astype(np.float32), blobs.astype(np.float32)
        x, y = np.arange(WIDTH, dtype=np.float32) + 0.5, np.arange(HEIGHT, dtype=np.float32) + 0.5
        gx = np.exp(-0.5 * ((x - at[:, :1]) / blobs[:, 3:4]) ** 2)
        gy = np.exp(-0.5 * ((y - at[:, 1:]) / blobs[:, 4:5]) ** 2)
        field = np.stack([(gy * blobs[:, c, None]).T @ gx for c in (5, 6, 7)], 2)
        (cx, cy), = self.place([(0, 58)], 0.6)
        x, y = (x - cx) / self.wide, (y[:, None] - cy) / 62
        field += (0.05 - 0.28 * (x * x + y * y) ** 2 + 0.22 * self.light * x)[..., None] * np.float32((1, 1.15, 1.25))
        field -= self.creases() * np.float32((0.0018, 0.0026, 0.0027))
        blotches = Image.fromarray((p.blotches * (0.01 + 0.03 * old)).astype(np.float32)).resize((WIDTH, HEIGHT), Image.BICUBIC)
        field += np.asarray(blotches)[..., None] * np.float32((0.6, 1, 1))
        skin = Image.fromarray(np.clip(np.float32(self.skin) * np.exp(field), 0, 255).astype(np.uint8))
        self.head, ink = self.layer()
        ink.polygon(self.flat(self.outline), fill=255)
        self.canvas.paste(skin.resize(self.canvas.size, Image.BILINEAR), mask=self.head)

    def beard(self):
        strength = 0.6 * self.p.male * max(0, self.p.beard) * ramp(self.age, 16, 26)
        if strength:
            mask, ink = self.layer()
            jaw = self.outline[self.outline[:, 1] > 64]
            inner = curve(mirrored([(self.wide - 5, 66), (self.cheek - 9, 78), (20, 84), (9, self.mouth_y - 7.5), (0, self.mouth_y - 8)]))
            ink.polygon(self.flat(np.vstack([inner, jaw[len(jaw) // 2 :], jaw[: len(jaw) // 2]])), fill=int(255 * min(0.9, strength)))
            soft = mask.reduce(2 * SS).filter(ImageFilter.GaussianBlur(0.7)).resize(mask.size, Image.BILINEAR)
            self.canvas.paste(rgb(self.hair * 0.85), mask=ImageChops.darker(soft, self.head))

    def eyes(self):
        p, x, y, w, h = self.p, self.eye_x, self.eye_y, self.eye_w, self.eye_h
        balls, ink = self.layer("RGB", rgb((240 - 8 * self.old, 236 - 14 * self.old, 232 - 22 * self.old)))
        mask, hole = self.layer()
        tilt, iris = 0.7 * p.eye_tilt + 0.5 - 1.2 * self.old, 3.5 + 0.6 * self.child
        inner, hood, outer = (x - w, y + 1), (x + 0.6 * w, y - 0.75 * h - 0.4 * tilt + 0.8 * self.old), (x + w, y - tilt)
        upper = curve([inner, (x - 0.5 * w, y - 0.8 * h), (x, y - h), hood, outer])
        lower = curve([outer, (x + 0.4 * w, y + 0.7 * h), (x - 0.4 * w, y + 0.75 * h), inner])
        for side in (-1, 1):
            hole.polygon(self.flat(np.vstack([upper, lower]) * (side, 1), 1), fill=255)
            ink.line(self.flat((upper + (0, 0.6)) * (side, 1), 1), fill=(176, 168, 166), width=4)
            centre = np.array([side * x, y - 0.3]) + self.gaze * (1, 0.6)
            for radius, colour in ((iris, p.iris * 0.55), (iris - 0.7, p.iris * 1.15), (1.6 + 0.2 * self.child, (12, 10, 12))):
                self.dot(ink, centre, 1.2, radius, radius, rgb(colour))
            self.dot(ink, centre + (1 + 0.5 * self.light, -1.3), 1.2, 0.7, 0.7, (255, 255, 255))
        self.canvas.paste(balls, mask=mask)
        for side in (-1, 1):
            for line, colour, width in ((lower, self.skin * (0.72, 0.55, 0.52), 1), (upper, self.dark * 0.5, 2 + (p.lash > 0.8 * p.male)),
                                        (upper[3:] - (0, 1.9 + 0.6 * p.crease), self.skin * (0.66, 0.52, 0.49), 1)):
                self.ink.line(self.flat(line * (side, 1), 1), fill=rgb(colour), width=width)

    def brows(self):
        p, x = self.p, self.eye_x
        y = self.eye_y - 9.4 - 0.9 * p.brow_y + 0.6 * p.male - 0.5 * self.child + 0.8 * self.old - 0.5 * self.smile
        arch, tilt = 1.6 + 0.8 * p.brow_arch, 0.9 * p.brow_tilt
        spine = curve([(x - 9.5 - p.brow_gap, y + 0.4 + tilt), (x - 2, y - 0.7 - 0.5 * arch), (x + 6, y - arch - 0.4 * tilt),
                       (x + 12.5, y + 1.6 - tilt + self.old)])
        half = max(0.7, 1.5 + 0.6 * p.brow_thick + 0.6 * p.male - 0.6 * self.child) * np.linspace(1, 0.25, len(spine))[:, None] * (0, 1)
        bare = 0.2 + 0.3 * self.child
        colour = 0.85 * (p.hair * (1 - 0.7 * self.grey) + GREY_HAIR * 0.7 * self.grey) * (1 - bare) + self.skin * 0.8 * bare
        for side in (-1, 1):
            self.ink.polygon(self.flat(np.vstack([spine - half, (spine + half)[::-1]]) * (side, 1), 1), fill=rgb(colour))

    def nostrils_and_moles(self):
        dots = both(0.48 * self.nose_w, self.nose_y + 3.2, 2.2, 1.5, 0.7) + [(x, y, 0.8, r, r) for x, y, r in self.p.moles]
        for x, y, depth, rx, ry in dots:
            self.dot(self.ink, (x, y), depth, rx, ry, rgb(self.dark * 0.75))

    def mouth(self):
        p, w, y, gap = self.p, self.mouth_w, self.mouth_y, self.opening
        lift = 1.0 + 2.2 * self.smile + 0.5 * p.corners - 1.2 * self.old
        up, low = ((base + 0.8 * trait + 0.8 * p.melanin) * (1 - 0.42 * self.old) for base, trait in ((2.9, p.upper_lip), (3.9, p.lower_lip)))
        lips = self.skin * ((0.88, 0.62, 0.61) - (1 - p.male) * self.adult * np.array((0, 0.06, 0.04)))
        corner = (w, y - lift)
        above = mirrored([corner, (0.5 * w, y - 0.3 * lift + 0.2), (0, y + 0.4)])
        below = above + [(0, 0), (0, 0.8 * gap), (0, gap), (0, 0.8 * gap), (0, 0)]
        bow = mirrored([corner, (0.55 * w, y - 0.72 * up - 0.3 * lift), (0.22 * w, y - up - 0.4 * p.bow), (0, y - 0.75 * up + 0.4 * p.bow)])
        bottom = mirrored([corner, (0.6 * w, y + 0.65 * low + gap - 0.3 * lift), (0, y + low + gap)])
        for one, other, colour in ((bow, above, lips * 0.86), (below, bottom, lips), (above, below, (232, 226, 216)))[: 2 + (gap > 0)]:
            self.ink.polygon(self.flat(np.vstack([curve(one), curve(other)[::-1]]), 1.6), fill=rgb(colour))
        self.ink.line(self.flat(curve(above), 1.6), fill=rgb(self.dark * 0.7), width=2)
        shine = [(-0.3 * w, y + 0.5 * low + gap), (0.3 * w, y + 0.5 * low + gap)]
        self.ink.line(self.flat(shine, 1.6), fill=rgb(lips * 1.12), width=3)

    def hairdo(self):
        """A band from the hairline to the outside of the head, with strands along it or curls in it."""
        p, wide, out, length, bald, rng = self.p, self.wide, self.wide + self.volume, self.p.length, self.bald, self.rng
        long = length > 70
        u = np.linspace(1, -1, 7)
        y = 15 - 1.8 * p.hairline - 2 * self.child + 2 * (1 - p.male) - 30 * bald
        y = y + (max(0, 9 + 4 * p.sweep) if long else 3) * (u - np.clip(0.3 * p.part, -0.6, 0.6)) ** 2
        y += 7 * max(0, p.fringe) * max(0, 1 - 2 * bald) * (1 - 0.3 * np.sin(3 * u + p.part))
        y += (5 * bald + max(0, p.widow)) * np.exp(-((u / 0.3) ** 2))
        ear = min(length, 62) - 6
        side = np.array([((0.84 if long else 0.97) * wide, length), (0.97 * wide, ear), (0.94 * wide, 40), (0.87 * wide, 30 - 15 * bald)])
        inner = curve(np.vstack([side, np.stack([0.74 * wide * u, y], 1), side[::-1] * (-1, 1)]))
        side = np.array([(out + 1 if long else wide + 0.5, length), (out, ear - 4), (out + 0.5, 38), (0.99 * out, 24)])
        dome = [(x * out, y - 0.7 * self.volume) for x, y in ((0.93, 13), (0.76, 2), (0.42, -5), (0, -7))]
        outer = curve(np.vstack([side, mirrored(dome), side[::-1] * (-1, 1)]))
        strands, ink = self.layer("RGB", rgb(self.hair))
        if p.curly:
            t, s, shades = rng.integers(0, len(inner), 110), rng.random((110, 1)), rng.uniform(0.8, 1.2, 110)
            for (x, y), shade in zip(SS * self.place(inner[t] * (1 - s) + outer[t] * s), shades):
                ink.arc((x - 4, y - 4, x + 4, y + 4), 0, 260, fill=rgb(self.hair * shade), width=2)
        else:
            for s, shade in zip(np.linspace(0, 1, 20) ** 1.3, rng.uniform(0.75, 1.25, 20)):
                ink.line(self.flat(inner * (1 - s) + outer * s), fill=rgb(self.hair * shade), width=2)
        mask, ink = self.layer()
        ink.polygon(self.flat(np.vstack([inner, outer[::-1]])), fill=int(255 * (0.55 + 0.45 * ramp(self.age, 0, 2) - 0.25 * bald)))
        self.canvas.paste(strands, mask=mask)

    def glasses(self):
        if self.rng.random() < self.p.glasses * ramp(self.age, 2, 30):
            x, y, colour = self.eye_x, self.eye_y, rgb(self.rng.uniform(20, 90, 3))
            for side in (-1, 1):
                cx, cy = self.flat([(side * x, y + 1)], 1.8)
                self.ink.rounded_rectangle((cx - 24, cy - 16, cx + 24, cy + 17), 12, outline=colour, width=2)
                self.ink.line(self.flat([(side * (x + 12), y), (side * self.wide, y)], 0.8), fill=colour, width=3)
            self.ink.line(self.flat([(12 - x, y), (x - 12, y)], 1.8), fill=colour, width=3)

    def photograph(self):
        """Blur, contrast, exposure, colour cast, uneven light and sensor noise -> uint8 (112, 96, 3)."""
        rng = self.rng
        image = self.canvas.reduce(SS).filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 0.8)))
        image = (np.asarray(image, np.float32) - 128) * rng.normal(1, 0.07) + 128
        across, down = np.linspace(-0.5, 0.5, WIDTH) * self.light * 0.2, np.linspace(-0.5, 0.5, HEIGHT) * rng.normal(0, 0.15)
        gain = rng.normal(1, 0.08) * rng.normal(1, 0.03, 3) * (1 + across[None, :, None] + down[:, None, None])
        image = image * gain.astype(np.float32) + rng.uniform(1, 5) * rng.standard_normal(image.shape, np.float32)
        return np.clip(image, 0, 255).astype(np.uint8)
