"""Face recognition across ages, measured: benchmarks, age gaps, the age left in the features.

    python3 evaluate.py ctx weights benchmark path [--out DIR]
    python3 evaluate.py --compare weights weights [weights …] [ctx] benchmark path

ctx is a GPU's number, -1 the CPU (and where a comparison names none). What is looked for below `path`:

    lfw       pairs.txt; <Name>/<Name>_0001.jpg here or in images/
    calfw     pairs_CALFW.txt; the images in 'aligned images'/, images/ or here
    cacd-vs   0000_0.jpg, 0000_1.jpg to 3999_1.jpg, here or in images/
    bin       the path is an InsightFace .bin: agedb_30, cfp_fp, calfw, cplfw, lfw
    pairs     the path is a list of lines `label pathA pathB`, label 1 or 0; paths are from its folder or from images/ beside it
    fgnet     001A02.JPG … in any case, anywhere below; with --distractors DIR also MegaFace's protocol
    morph     009055_1M54.JPG … anywhere below; --subjects people, the youngest image gallery, the oldest probe
    folder    <identity>/<image with the age in its name>; or the name of an entry of meta.py, whose val_root (else train_root) is read

Images are aligned to 112 high × 96 wide; of 112×112 images 8 columns are dropped on either side. The report is a table here,
and results.json and pictures in DIR, by default eval/<benchmark>-<hash of the weights> beside the weights. Features are kept in
DIR/cache: a second report on the same faces is immediate.
"""
import argparse
import hashlib
import json
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
from evaluation import lists, metrics, pictures, protocols
from evaluation.extraction import FEATURES, extract_files
from training.checkpoint import load_weights

READERS = {'lfw': lists.lfw, 'calfw': lists.calfw, 'cacd-vs': lists.cacd_vs, 'bin': lists.bin_file, 'pairs': lists.pair_list,
           'fgnet': lists.fgnet, 'morph': lists.morph, 'folder': lists.folder}


