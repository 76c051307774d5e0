"""Drawn faces of known identity and age: the default data set, and that of tests and benchmarks.

python3 synthetic.py data/drawn         # train/ and val/, a folder a person: 000_[age].jpg
python3 synthetic.py --sheet faces.png  # eight people growing old
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from synthesis.drawing import draw, draw_set


def arguments(line: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    add = parser.add_argument
    add('root', nargs='?', help='folder to write; must not exist')
    add('--people', type=int, default=400, help='training people')
    add('--val-people', type=int, default=100, help='validation people, none of them in training')
    add('--images', type=int, default=10, help='images a training person')
    add('--val-images', type=int, default=12, help='images a validation person, over a whole life')
    add('--span', type=float, default=4, help='years within which a training person is seen')
    add('--seed', type=int, default=0)
    add('--sheet', metavar='FILE.png', help='write eight people growing old to this picture')
    args = parser.parse_args(line)
    if not args.root and not args.sheet:
        parser.error('nothing to do: give a folder, --sheet FILE.png, or both')
    if args.sheet and Path(args.sheet).suffix.lower() not in Image.registered_extensions():
        parser.error(f'--sheet {args.sheet}: not the name of a picture, as faces.png is')
    return args


def run() -> None:
    args = arguments()
    if args.sheet:
        ages, people = (2, 8, 16, 30, 45, 60, 75, 88), range(args.seed, args.seed + 8)
        lives = [[draw(who, age, args.seed + k) for k, age in enumerate(ages)] for who in people]
        Image.fromarray(np.vstack([np.hstack(life) for life in lives])).save(args.sheet)
    if args.root:
        sizes = args.people, args.val_people, args.images, args.val_images
        draw_set(args.root, *sizes, args.span, args.seed)


if __name__ == '__main__':
    from utils import one_line_errors  # with torch, which the processes that draw don't need

    with one_line_errors():
        run()
