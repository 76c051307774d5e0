"""Is this the same person, years on? Who of these is it? Which of all these are one person?

    python3 verify.py weights a.jpg b.jpg                 # similarity, decision, estimated ages
    python3 verify.py weights a.jpg b.jpg --ages 4 30 --far 1e-3     # decided for these ages
    python3 verify.py weights --pairs pairs.csv           # first,second[,first_age,second_age]
    python3 verify.py weights --index FOLDER [archive.index]         # embed an archive once
    python3 verify.py weights --find face.jpg archive.index          # or a folder
    python3 verify.py weights --group archive.index [OUT]            # who is who, a group each
    python3 verify.py weights --serve [archive.index [OUT]]  # page and API: http://127.0.0.1:8000/
    python3 verify.py weights --calibrate NAME            # thresholds from people of your own

An image of 112 high × 96 wide, or of 112×112, is taken for an aligned face; in any other the faces
are found and aligned: the largest of a photograph to compare or to look for, all of an archive.
Validation leaves in the weights what the decision goes by; --calibrate NAME, an entry of meta.py,
makes it from other people, into a file beside the weights.

Exit status: 0 the same person, or all else that was asked is done; 3 different people, or nobody
found above the threshold; 4 no threshold is known; 1 an error; 2 a wrong command line.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import utils
from recognition.weights import load_weights
from system.locks import Interrupt, Interrupted
from verification import decision, enrolment, pair_table, portraits
from verification.index import Index
from verification.matcher import Features, Matcher, about_search
from verification.people_files import table_text

SAME, OTHER, UNDECIDED = 0, 3, 4  # exit statuses; 1 is an error's, 2 argparse's


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, share, years = parser.add_argument, between(1e-9, 1 - 1e-9), between(0, 120)
    count, port = between(1, 1e6, int), between(1, 2**16 - 1, int)
    add('weights', help='best.pth, epoch_*.pth or last.pth of a training')
    add('images', nargs='*', metavar='image', help='two images to compare')
    add('--find', nargs=2, metavar=('FACE', 'WHERE'), help='look for FACE in an index or a folder')
    add('--pairs', type=Path, metavar='CSV', help='compare many pairs; images from its folder on')
    add('--index', nargs='+', metavar='FOLDER', help='make or update an index: FOLDER [FILE]')
    add('--group', nargs='+', metavar='INDEX', help='the people of an archive: INDEX [OUT]')
    add('--serve', nargs='*', metavar='WHERE', help='the page, of an archive: [INDEX [OUT]]')
    add('--calibrate', metavar='NAME', help='thresholds from an entry of meta.py')
    add('--json', action='store_true', help='answers as JSON')
    add('--out', type=Path, metavar='FILE', help='a drawing of the answer; --pairs: the table')
    add('--backbone', metavar='NAME', help='the weights are that network as others publish it')
    add('--ctx', type=int, default=-1, help='the GPU to use; below 0, the default, the CPU')
    add = parser.add_argument_group('how a pair is decided').add_argument
    add('--ages', nargs='+', type=years, metavar='A', help='ages of the two images, or of FACE')
    add('--far', type=share, metavar='RATE', help='accept this share of pairs of different people')
    add('--threshold', type=between(-1, 1), metavar='T', help='decide at this similarity, −1 to 1')
    add = parser.add_argument_group('with --group').add_argument
    add('--sure', type=share, metavar='P', help='join at this P of one person (default 0.5)')
    add('--keep', type=Path, metavar='CSV', help='corrections (default OUT/people.csv, if there)')
    add('--same-photograph', action='store_true', help='its faces may be one person: mirrors')
    add('--suggest', action='store_true', help='list pairs of groups that may be one person')
    add('--xmp', action='store_true', help='names and boxes into sidecars beside the photographs')
    add = parser.add_argument_group('with --index, --group, --find or --serve').add_argument
    whose = '--index: folders below FOLDER are people; --group: an INDEX made so'
    add('--people', nargs='?', const=True, metavar='INDEX', help=whose)
    add('--top', type=count, default=12, metavar='K', help='--find: how many (default 12)')
    add('--host', default='127.0.0.1', help='--serve: the address to listen on (this machine only)')
    add('--port', type=port, default=8000, help='--serve: the port (default 8000)')
    args = parser.parse_intermixed_args(argv)
    modes = [args.find, args.pairs, args.index, args.group, args.calibrate, args.serve]
    modes.append(args.images or None)
    is_one = sum(mode is not None for mode in modes) == 1 and len(args.images) in (0, 2)
    ages = 2 if args.images else 1 if args.find else 0
    places = args.index or args.group or args.serve or ()
    people = args.people is None or (args.index if args.people is True else args.group)
    of_group = args.sure or args.keep or args.same_photograph or args.suggest or args.xmp
    for right, message in (
        (is_one, 'give two images, or one of --find --pairs --index --group --serve --calibrate'),
        (args.far is None or args.threshold is None, 'give --far or --threshold, not both'),
        (len(args.ages or ()) in (0, ages), '--ages: two with two images, one with --find'),
        (len(places) <= 2, '--index takes FOLDER [FILE], --group and --serve INDEX [OUT]'),
        (people, '--people belongs to --index, and with --group names an index'),
        (args.group or not of_group, '--sure --keep --suggest --xmp belong to --group'),
    ):
        if not right:
            parser.error(message)
    return args


def between(low: float, high: float, kind: type = float) -> Callable[[str], float]:
    """A type of argparse: numbers from `low` to `high`."""

    def number(text: str) -> float:
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f'{text} is not between {low:g} and {high:g}')
        return value

    return number


def matcher(args: argparse.Namespace) -> Matcher:
    """The Matcher of the command line. Raises UserError if the weights can't be used."""
    device = utils.pick_device(args.ctx)
    model, info = load_weights(args.weights, device, args.backbone)
    known = decision.read_decision(info)
    if args.threshold is not None:
        known = known._replace(threshold=args.threshold, given=True)
    return Matcher(model, info, device, known)


