"""Face recognition across ages, measured: benchmarks, age gaps, the age left in the features.

    python3 evaluate.py ctx weights benchmark path [--out DIR]
    python3 evaluate.py --compare weights weights [weights …] [ctx] benchmark path

ctx is a GPU's number, -1 the CPU (and the default of a comparison). What is looked for below
`path`:

    lfw       pairs.txt; <Name>/<Name>_0001.jpg here, in images/ or in what the archive unpacks to
    calfw     pairs_CALFW.txt; the images in 'aligned images'/, images/ or here
    cacd-vs   0000_0.jpg, 0000_1.jpg to 3999_1.jpg, here or in images/
    bin       the path is an InsightFace .bin: agedb_30, cfp_fp, calfw, cplfw, lfw
    pairs     the path is a list of lines `label pathA pathB`, label 1 or 0 (tabs if names have
              spaces), or of your own in LFW's format; paths are from its folder or from images/
              beside it
    fgnet     001A02.JPG … in any case, anywhere below; with --distractors DIR also MegaFace's
              protocol
    morph     009055_1M54.JPG … anywhere below; --subjects people, the youngest image gallery, the
              oldest probe
    folder    <identity>/<image with the age in its name>; or the name of an entry of meta.py, whose
              val_root (else train_root) is read
    embeddings
              the path is a .npz or .safetensors of `embeddings` (N, D), `identities` and `ages`:
              measured as they are without `ctx weights`, else what the weights' R makes of them

Faces are aligned, 112 high and 96 or 112 wide; a network of 96 columns sees the middle of a wider
one. If they are raw photographs, --align finds and aligns the faces first. The report is a table
here, and in DIR results.json, pictures and report.html, which has everything in one file; DIR is
eval/<benchmark>-<hash of the weights> beside the weights by default. Features are kept in
DIR/cache: a second report on the same faces is immediate.
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
from evaluation import age_calibration, error_rates, evidence, protocols, report
from evaluation.pair_files import write_pairs
from evaluation.pairs import check_pairs
from evaluation.protocols import PUBLISHED, READERS, Benchmark
from evaluation.set_checks import fingerprint
from recognition.embedding import FEATURES, extract_files
from recognition.weights import load_weights

USAGE = """%(prog)s [options] ctx weights benchmark path
       %(prog)s [options] --compare weights weights [weights …] [ctx] benchmark path
       %(prog)s [options] embeddings path"""


def arguments(argv: list[str]) -> argparse.Namespace:
    """The command line, checked; `weights` are the files, `ctx` the device."""
    parser = argparse.ArgumentParser(
        usage=USAGE, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option('models', nargs='*', metavar='ctx weights', help='the device and the weights file')
    option('benchmark', choices=READERS)
    option('path')
    option('--compare', action='store_true', help='several weights, each against the first')
    option('--out', metavar='DIR', help='where the report goes')
    option('--align', action='store_true', help='raw photographs: find the faces and align them')
    option('--backbone', metavar='NAME', help='an untouched backbone, as others publish it')
    option('--write-pairs', action='store_true', help='keep the pairs that are drawn by age gap')
    option('--distractors', metavar='DIR', help='fgnet: faces of other people, however deep')
    option('--subjects', type=int, default=10000, help='morph: 10000 (default) or 3000 people')
    option('--seed', type=int, default=0, help='of drawn pairs and subjects, and the bootstrap')
    option('--batch-size', type=int, default=64, metavar='B')
    option('--bf16', action='store_true', help='bfloat16: faster, and figures move a little')
    option('--pat', help=r'folder: as in meta.py (default of a path: _|\.)')
    option('--pos', type=int, help='folder: as in meta.py (default of a path: 1)')
    args = parser.parse_intermixed_args(argv)
    numbers = [word for word in args.models if re.fullmatch(r'-?\d+', word)]
    args.weights = [word for word in args.models if word not in numbers]
    enough = len(args.weights) > 1 if args.compare else len(numbers) == len(args.weights) == 1
    alone = args.benchmark == 'embeddings' and not args.models
    if len(numbers) > 1 or not (enough or alone):
        parser.error('expected `ctx weights`, or with --compare two or more weights')
    if args.distractors and args.benchmark != 'fgnet':
        parser.error('--distractors belong to fgnet')
    if args.align and args.benchmark in ('bin', 'embeddings'):
        parser.error('--align is for photographs; these are of aligned faces')
    if args.batch_size < 1 or args.subjects < 1:
        parser.error('--batch-size and --subjects must be at least 1')
    args.ctx = int(numbers[0]) if numbers else -1
    return args


def run(args: argparse.Namespace) -> None:
    """Reads the benchmark and the weights, measures each, and leaves the report."""
    device = utils.pick_device(args.ctx)
    benchmark, name = read_benchmark(args)
    if args.write_pairs and (benchmark.pairs or not benchmark.sources):
        why = 'has a list of its own' if benchmark.pairs else 'holds no files'
        message = '--write-pairs is for benchmarks whose pairs are drawn by age gap'
        raise utils.UserError(f'{message}; {args.benchmark} {why}')
    print(*benchmark.notices, sep='\n', end='\n' * bool(benchmark.notices))
    distractors = protocols.images_below(args.distractors) if args.distractors else None
    name += f'-{len(distractors)}-distractors' if distractors else ''
    models: list = [load_weights(path, device, args.backbone) for path in args.weights]
    models = models or [(None, None)]  # stored vectors as they are
    hashes = [info.sha256 if info else str(benchmark.digest) for _, info in models]
    beside = '-'.join([name, *(sha256[:8] for sha256 in hashes)])
    out = Path(args.out or Path([*args.weights, args.path][0]).parent / 'eval' / beside)
    _claim(out, hashes, args.path, benchmark.digest)
    missed = None
    if args.align:
        faces = (out / 'cache' if args.out else out.parent) / 'aligned'  # one for all weights
        benchmark, distractors, missed = _aligned(args, benchmark, distractors, faces)
    reports, evidences = {}, {}
    for label, (model, info) in zip(_labels(args.weights or [args.path]), models, strict=True):
        found, one = measure_model(args, model, info, benchmark, distractors, device, out / 'cache')
        found['error_rates'] = error_rates.error_report(one, meta.age_cutoffs, missed)
        if missed is not None:
            counts = {'photographs': len(missed), 'not_found': int(missed.sum())}
            found['alignment'] = counts | {'share': float(missed.mean())}
        reports[label], evidences[label] = found, one
    versions = {'python': platform.python_version(), 'torch': torch.__version__}
    result = {'benchmark': name, 'path': args.path}
    result |= {'command': shlex.join(['python3', 'evaluate.py', *sys.argv[1:]])}
    result |= {'seed': args.seed, 'device': device.type, 'bf16': args.bf16}
    result |= {'versions': versions | {'numpy': np.__version__}}
    result |= {'notices': list(benchmark.notices), 'models': list(reports.values())}
    text = report.table(name, reports)
    for label, found in reports.items():
        if found.get('by_age'):
            text += f'\n\n{label}: {report.ages_table(found["by_age"])}'
    if args.compare:
        first, *others = reports
        result['differences'] = []
        for label in others:
            gains = evidence.compare_models(evidences[first], evidences[label])
            result['differences'].append({'of': label, 'against': first, **gains})
            text += '\n' + report.differences_table(result['differences'][-1])
    print(text)
    if benchmark.drawn:
        drawn = os.fsencode(benchmark.drawn)
        utils.write_whole(out / 'subjects.txt', lambda file: file.write_bytes(drawn))
    if args.write_pairs:
        note = f'label, image, image, fold; drawn by age gap with --seed {args.seed}'
        pairs = next(iter(evidences.values())).pairs
        write_pairs(out / f'pairs-seed-{args.seed}.txt', pairs, benchmark.names, note)
    from evaluation import plots  # matplotlib takes a second to import

    plots.draw_all(out, reports, evidences)
    report.write_html(out, result, reports, text)
    utils.write_json(result, out / 'results.json')
    print(f'{out}: report.html, results.json and pictures')


def read_benchmark(args: argparse.Namespace) -> tuple[Benchmark, str]:
    """The benchmark, and a name for the result."""
    read, path, name = READERS[args.benchmark], args.path, args.benchmark
    if name == 'morph':
        return protocols.morph_subjects(
            read(path), args.subjects, args.seed
        ), f'morph-{args.subjects}'
    if name != 'folder':
        benchmark = read(path)
        if benchmark.pairs and name not in PUBLISHED:
            notices = check_pairs(benchmark.pairs, benchmark.names, path)
            benchmark = benchmark._replace(notices=(*benchmark.notices, *notices))
        if Path(path).expanduser().is_file():
            name += f'-{Path(path).stem}'
        return benchmark, name
    entry = getattr(meta, path, None)
    if isinstance(entry, dict) and not Path(path).is_dir():
        entry = check_entry(path, entry, meta.age_cutoffs)
        which, why = 'val_root', ''
        if not entry['val_root']:
            which, why = 'train_root', ': of people trained on, figures say little'
        print(f'{path}: reading its {which}, {entry[which]}{why}')
        path = entry[which]
    else:
        entry = {'pat': r'_|\.', 'pos': 1}
    pat, pos = args.pat or entry['pat'], entry['pos'] if args.pos is None else args.pos
    try:
        re.compile(pat)
    except re.error as error:
        raise utils.UserError(f'--pat {pat!r} is no regular expression: {error}') from None
    return read(path, pat, pos), f'folder-{Path(path).resolve().name}'


def _aligned(args, benchmark, distractors, folder):
    """Both with the faces of their photographs in their place; and in which (N,) none was found."""
    from evaluation.aligning import align_files  # what finds faces is an extra requirement

    if isinstance(benchmark.sources[0], bytes):
        raise utils.UserError(f'{args.path}: --align is for photographs, not for faces in shards')
    sources, missed = align_files(benchmark.sources, benchmark.names, folder, os.cpu_count())
    if distractors:
        distractors, _ = align_files(distractors, distractors, folder, os.cpu_count())
    return benchmark._replace(sources=sources), distractors, missed


def measure_model(args, model, info, benchmark, distractors, device, cache):
    """One model's report (a dict) and Evidence."""

    def features(sources, names, keep, title):
        facts = device, names, args.batch_size, args.bf16, keep, title, cache, info.sha256
        return extract_files(model, sources, *facts)

    path, sha256 = (info.path, info.sha256) if info else (args.path, benchmark.digest)
    leaks = not benchmark.pairs and benchmark.probes is None
    if benchmark.vectors is not None:
        arrays, digest = _of_vectors(benchmark.vectors, model), benchmark.digest
    else:
        keep = FEATURES if leaks else ('embedding',)
        arrays, digest = features(benchmark.sources, benchmark.names, keep, Path(path).name)
    embeddings, people = arrays['embedding'], (benchmark.labels, benchmark.ages)
    one = evidence.Evidence(benchmark, embeddings, args.seed)
    found = {'weights': path, 'weights_sha256': sha256}
    found |= {'list_sha256': benchmark.digest, 'images_sha256': digest, **one.report()}
    if leaks:
        found['leakage'] = evidence.leakage_report(arrays, *people, meta.age_cutoffs, args.seed)
        decided = (info and info.decision) or {}
        if decided.get('ages'):
            known = decided.get('people') == fingerprint(benchmark.names)
            if known:
                print(f'{path}: its thresholds were fitted on these very people')
            facts = decided['ages'], embeddings, *people, known, args.seed
            found['by_age'] = age_calibration.report_by_age(*facts)
    if distractors:
        others, digest = features(distractors, None, ('embedding',), 'distractors')
        against = embeddings, benchmark.labels, others['embedding']
        found['megaface'] = evidence.distractor_report(*against, args.seed)
        found['megaface']['distractors_sha256'] = digest
    return found, one


