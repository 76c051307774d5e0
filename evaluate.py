"""Face recognition across ages, measured: benchmarks, age gaps, the age left in the features.

    python3 evaluate.py ctx weights benchmark path [--out DIR]
    python3 evaluate.py --compare weights weights [weights …] [ctx] benchmark path

ctx is a GPU's number, -1 the CPU (and where a comparison names none). What is looked for below
`path`:

    lfw       pairs.txt; <Name>/<Name>_0001.jpg here, in images/ or in what the archive unpacks to
    calfw     pairs_CALFW.txt; the images in 'aligned images'/, images/ or here
    cacd-vs   0000_0.jpg, 0000_1.jpg to 3999_1.jpg, here or in images/
    bin       the path is an InsightFace .bin: agedb_30, cfp_fp, calfw, cplfw, lfw
    pairs     the path is a list of lines `label pathA pathB`, label 1 or 0 (tabs where names have
              spaces), or of your own in LFW's format; paths are from its folder or from images/
              beside it
    fgnet     001A02.JPG … in any case, anywhere below; with --distractors DIR also MegaFace's
              protocol
    morph     009055_1M54.JPG … anywhere below; --subjects people, the youngest image gallery, the
              oldest probe
    folder    <identity>/<image with the age in its name>; or the name of an entry of meta.py, whose
              val_root (else train_root) is read

Faces are aligned, 112 high and 96 or 112 wide; a network of 96 columns sees the middle of a wider
one. Of raw photographs, --align finds and aligns the faces first. The report is a table here, and
results.json and pictures in DIR, by default eval/<benchmark>-<hash of the weights> beside the
weights. Features are kept in DIR/cache: a second report on the same faces is immediate.
"""

import argparse
import json
import os
import platform
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import torch

import meta
import utils
from dataset import check_entry
from evaluation import calibration, lists, protocols
from evaluation.listfile import write_pairs
from evaluation.pairs import check_pairs
from evaluation.tables import differences_table, table
from recognition.embedding import FEATURES, extract_files
from recognition.weights import load_weights

READERS = {
    'lfw': lists.lfw,
    'calfw': lists.calfw,
    'cacd-vs': lists.cacd_vs,
    'bin': lists.bin_file,
    'pairs': lists.pair_list,
    'fgnet': lists.fgnet,
    'morph': lists.morph,
    'folder': lists.folder,
}
PUBLISHED = ('lfw', 'calfw', 'cacd-vs')  # taken as they are; other lists are checked