def compare(args: argparse.Namespace, known: Matcher) -> int:
    """Two images: prints the decision, and draws it into --out."""
    two = known.features([portraits.read_portrait_file(path, known.width) for path in args.images])
    answer = known.compare(two[0], two[1], args.ages or (None, None), args.far)
    if args.json:
        print(json.dumps({'faces': [one.facts() for one in two], **answer.facts()}))
    else:
        for one in two:
            print(f'{one.portrait.name}: {one.portrait.about}; {one.age.about}')
        print(f'similarity {answer.similarity:.3f}: {answer.verdict}')
        for line in answer.details(known.decision):
            print(line)
    if args.out:
        from verification import answer_pictures  # matplotlib is slow to import

        answer_pictures.draw_pair(two, answer, known.decision, args.out)
        _drawn(args)
    return _status([answer.same])


def find(args: argparse.Namespace, known: Matcher) -> int:
    """One image among an archive's: prints the ranking and draws it."""
    face, where = args.find
    (features,) = known.features([portraits.read_portrait_file(face, known.width)])
    archive = read_archive(known, where)
    age = args.ages[0] if args.ages else None
    found = known.most_alike(archive, features, args.top, age, args.far, face)
    if not found:
        raise utils.DataError(f'{where}: no other face than the one that is looked for')
    if args.json:
        print(json.dumps(about_search(features, where, archive, found)))
    else:
        print_found(known, features, archive, found)
    if args.out:
        from verification import answer_pictures

        answer_pictures.draw_found(features, found, archive, args.out)
        _drawn(args)
    return _status([one['same'] for one in found])


def read_archive(known: Matcher, where: str) -> Index:
    """An index file; or a folder, embedded for this once."""
    if os.path.isdir(where):
        return enrolment.read_folder(known, where)
    return Index.open(where, known.info.sha256)


def print_found(known: Matcher, features: Features, archive: Index, found: list[dict]) -> None:
    portrait, among = features.portrait, f'among {len(archive)} faces'
    print(f'{portrait.name}: {portrait.about}; {features.age.about}; {among}:')
    for one in found:
        star, who = '*' if one['same'] else ' ', f'{one["person"]}: ' if one['person'] else ''
        box = '' if archive.is_aligned(one['face']) else ' [{:.0f} {:.0f} {:.0f} {:.0f}]'
        where = f'{who}{one["photograph"]}{box.format(*one["box"])}'
        age = known.age_in(archive.faces[one['face']]).about
        print(f'{one["rank"]:3} {one["similarity"]:.3f}{star}  {where}; {age}')
    first = found[0]
    if first['threshold'] is not None:
        which = 'for its ages' if first['by'] == 'ages' else f'of {first["threshold"]:.3f}'
        many = 'which is meant for one pair: among many faces other people pass it too'
        print(f'* above the threshold {which}, {many}')
    if first['far'] is not None:
        print(decision.rate_holds(first['fitted_on']))
    for caution in dict.fromkeys(one['caution'] for one in found if one['caution']):
        print(f'note: {caution}')
    _list(archive.left_out, 'images left out')


def compare_table(args: argparse.Namespace, known: Matcher) -> None:
    """Every row of a CSV: a table, or with --json a line of JSON each, to --out or the screen."""
    rows, unknown = pair_table.read_pairs(args.pairs)
    if unknown:
        print(f'{args.pairs}: columns not used: {", ".join(unknown)}', file=sys.stderr)
    results = list(pair_table.compare_all(known, rows, str(args.pairs.parent), args.far))
    if args.json:
        text = ''.join(json.dumps(result) + '\n' for result in results)
    else:
        text = table_text(results[0], results)
    if args.out:
        utils.write_whole(args.out, lambda temporary: temporary.write_text(text, 'utf-8'))
        print(f'{args.out}: {len(results)} pairs', file=sys.stderr)
    else:
        print(text, end='')
    bad = [result['error'] for result in results if result['error']]
    if bad:
        raise utils.DataError(f'{len(bad)} of {len(results)} pairs not compared: {bad[0]}')


