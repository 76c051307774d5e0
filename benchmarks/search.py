"""Search among a million faces: the index's exact product beside approximate libraries.

    python3 benchmarks/search.py [--faces 1000000] [--dim 256] [--out results.json]
    python3 benchmarks/search.py --people NAME weights    # a person by the best face or the mean?

Unit vectors drawn as people: a random centre, and faces about it whose cosine with each other is
--cosine on average; 100 more faces of some of them are looked for. The libraries are those of
faiss-cpu, usearch and hnswlib that are installed. recall@10 is against the exact product.
"""

import argparse
import importlib
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import meta  # noqa: E402
import verify  # noqa: E402
from dataset import Faces  # noqa: E402
from verification import index  # noqa: E402
from verification.calibrating import embed  # noqa: E402
from verification.index import FACE, Index, Photograph  # noqa: E402

QUERIES, MOST = 100, 10


def faces_of(people, each, dim, cosine, rng, block=65536):
    """Unit vectors (people · each, dim), and QUERIES others of some of the people."""
    vectors = np.empty((people * each, dim), np.float32)
    for start in range(0, len(vectors), block):  # a million at once would need twice the memory
        person = np.arange(start, min(start + block, len(vectors))) // each
        vectors[start : start + len(person)] = about(person, dim, cosine, rng)
    return vectors, about(np.linspace(0, people - 1, QUERIES).astype(int), dim, cosine, rng)


def about(person, dim, cosine, rng):
    """A face (n, dim) of each person (n,), whose centre their number alone decides."""
    centres = np.stack([np.random.default_rng(k).normal(size=dim) for k in np.unique(person)])
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    noise = rng.normal(size=(len(person), dim))
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    _, place = np.unique(person, return_inverse=True)
    vectors = np.sqrt(cosine) * centres[place] + np.sqrt(1 - cosine) * noise
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def exact(vectors, queries, folder):
    """The product of verification/index.py on a file, as verify.py --find does it."""
    path, faces = Path(folder, 'a.index'), np.zeros(len(vectors), FACE)
    start = time.perf_counter()
    photographs = [Photograph('a.jpg', 0, 0, '', faces, vectors)]
    index.write(path, '/', 'f' * 64, photographs, False, vectors.shape[1])
    built, start = time.perf_counter() - start, time.perf_counter()
    archive = Index.open(path, 'f' * 64)
    opened = time.perf_counter() - start
    found, times = timed(lambda query: [face for face, _ in archive.nearest(query, MOST)], queries)
    return found, {'build_s': built, 'open_s': opened, **times}


def half(vectors, queries):
    """The same product where the vectors are kept in 16 bits."""
    kept = vectors.astype(np.float16)

    def nearest(query):
        scores = np.concatenate(
            [
                kept[start : start + 8192].astype(np.float32) @ query
                for start in range(0, len(kept), 8192)
            ]
        )
        best = np.argpartition(scores, -MOST)[-MOST:]
        return best[np.argsort(-scores[best])]

    found, times = timed(nearest, queries)
    return found, {'build_s': 0.0, **times}


def faiss_flat(vectors, queries):
    faiss = importlib.import_module('faiss')
    return faiss_index(faiss.IndexFlatIP(vectors.shape[1]), vectors, queries)


