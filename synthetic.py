"""Drawn faces with known identity and known age: the default data set, and the data of the tests and benchmarks.

    python3 synthetic.py data/drawn         # train/ and val/, a folder a person, 000_[age].jpg: 000_12.jpg at twelve
    python3 synthetic.py --sheet faces.png  # eight people growing old

`draw(identity, age, shot)` is a pure function. Identity decides bones, colours and hair; age decides proportions, wrinkles and
grey; shot decides what a photographer would: pose, light, expression, glasses, background, camera. Lengths are in pixels of the
112 high x 96 wide crop.
"""
import argparse
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
from PIL import Image
from tqdm import tqdm

from synthesis.face import Face


def draw(identity, age, shot):
    """One face -> uint8 (112, 96, 3), RGB. identity, shot: integers >= 0; age: years, 0..90."""
    face = Face(identity, age, shot)
    for paint in (face.behind, face.complexion, face.beard, face.eyes, face.brows, face.nostrils_and_moles, face.mouth, face.hairdo,
                  face.glasses):
        paint()
    return face.photograph()


def contact_sheet(people, ages, seed=0):
    """One row a person, one column an age -> PIL image. people: identities; ages: years."""
    rows = [np.hstack([draw(who, age, seed + k) for k, age in enumerate(ages)]) for who in people]
    return Image.fromarray(np.vstack(rows))


def write_person(folder, identity, ages):
    """One folder of JPEGs, 000_[age].jpg on; the shot number is the image's place."""
    os.makedirs(folder)
    for k, age in enumerate(ages):
        Image.fromarray(draw(identity, age, k)).save(os.path.join(folder, f"{k:03d}_{age}.jpg"), quality=95, subsampling=0)


def make(root, people=400, val_people=100, images=10, val_images=12, span=4, seed=0, workers=None, progress=True):
    """Write root/train and root/val. A training person is seen within `span` years, a validation person over a whole life.

    The two share nobody. root must not exist; it appears when everything in it has been written. Every person is drawn from
    (seed, number) alone, so the content does not depend on the number of worker processes.
    """
    root = os.path.abspath(root)
    if os.path.exists(root):
        raise FileExistsError(f"{root} exists already; remove it or choose another folder")
    building = f"{root}.{os.getpid()}.tmp"
    jobs = []
    for number in range(people + val_people):
        rng = np.random.default_rng(np.random.SeedSequence([seed, number]))
        if number < people:
            ages = rng.uniform(3, 80) + span * rng.uniform(-0.5, 0.5, images)
        else:
            ages = np.linspace(3, 85, val_images) + rng.uniform(-2, 2, val_images)
        ages = np.clip(np.rint(ages), 0, 90).astype(int).tolist()
        folder = os.path.join(building, "train" if number < people else "val", f"p{number:05d}")
        jobs.append((folder, int(rng.integers(2**62)), ages))
    workers = min(workers or os.cpu_count(), 1 + len(jobs) // 16)  # a process takes longer to start than a few people to draw
    try:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:  # starts nothing until the first map
            drawn = pool.map(write_person, *zip(*jobs), chunksize=4) if workers > 1 else map(write_person, *zip(*jobs))
            for _ in tqdm(drawn, total=len(jobs), disable=not progress, unit="person"):
                pass
        os.rename(building, root)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(description="Draw a data set of faces with known identity and age.")
    parser.add_argument("root", nargs="?", help="folder to write; must not exist")
    parser.add_argument("--people", type=int, default=400, help="training people")
    parser.add_argument("--val-people", type=int, default=100, help="validation people, none of them in training")
    parser.add_argument("--images", type=int, default=10, help="images a training person")
    parser.add_argument("--val-images", type=int, default=12, help="images a validation person, over a whole life")
    parser.add_argument("--span", type=float, default=4, help="years within which a training person is seen")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", metavar="FILE.png", help="write eight people growing old to this picture")
    args = parser.parse_args()
    if not args.root and not args.sheet:
        parser.error("nothing to do: give a folder, --sheet FILE.png, or both")
    if args.sheet:
        contact_sheet(range(args.seed, args.seed + 8), (2, 8, 16, 30, 45, 60, 75, 88), args.seed).save(args.sheet)
    if args.root:
        make(args.root, args.people, args.val_people, args.images, args.val_images, args.span, args.seed)


if __name__ == "__main__":
    main()