def arguments(argv):
    usage = '%(prog)s [options] ctx weights benchmark path\n       %(prog)s [options] --compare weights weights [weights …] [ctx] benchmark path'
    parser = argparse.ArgumentParser(usage=usage, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('models', nargs='+', metavar='ctx weights', help='the device and one weights file; with --compare two or more')
    parser.add_argument('benchmark', choices=READERS)
    parser.add_argument('path')
    parser.add_argument('--compare', action='store_true', help='several weights side by side, each against the first by a paired bootstrap')
    parser.add_argument('--out', metavar='DIR', help='where the report goes')
    parser.add_argument('--distractors', metavar='DIR', help='fgnet: a folder of faces of other people, however deep')
    parser.add_argument('--subjects', type=int, default=10000, help='morph: 10000 (default) or 3000 people, drawn by the seed')
    parser.add_argument('--seed', type=int, default=0, help='of what is drawn: pairs by age gap, subjects, bootstrap (default 0)')
    parser.add_argument('--batch-size', type=int, default=64, metavar='B')
    parser.add_argument('--bf16', action='store_true', help='bfloat16: faster on hardware that has it, figures move a little')
    parser.add_argument('--pat', help='folder: as in meta.py (default of a path: _|\\.)')
    parser.add_argument('--pos', type=int, help='folder: as in meta.py (default of a path: 1)')
    args = parser.parse_intermixed_args(argv)
    numbers = [word for word in args.models if re.fullmatch(r'-?\d+', word)]
    args.weights = [word for word in args.models if word not in numbers]
    if len(numbers) > 1 or (not args.compare and (len(numbers), len(args.weights)) != (1, 1)) or (args.compare and len(args.weights) < 2):
        parser.error('expected `ctx weights`, or with --compare two or more weights')
    if args.distractors and args.benchmark != 'fgnet':
        parser.error('--distractors belong to fgnet')
    if args.batch_size < 1 or args.subjects < 1:
        parser.error('--batch-size and --subjects must be at least 1')
    args.ctx = int(numbers[0]) if numbers else -1
    return args


def read_list(args):
    """The benchmark's Listed, a name for the result, and the text of a list that was drawn here, else None."""
    if args.benchmark == 'morph':
        return *protocols.morph_subjects(lists.morph(args.path), args.subjects, args.seed), f'morph-{args.subjects}'
    if args.benchmark != 'folder':
        name = f'{args.benchmark}-{Path(args.path).stem}' if args.benchmark in ('bin', 'pairs') else args.benchmark
        return READERS[args.benchmark](args.path), None, name
    entry, path = getattr(meta, args.path, None), args.path
    if isinstance(entry, dict) and not Path(path).is_dir():
        check_entry(args.path, entry, meta.age_cutoffs)
        path = entry['val_root'] or entry['train_root']
        print(f'{args.path}: reading its ' + (f'val_root, {path}' if entry['val_root'] else f'train_root, {path}: of people trained on, figures say little'))
    else:
        entry = {'pat': r'_|\.', 'pos': 1}
    pat, pos = args.pat or entry['pat'], entry['pos'] if args.pos is None else args.pos
    try:
        re.compile(pat)
    except re.error as error:
        raise utils.UserError(f'--pat {pat!r} is no regular expression: {error}') from None
    return lists.folder(path, pat, pos), None, f'folder-{Path(path).resolve().name}'


def measure(args, weights, sha256, listed, distractors, device, cache):
    """One model's report (a dict) and Evidence."""
    model, _ = load_weights(weights, device)

    def features(sources, names, keep, title):
        return extract_files(model, sources, device, names, True, args.batch_size, args.bf16, keep, title, cache, sha256)

    leaks = args.benchmark in ('fgnet', 'folder')
    arrays, digest = features(listed.sources, listed.names, FEATURES if leaks else ('embedding',), Path(weights).name)
    evidence = protocols.Evidence(args.benchmark, listed, arrays['embedding'], args.seed)
    report = {'weights': str(weights), 'weights_sha256': sha256, 'list_sha256': listed.digest, 'images_sha256': digest, **evidence.report()}
    if leaks:
        report['leakage'] = protocols.leakage_report(arrays, listed.labels, listed.ages, meta.age_cutoffs, args.seed)
    if distractors:
        others, digest = features(distractors, None, ('embedding',), 'distractors')
        report['megaface'] = protocols.distractor_report(arrays['embedding'], listed.labels, others['embedding'], args.seed)
        report['megaface']['distractors_sha256'] = digest
    return report, evidence


def run(args):
    device = utils.pick_device(args.ctx)
    listed, drawn, name = read_list(args)
    distractors = lists.images_below(args.distractors) if args.distractors else None
    name += f'-{len(distractors)}-distractors' if distractors else ''
    hashes = [hashlib.sha256(_bytes(path)).hexdigest() for path in args.weights]
    out = Path(args.out or Path(args.weights[0]).parent / 'eval' / '-'.join([name, *(sha256[:8] for sha256 in hashes)]))
    _claim(out, hashes)
    reports, evidence = zip(*(measure(args, *weights, listed, distractors, device, out / 'cache') for weights in zip(args.weights, hashes)))
    result = {'benchmark': name, 'path': args.path, 'command': shlex.join(['python3', 'evaluate.py', *sys.argv[1:]]), 'seed': args.seed,
              'device': device.type, 'bf16': args.bf16,
              'versions': {'python': platform.python_version(), 'torch': torch.__version__, 'numpy': np.__version__},
              'models': list(reports)}
    labels = _labels(args.weights)
    print(table(name, dict(zip(labels, reports))))
    if args.compare:
        result['differences'] = [{'of': label, 'against': labels[0], **protocols.compare(evidence[0], other)}
                                 for label, other in zip(labels[1:], evidence[1:])]
        print(*(differences_table(row) for row in result['differences']), sep='\n')
    if drawn:
        utils.write_whole(out / 'subjects.txt', lambda temporary: temporary.write_text(drawn))
    draw(out, dict(zip(labels, reports)), dict(zip(labels, evidence)))
    utils.write_whole(out / 'results.json', lambda temporary: temporary.write_text(json.dumps(result, indent=1, allow_nan=False) + '\n'))
    print(f'{out}: results.json and pictures')


def _bytes(path):
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise utils.UserError(f'{path}: {error.strerror}') from None


def _claim(out, hashes):
    """Makes the folder. Raises UserError where it holds a report on other weights, or can't be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        known = json.loads((out / 'results.json').read_text())['models'] if (out / 'results.json').exists() else None
        known = known and [(model['weights_sha256'], model['weights']) for model in known]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise utils.UserError(f'{out}: {getattr(error, "strerror", None) or "its results.json is not ours"}: --out names a folder for the report') from None
    if known and [sha256 for sha256, _ in known] != hashes:
        raise utils.UserError(f'{out} holds a report on other weights, {known[0][1]}: --out names another folder')


def _labels(weights):
    """Short and different names of the weights files."""
    for parts in (1, 2, 3):
        names = ['/'.join(Path(path).parts[-parts:]) for path in weights]
        if len(set(names)) == len(names):
            return names
    return [f'{k + 1}: {name}' for k, name in enumerate(names)]


def draw(out, reports, evidence):
    """Every picture that the benchmark has something for; score histograms and errors of each model."""
    pictures.draw_roc({label: (one.scores, one.pairs.same) for label, one in evidence.items()}, out / 'roc.png')
    if all(report.get('by_gap') for report in reports.values()):
        pictures.draw_gaps({label: report['by_gap'] for label, report in reports.items()}, out / 'gaps.png')
    if all('megaface' in report for report in reports.values()):
        pictures.draw_cmc({label: report['megaface'] for label, report in reports.items()}, out / 'cmc.png')
    for k, (label, one) in enumerate(evidence.items()):
        suffix = f'_{k + 1}' if len(evidence) > 1 else ''
        if len(one.scores):
            pictures.draw_histogram(one.scores, one.pairs.same, reports[label]['verification']['threshold'], out / f'scores{suffix}.png')
            pictures.draw_errors(one.listed, one.pairs, one.scores, out / f'errors{suffix}.png', crop=True)
        if 'leakage' in reports[label]:
            pictures.draw_leakage(reports[label]['leakage'], out / f'leakage{suffix}.png')


def table(name, reports):
    """The report for the screen, one block a model, percent with 95 % intervals."""
    lines = []
    for label, report in reports.items():
        people = '' if report['people'] is None else f'{report["people"]} people, '
        lines += [f'\n{name}, {label}: {report["images"]} images, {people}{report["verification"]["pairs"]} pairs',
                  f'{"":14}{"pairs":>7}  {"accuracy ± std":>15}  ' + '  '.join(f'{head:>18}' for head in ('AUC', 'EER', *metrics.FARS)) + '  threshold']
        for title, row in [('all', report['verification']), *((f'{row["years"]} years', row) for row in report.get('by_gap', []))]:
            accuracy = '–' if row['accuracy'] is None else f'{100 * row["accuracy"]:.2f} ± {100 * row["accuracy_std"]:.2f}'
            threshold = '–' if row['threshold'] is None else f'{row["threshold"]:.3f}'
            lines.append(f'{title:14}{row["pairs"]:7}  {accuracy:>15}  '
                         + '  '.join(f'{_percent(row[key], row.get("intervals", {}).get(key)):>18}' for key in ('auc', 'eer', *metrics.FARS))
                         + f'  {threshold:>9}')
        if 'rank1' in report:
            lines.append(f'rank-1 {_percent(report["rank1"], report["rank1_interval"])} of {report["rank1_probes"]} probes')
        if 'megaface' in report:
            far = report['megaface']
            lines.append(f'rank-1 among {far["distractors"]} distractors {_percent(far["rank1"], far["rank1_interval"])}')
        if 'leakage' in report:
            lines.append(leakage_table(report['leakage']))
    return '\n'.join(lines)


def leakage_table(report):
    lines = ['on people the probe was not fitted on:  age R²   MAE years   groups told (chance)   identity AUC   rank-1']
    for part in ('x', 'x_age', 'x_id'):
        age, identity = report['age'][part], report['identity'][part]
        chance = f'{_fixed(age["balanced_accuracy"])} ({_fixed(1 / age["groups"] if age["groups"] else None)})'
        lines.append(f'{part:>38}  {_fixed(age["r2"]):>6}   {_fixed(age["mae"]):>9}   {chance:>20}   {_fixed(identity["auc"]):>12}   {_fixed(identity["rank1"]):>6}')
    rho = report['correlation']
    return '\n'.join([*lines, f'first canonical correlation of x_id and x_age, held out: {_fixed(rho["rho"])}; shuffled pairs {_fixed(rho["shuffled"])}, '
                      f'95 % below {_fixed(rho["shuffled_95"])}'])


def differences_table(row):
    """Each figure's gain over the first model, in points, with its interval; a star where that leaves out 0."""
    lines = [f'\n{row["of"]} − {row["against"]}, points of percent [95 % of a paired bootstrap]; * leaves out 0']
    blocks = [('all', row['verification']), *((f'{gap["years"]} years', gap) for gap in row.get('by_gap', []))]
    if 'rank1' in row:
        blocks.append(('rank-1', {'rank1': row['rank1']}))
    for title, figures in blocks:
        cells = [f'{name} {100 * value["difference"]:+.2f} [{100 * value["interval"][0]:+.2f} {100 * value["interval"][1]:+.2f}]'
                 + ('*' if value['interval'][0] * value['interval'][1] > 0 else '')
                 for name, value in figures.items() if isinstance(value, dict) and value['interval']]
        lines.append(f'{title:14}' + '   '.join(cells))
    return '\n'.join(lines)


def _percent(value, limits):
    if value is None:
        return '–'
    return f'{100 * value:.2f}' + (f' [{100 * limits[0]:.1f} {100 * limits[1]:.1f}]' if limits else '')


def _fixed(value):
    return '–' if value is None else f'{value:.3f}'


if __name__ == '__main__':
    with utils.one_line_errors():
        run(arguments(sys.argv[1:]))