def faiss_ivf(vectors, queries):
    faiss = importlib.import_module('faiss')
    lists = int(4 * len(vectors) ** 0.5)
    kind = faiss.METRIC_INNER_PRODUCT
    made = faiss.IndexIVFFlat(faiss.IndexFlatIP(vectors.shape[1]), vectors.shape[1], lists, kind)
    made.nprobe = max(1, lists // 32)
    made.cp.niter = 5
    return faiss_index(made, vectors, queries, lists * 40)


def faiss_index(made, vectors, queries, training=0):
    start = time.perf_counter()
    if training:
        made.train(vectors[np.random.default_rng(0).permutation(len(vectors))[:training]])
    made.add(vectors)
    built = time.perf_counter() - start
    found, times = timed(lambda query: made.search(query[None], MOST)[1][0], queries)
    return found, {'build_s': built, **times}


def hnsw(vectors, queries):
    library = importlib.import_module('hnswlib')
    made = library.Index('ip', vectors.shape[1])
    start = time.perf_counter()
    made.init_index(len(vectors), M=16, ef_construction=100)
    made.add_items(vectors)
    built = time.perf_counter() - start
    made.set_ef(200)
    found, times = timed(lambda query: made.knn_query(query, MOST)[0][0], queries)
    return found, {'build_s': built, **times}


def usearch(vectors, queries):
    library = importlib.import_module('usearch.index')
    made = library.Index(
        ndim=vectors.shape[1], metric='ip', connectivity=16, expansion_add=100, expansion_search=200
    )
    start = time.perf_counter()
    made.add(np.arange(len(vectors)), vectors)
    built = time.perf_counter() - start
    found, times = timed(lambda query: made.search(query, MOST).keys, queries)
    return found, {'build_s': built, **times}


WAYS = {
    'index, exact': exact,
    'float16, exact': half,
    'faiss Flat': faiss_flat,
    'faiss IVF': faiss_ivf,
    'usearch HNSW': usearch,
    'hnswlib HNSW': hnsw,
}


def timed(nearest, queries):
    """What one query after another finds; the fastest, the median and the slowest time."""
    nearest(queries[0])
    times, found = [], []
    for query in queries:
        start = time.perf_counter()
        found.append(nearest(query))
        times.append(time.perf_counter() - start)
    times = 1000 * np.array(times)
    return found, {
        'fastest_ms': float(times.min()),
        'query_ms': float(np.median(times)),
        'slowest_ms': float(times.max()),
    }


def people_report(name, weights):
    """Rank-1 and the share found at one false person in 100, by the best face and by the mean."""
    known = verify.matcher(verify.arguments([weights, '--serve']))
    entry = getattr(meta, name)
    root = entry['val_root'] or entry['train_root']
    faces = Faces(root, entry['pat'], entry['pos'], known.width)
    embeddings, report = embed(known, faces), []
    for each in (2, 3, 5):
        runs = [enrolled(embeddings, faces.labels, each, seed) for seed in range(5)]
        if runs[0] is not None:
            report.append(
                {
                    'enrolled': each,
                    'people': runs[0]['people'],
                    **{
                        f'{way}_{key}': float(np.mean([run[way][key] for run in runs]))
                        for way in ('best', 'mean')
                        for key in ('rank1', 'found')
                    },
                }
            )
    return report


def enrolled(embeddings, labels, each, seed):
    """`each` faces of every person enrolled, up to five others looked for."""
    rng, kept, probes = np.random.default_rng(seed), [], []
    for person in np.unique(labels):
        images = rng.permutation(np.flatnonzero(labels == person))
        if len(images) > each:
            kept.append(embeddings[images[:each]])
            probes += [(len(kept) - 1, image) for image in images[each : each + 5]]
    if len(kept) < 20:
        return None
    whose, images = np.array(probes).T
    gallery = np.stack(kept)
    means = gallery.mean(1) / np.linalg.norm(gallery.mean(1), axis=1, keepdims=True)
    probes = embeddings[images]
    scores = {
        'best': np.max([probes @ gallery[:, k].T for k in range(each)], axis=0),
        'mean': probes @ means.T,
    }
    report, place = {'people': len(kept)}, np.arange(len(whose))
    for way, score in scores.items():
        own = score[place, whose].copy()
        rank1 = float((score.argmax(1) == whose).mean())
        score[place, whose] = -np.inf
        threshold = np.quantile(score.max(1), 0.99)
        report[way] = {'rank1': rank1, 'found': float((own > threshold).mean())}
    return report


def markdown(report):
    lines = [
        '| way | built, s | query, ms: fastest | median | slowest | recall@10 |',
        '|---|---|---|---|---|---|',
    ]
    for row in report['ways']:
        times = ' | '.join(
            f'{row[key]:.1f}' for key in ('build_s', 'fastest_ms', 'query_ms', 'slowest_ms')
        )
        lines.append(f'| {row["way"]} | {times} | {row["recall"]:.3f} |')
    return '\n'.join(lines)


def run(args):
    rng = np.random.default_rng(0)
    vectors, queries = faces_of(args.faces // args.each, args.each, args.dim, args.cosine, rng)
    report = {
        'faces': len(vectors),
        'dim': args.dim,
        'cosine': args.cosine,
        'each': args.each,
        'cores': os.cpu_count(),
        'machine': platform.machine(),
        'numpy': np.__version__,
        'ways': [],
    }
    truth = None
    for way in args.ways or WAYS:
        try:
            if way == 'index, exact':
                with tempfile.TemporaryDirectory(dir=args.folder) as folder:
                    found, row = exact(vectors, queries, folder)
            else:
                found, row = WAYS[way](vectors, queries)
        except ImportError as error:
            print(f'{way}: {error.name} is not installed')
            continue
        truth = found if truth is None else truth
        hits = [len(set(map(int, a)) & set(map(int, b))) for a, b in zip(found, truth, strict=True)]
        report['ways'].append({'way': way, **row, 'recall': sum(hits) / (MOST * QUERIES)})
        print(report['ways'][-1], flush=True)
    print(markdown(report))
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + '\n')


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--faces', type=int, default=1_000_000)
    parser.add_argument('--each', type=int, default=10, help='faces of a person')
    parser.add_argument('--dim', type=int, default=256)
    parser.add_argument('--cosine', type=float, default=0.5)
    parser.add_argument('--ways', nargs='+', choices=WAYS, metavar='WAY', help='by default all')
    parser.add_argument('--folder', help='where the index is written meanwhile')
    parser.add_argument('--out', type=Path, metavar='JSON')
    parser.add_argument('--people', nargs=2, metavar=('NAME', 'WEIGHTS'))
    return parser.parse_args()


if __name__ == '__main__':
    args = arguments()
    print(json.dumps(people_report(*args.people), indent=1)) if args.people else run(args)