def _of_vectors(vectors, model):
    """Features of stored vectors (N, D): as they are, or with a model what its R makes of them."""
    parts = {'x': torch.from_numpy(vectors)}
    if model is not None:
        if model.dim != vectors.shape[1]:
            sizes = f'the vectors have {vectors.shape[1]} values, the weights {model.dim}'
            raise utils.UserError(f'{sizes}: give the weights that were fitted on such vectors')
        with torch.inference_mode():
            parts['x_age'], parts['x_id'] = model.factorization.cpu()(parts['x'])
    parts['embedding'] = torch.nn.functional.normalize(parts.get('x_id', parts['x']))
    return {name: part.float().numpy() for name, part in parts.items()}


def _claim(out, hashes, path, digest):
    """Makes the folder. Raises UserError if it holds a report on other weights or on the list of
    another file, or can't be written."""
    file = out / 'results.json'
    try:
        out.mkdir(parents=True, exist_ok=True)
        held = json.loads(file.read_text()) if file.exists() else {'path': path, 'models': []}
        place, models = held['path'], held['models']
        lists = {model['list_sha256'] for model in models}
        known = [(model['weights_sha256'], model['weights']) for model in models]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, 'strerror', None) or 'its results.json is not ours'
        raise utils.UserError(f'{out}: {reason}: --out names a folder for the report') from None
    other = ''
    if known and [sha256 for sha256, _ in known] != hashes:
        other = f'other weights, {known[0][1]}'
    elif place != path and lists - {digest}:  # a mended list has a new report in the old place
        other = f'another list, {place}'
    if other:
        raise utils.UserError(f'{out} holds a report on {other}: --out names another folder')


def _labels(weights):
    """Short and different names of the weights files."""
    for depth in (1, 2, 3):
        names = ['/'.join(Path(path).parts[-depth:]) for path in weights]
        if len(set(names)) == len(names):
            return names
    return [f'{k}: {path}' for k, path in enumerate(weights, 1)]


if __name__ == '__main__':
    with utils.one_line_errors():
        run(arguments(sys.argv[1:]))
