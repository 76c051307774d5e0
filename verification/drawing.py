"""The picture of an answer, a PNG: two faces, or one and those that are most like it."""

import io

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from evaluation.pictures import GENUINE, IMPOSTOR, save

ROW = 6  # faces side by side


def draw_pair(portraits, looks, similarity, decision, path):
    """Two Portraits with their Looks; their similarity on the scale of what validation saw."""
    figure = Figure(figsize=(6.4, 4.6), layout='constrained')
    faces, scale = figure.subfigures(2, 1, height_ratios=(3, 1.25))
    for axis, portrait, look in zip(faces.subplots(1, 2), portraits, looks, strict=True):
        _show(axis, portrait.face, look.about.replace(' (', '\n('), 'black')
    tint = colour(decision.same(similarity))
    faces.suptitle(
        f'similarity {similarity:.3f}: {decision.verdict(similarity)}',
        color=tint,
        fontweight='bold',
    )
    axis, kinds = (
        scale.subplots(),
        ((decision.impostor, 'two people', IMPOSTOR), (decision.genuine, 'one person', GENUINE)),
    )
    for height, (percentiles, name, bar) in enumerate(kinds):
        if percentiles is not None:
            axis.barh(
                height, percentiles[95] - percentiles[5], left=percentiles[5], color=bar, alpha=0.5
            )
            axis.text(percentiles[5] - 0.02, height, name, ha='right', va='center', fontsize=8)
    if decision.threshold is not None:
        axis.axvline(decision.threshold, color='black', linestyle='--', linewidth=1)
    axis.plot(similarity, 0.5, marker='D', color=tint, markersize=9, clip_on=False)
    axis.set(xlim=(-1, 1), ylim=(-0.6, 1.6), yticks=[])
    beside = (
        ''
        if decision.genuine is None
        else ': this pair, the threshold, and the middle 90 % of pairs in validation'
    )
    axis.set_xlabel(f'similarity{beside}', fontsize=8)
    axis.tick_params(labelsize=8)
    save(figure, path)


def draw_found(portrait, look, found, decision, path):
    """The face that was looked for, and the Found, in order."""
    rows = -(-len(found) // ROW)
    figure = Figure(figsize=(1.5 * (ROW + 1), 2.35 * rows), layout='constrained')
    left, right = figure.subfigures(1, 2, width_ratios=(1, ROW))
    _show(
        left.subplots(),
        portrait.face,
        f'looked for\n{look.about.replace(" (", f"{chr(10)}(")}',
        'black',
    )
    axes = right.subplots(rows, ROW, squeeze=False).ravel()
    for axis in axes:
        axis.axis('off')
    for rank, (axis, one) in enumerate(zip(axes, found, strict=False), 1):
        title = f'{rank}: {one.similarity:.3f}\n{one.name[-22:]}\nlikeliest {one.look.group}'
        _show(
            axis,
            np.asarray(Image.open(io.BytesIO(one.face))),
            title,
            colour(decision.same(one.similarity)),
        )
    save(figure, path)


def colour(same):
    return 'black' if same is None else GENUINE if same else IMPOSTOR


def _show(axis, face, title, tint):
    axis.imshow(face)
    axis.set_title(title, fontsize=8, color=tint, parse_math=False)
    axis.axis('off')