def index(args: argparse.Namespace, known: Matcher) -> None:
    """Makes or updates the index of a folder."""
    folder, *path = args.index
    file = Path(*path or [f'{Path(folder).resolve().name}.index'])
    archive, counts, passed = enrolment.update_index(known, folder, file, bool(args.people))
    people, images, left_out = len(archive.people), len(archive.rows), archive.left_out
    if args.json:
        facts = {'index': str(file), 'faces': len(archive), 'photographs': images}
        facts |= {'people': people, 'left_out': len(left_out), **counts, 'passed_over': passed}
        print(json.dumps(facts))
        return
    of = f' of {people} people' if args.people else ''
    changes = ', '.join(f'{count} {kind}' for kind, count in counts.items())
    print(f'{file}: {len(archive)} faces{of} in {images} images ({changes})')
    _list(left_out, 'without a face')
    _list(passed, 'passed over', 12)


def group(args: argparse.Namespace, known: Matcher) -> None:
    """The people of an archive, into people.csv and its companions, and a sheet each."""
    from verification import people, people_files, sidecars

    out, archive = people_file(*args.group).parent, read_archive(known, args.group[0])
    named = Index.open(args.people, known.info.sha256) if args.people else None
    options = args.sure or 0.5, args.same_photograph, args.suggest
    try:
        with Interrupt(at_once=True):
            rows, said = people.group_archive(known, archive, out, args.keep, named, *options)
            print(*said, sep='\n', file=sys.stderr if args.json else sys.stdout)
            if args.xmp:
                _list(sidecars.write_sidecars(archive, rows), 'without a sidecar')
            people_files.draw_sheets(archive, rows, out / 'sheets')
    except (Interrupted, KeyboardInterrupt):
        raise utils.UserError(f'stopped: {out} is whole; the same command goes on') from None
    if args.json:
        print((out / 'people.json').read_text('utf-8'), end='')


def people_file(index: str, out: str = '') -> Path:
    """The people.csv of an index's groups, by default in a folder of its name."""
    return Path(out or f'{Path(index).stem}-people', 'people.csv')


def calibrate(args: argparse.Namespace, known: Matcher) -> None:
    """Thresholds and probabilities from a data set's people, into a file beside the weights."""
    from verification import calibrating

    path = decision.calibration_file(args.weights)
    if path.exists():
        raise utils.UserError(f'{path} is there already: remove it to calibrate again')
    for line in calibrating.calibrate_people(known, args.calibrate, path):
        print(line)


def serve(args: argparse.Namespace, known: Matcher) -> None:
    """The page, until it is interrupted."""
    try:
        from verification import page, service
    except ImportError as error:
        remedy = 'pip install -r requirements-serve.txt'
        raise utils.UserError(f'the page needs {error.name}: {remedy}') from None
    where, out = [*args.serve, '', ''][:2]
    archive = read_archive(known, where) if where else None
    groups = people_file(where, out)
    app = page.application(known, archive, args.host, args.far, path=where, people=groups)
    service.serve_app(app, args.host, args.port)


def _list(lines, kind, most=3):
    if lines:
        more = '; …' if len(lines) > most else ''
        print(f'{len(lines)} {kind}: {"; ".join(lines[:most])}{more}')


def _drawn(args):
    print(f'{args.out}: the answer, drawn', file=sys.stderr if args.json else sys.stdout)


def _status(same):
    """Of decisions True, False or None, the best first."""
    return SAME if True in same else UNDECIDED if None in same else OTHER


def run(args: argparse.Namespace) -> int:
    """Does what is asked and returns the exit status."""
    if args.find and not args.out and not args.json:
        args.out = Path(f'{Path(args.find[0]).stem}-found.png')
    if args.out and args.out.exists():
        raise utils.UserError(f'{args.out} is there already: remove it, or name another with --out')
    if args.out and not args.out.absolute().parent.is_dir():
        raise utils.UserError(f'{args.out}: there is no folder {args.out.parent}')
    modes = [(args.find, find), (args.pairs, compare_table), (args.index, index)]
    modes += [(args.group, group), (args.calibrate, calibrate), (args.images, compare)]
    work = next((work for asked, work in modes if asked), serve)
    return work(args, matcher(args)) or SAME


if __name__ == '__main__':
    with utils.one_line_errors():
        sys.exit(run(arguments()))
