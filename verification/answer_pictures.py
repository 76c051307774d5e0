"""The picture of an answer: two faces, or one and those that are most like it."""

from pathlib import Path

from matplotlib.figure import Figure

from evaluation.plots import GENUINE, IMPOSTOR, save
from verification.decision import Answer, Decision
from verification.index import Index
from verification.matcher import Features
from verification.portraits import cut_again

ROW = 6  # faces side by side


def draw_pair(two: list[Features], answer: Answer, decision: Decision, path: Path) -> None:
    """Two faces; their similarity on the scale of what validation saw."""
    figure = Figure(figsize=(6.4, 4.6), layout='constrained')
    faces, scale = figure.subfigures(2, 1, squeeze=False, height_ratios=(3, 1.25))[:, 0]
    for axis, one in zip(faces.subplots(1, 2), two, strict=True):
        _show(axis, one.portrait.face, one.age.about.replace(' (', '\n('), 'black')
    tint = colour(answer.same)
    title = f'similarity {answer.similarity:.3f}: {answer.verdict}'.replace(' (', '\n(')
    faces.suptitle(title, color=tint, fontweight='bold')
    axis = scale.subplots()
    different = decision.impostor, 'different people', IMPOSTOR
    kinds = different, (decision.genuine, 'one person', GENUINE)
    for height, (percentiles, name, bar) in enumerate(kinds):
        if percentiles is not None:
            low, high = percentiles[5], percentiles[95]
            axis.barh(height, high - low, left=low, color=bar, alpha=0.5)
            axis.text(low - 0.02, height, name, ha='right', va='center', fontsize=8)
    if answer.threshold is not None:
        axis.axvline(answer.threshold, color='black', linestyle='--', linewidth=1)
    axis.plot(answer.similarity, 0.5, marker='D', color=tint, markersize=9, clip_on=False)
    axis.set(xlim=(-1, 1), ylim=(-0.6, 1.6), yticks=[])
    beside = ': this pair, the threshold, and the middle 90 % of pairs in validation'
    axis.set_xlabel(f'similarity{"" if decision.genuine is None else beside}', fontsize=8)
    axis.tick_params(labelsize=8)
    save(figure, path)


def draw_found(features: Features, found: list[dict], archive: Index, path: Path) -> None:
    """The face that was looked for, and those found (Matcher.most_alike), in order."""
    rows = -(-len(found) // ROW)
    figure = Figure(figsize=(1.5 * (ROW + 1), 2.35 * rows), layout='constrained')
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1, ROW))[0]
    title = 'looked for\n' + features.age.about.replace(' (', '\n(').replace(', ', ',\n')
    _show(left.subplots(), features.portrait.face, title, 'black')
    axes = right.subplots(rows, ROW, squeeze=False).ravel()
    for axis in axes:
        axis.axis('off')
    for axis, one in zip(axes, found, strict=False):
        name = (one['person'] or one['photograph'])[-22:]
        age = f'about {one["age"]["years"]:.0f} years' if one['age'] else 'age unknown'
        title = f'{one["rank"]}: {one["similarity"]:.3f}\n{name}\n{age}'
        face = cut_again(archive.path(one['face']), archive.faces['points'][one['face']])
        _show(axis, face, title, colour(one['same']))
    save(figure, path)


def colour(same: bool | None) -> str:
    return 'black' if same is None else GENUINE if same else IMPOSTOR


def _show(axis, face, title, tint):
    axis.imshow(face)
    axis.set_title(title, fontsize=8, color=tint, parse_math=False)
    axis.axis('off')