def arguments(argv: list[str]) -> argparse.Namespace:
    """The command line, checked; `weights` are the files, `ctx` the device."""
    parser = argparse.ArgumentParser(
        usage='%(prog)s [options] ctx weights benchmark path\n       '
        '%(prog)s [options] --compare weights weights [weights …] [ctx] benchmark path',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = parser.add_argument
    option(
        'models',
        nargs='+',
        metavar='ctx weights',
        help='the device and one weights file; with --compare two or more',
    )
    option('benchmark', choices=READERS)
    option('path')
    option(
        '--compare',
        action='store_true',
        help='several weights side by side, each against the first by a paired bootstrap',
    )
    option('--out', metavar='DIR', help='where the report goes')
    option(
        '--align',
        action='store_true',
        help='the images are raw photographs: find the faces and align them',
    )
    option(
        '--backbone',
        metavar='NAME',
        help='the weights are an untouched backbone of this name, as others publish it',
    )
    option(
        '--write-pairs',
        action='store_true',
        help='leave the pairs that are drawn by age gap in DIR, as a list for `pairs`',
    )
    option(
        '--distractors',
        metavar='DIR',
        help='fgnet: a folder of faces of other people, however deep',
    )
    option(
        '--subjects',
        type=int,
        default=10000,
        help='morph: 10000 (default) or 3000 people, drawn by the seed',
    )
    option(
        '--seed',
        type=int,
        default=0,
        help='of what is drawn: pairs by age gap, subjects, bootstrap (default 0)',
    )
    option('--batch-size', type=int, default=64, metavar='B')
    option(
        '--bf16',
        action='store_true',
        help='bfloat16: faster on hardware that has it, figures move a little',
    )
    option('--pat', help='folder: as in meta.py (default of a path: _|\\.)')
    option('--pos', type=int, help='folder: as in meta.py (default of a path: 1)')
    args = parser.parse_intermixed_args(argv)
    numbers = [word for word in args.models if re.fullmatch(r'-?\d+', word)]
    args.weights = [word for word in args.models if word not in numbers]
    enough = len(args.weights) > 1 if args.compare else len(numbers) == len(args.weights) == 1
    if len(numbers) > 1 or not enough:
        parser.error('expected `ctx weights`, or with --compare two or more weights')
    if args.distractors and args.benchmark != 'fgnet':
        parser.error('--distractors belong to fgnet')
    if args.align and args.benchmark == 'bin':
        parser.error('--align is for photographs; the faces in a .bin are aligned')
    if args.batch_size < 1 or args.subjects < 1:
        parser.error('--batch-size and --subjects must be at least 1')
    args.ctx = int(numbers[0]) if numbers else -1
    return args


def run(args: argparse.Namespace) -> None:
    """Reads the benchmark and the weights, measures each, and leaves the report."""
    device = utils.pick_device(args.ctx)
    listed, drawn, name = read_list(args)
    if args.write_pairs and listed.pairs:
        raise utils.UserError(
            f'--write-pairs is for benchmarks whose pairs are drawn by age gap; '
            f'{args.benchmark} has a list of its own'
        )
    for notice in listed.notices:
        print(notice)
    distractors = lists.images_below(args.distractors) if args.distractors else None
    name += f'-{len(distractors)}-distractors' if distractors else ''
    models = [load_weights(path, device, args.backbone) for path in args.weights]
    hashes = [info.sha256 for _, info in models]
    beside = '-'.join([name, *(sha256[:8] for sha256 in hashes)])
    out = Path(args.out or Path(args.weights[0]).parent / 'eval' / beside)
    _claim(out, hashes, args.path, listed.digest)
    faces = (out / 'cache' if args.out else out.parent) / 'aligned'  # one for all weights
    alignment = None
    if args.align:
        listed, distractors, alignment = _aligned(args, listed, distractors, faces)
    reports, evidence = zip(
        *(
            measure(args, model, info, listed, distractors, device, out / 'cache')
            for model, info in models
        ),
        strict=True,
    )
    versions = {
        'python': platform.python_version(),
        'torch': torch.__version__,
        'numpy': np.__version__,
    }
    result = {
        'benchmark': name,
        'path': args.path,
        'command': shlex.join(['python3', 'evaluate.py', *sys.argv[1:]]),
        'seed': args.seed,
        'device': device.type,
        'bf16': args.bf16,
        'versions': versions,
        'notices': list(listed.notices),
        'models': list(reports),
    }
    if alignment:
        for report in reports:
            report['alignment'] = alignment
    labels = _labels(args.weights)
    reports, evidence = (
        dict(zip(labels, reports, strict=True)),
        dict(zip(labels, evidence, strict=True)),
    )
    print(table(name, reports))
    by_age = {label: report['by_age'] for label, report in reports.items() if 'by_age' in report}
    for label, found in by_age.items():
        print(f'\n{label}: {calibration.table(found)}')
    if args.compare:
        first, *others = labels
        result['differences'] = [
            {'of': label, 'against': first, **protocols.compare(evidence[first], evidence[label])}
            for label in others
        ]
        print(*map(differences_table, result['differences']), sep='\n')
    if drawn:
        utils.write_whole(
            out / 'subjects.txt', lambda temporary: temporary.write_bytes(os.fsencode(drawn))
        )
    if args.write_pairs:
        first = evidence[labels[0]]
        write_pairs(
            out / f'pairs-seed-{args.seed}.txt',
            first.pairs,
            listed.names,
            f'label, image, image, fold; drawn by age gap with --seed {args.seed}',
        )
    from evaluation import pictures  # matplotlib is slow to import
    from verification.drawing import draw_reliability

    pictures.draw_all(out, reports, evidence)
    if by_age:
        draw_reliability(
            {label: found['reliability'] for label, found in by_age.items()},
            out / 'reliability.png',
        )
    text = json.dumps(result, indent=1, allow_nan=False) + '\n'
    utils.write_whole(out / 'results.json', lambda temporary: temporary.write_text(text))
    print(f'{out}: results.json and pictures')


def read_list(args: argparse.Namespace) -> tuple[lists.Listed, str | None, str]:
    """The benchmark's images, the text of a list that was drawn here, and a name for the result."""
    if args.benchmark == 'morph':
        listed, drawn = protocols.morph_subjects(lists.morph(args.path), args.subjects, args.seed)
        return listed, drawn, f'morph-{args.subjects}'
    if args.benchmark != 'folder':
        listed, name = READERS[args.benchmark](args.path), args.benchmark
        if listed.pairs and name not in PUBLISHED:
            notices = check_pairs(listed.pairs, listed.names, args.path)
            listed = listed._replace(notices=(*listed.notices, *notices))
        if Path(args.path).expanduser().is_file():
            name += f'-{Path(args.path).stem}'
        return listed, None, name
    entry, path = getattr(meta, args.path, None), args.path
    if isinstance(entry, dict) and not Path(path).is_dir():
        entry = check_entry(args.path, entry, meta.age_cutoffs)
        path = entry['val_root'] or entry['train_root']
        which = (
            f'val_root, {path}'
            if entry['val_root']
            else (f'train_root, {path}: of people trained on, figures say little')
        )
        print(f'{args.path}: reading its {which}')
    else:
        entry = {'pat': r'_|\.', 'pos': 1}
    pat, pos = args.pat or entry['pat'], entry['pos'] if args.pos is None else args.pos
    try:
        re.compile(pat)
    except re.error as error:
        raise utils.UserError(f'--pat {pat!r} is no regular expression: {error}') from None
    return lists.folder(path, pat, pos), None, f'folder-{Path(path).resolve().name}'


def _aligned(args, listed, distractors, folder):
    """Both with the faces of their photographs in their place, and in how many none was found."""
    from evaluation.aligning import align_files  # what finds faces is an extra requirement

    if isinstance(listed.sources[0], bytes):
        raise utils.UserError(f'{args.path}: --align is for photographs, not for faces in shards')
    sources, found = align_files(listed.sources, listed.names, folder, os.cpu_count())
    if distractors:
        distractors, _ = align_files(distractors, distractors, folder, os.cpu_count())
    return listed._replace(sources=sources), distractors, found


def measure(args, model, info, listed, distractors, device, cache):
    """One model's report (a dict) and Evidence."""

    def features(sources, names, keep, title):
        return extract_files(
            model,
            sources,
            device,
            names,
            args.batch_size,
            args.bf16,
            keep,
            title,
            cache,
            info.sha256,
        )

    leaks = not listed.pairs and listed.probes is None
    arrays, digest = features(
        listed.sources, listed.names, FEATURES if leaks else ('embedding',), Path(info.path).name
    )
    evidence = protocols.Evidence(listed, arrays['embedding'], args.seed)
    report = {
        'weights': info.path,
        'weights_sha256': info.sha256,
        'list_sha256': listed.digest,
        'images_sha256': digest,
        **evidence.report(),
    }
    if leaks:
        report['leakage'] = protocols.leakage_report(
            arrays, listed.labels, listed.ages, meta.age_cutoffs, args.seed
        )
        decided = (info.decision or {}).get('ages')
        if decided:
            report['by_age'] = calibration.report(
                decided, arrays['embedding'], listed.labels, listed.ages
            )
    if distractors:
        others, digest = features(distractors, None, ('embedding',), 'distractors')
        report['megaface'] = protocols.distractor_report(
            arrays['embedding'], listed.labels, others['embedding'], args.seed
        )
        report['megaface']['distractors_sha256'] = digest
    return report, evidence


def _claim(out, hashes, path, digest):
    """Makes the folder. Raises UserError where it holds a report on other weights or on the list of
    another file, or can't be written."""
    file = out / 'results.json'
    try:
        out.mkdir(parents=True, exist_ok=True)
        report = json.loads(file.read_text()) if file.exists() else {'models': []}
        known = [(model['weights_sha256'], model['weights']) for model in report['models']]
        listed = {(report['path'], model['list_sha256']) for model in report['models']}
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, 'strerror', None) or 'its results.json is not ours'
        raise utils.UserError(f'{out}: {reason}: --out names a folder for the report') from None
    if known and [sha256 for sha256, _ in known] != hashes:
        raise utils.UserError(
            f'{out} holds a report on other weights, {known[0][1]}: --out names another folder'
        )
    for other, its_digest in listed:  # a list that was mended has a new report in the old place
        if other != path and its_digest != digest:
            raise utils.UserError(
                f'{out} holds a report on another list, {other}: --out names another folder'
            )


def _labels(weights):
    """Short and different names of the weights files."""
    for parts in (1, 2, 3):
        names = ['/'.join(Path(path).parts[-parts:]) for path in weights]
        if len(set(names)) == len(names):
            return names
    return [f'{k + 1}: {name}' for k, name in enumerate(names)]


if __name__ == '__main__':
    with utils.one_line_errors():
        run(arguments(sys.argv[1:]))
