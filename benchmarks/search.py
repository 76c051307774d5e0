"""Search among a million faces: the index's exact product beside approximate libraries.

    python3 benchmarks/search.py [--faces 1000000] [--dim 256] [--out results.json]

Unit vectors drawn as people: a random centre, and faces about it whose cosine with each other is
--cosine on average; 100 more faces of some of them are looked for. The libraries are those of
faiss-cpu, usearch and hnswlib that are installed. recall@10 is against the exact product.
"""

import importlib
import tempfile
import time
from pathlib import Path

import numpy as np
import tables
from measuring import machine

import utils
from verification import index
from verification.index import FACE, Index, Photograph

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


def exact(vectors):
    """The product of verification/index.py on a file, as verify.py --find does it."""
    with tempfile.TemporaryDirectory() as folder:
        path, faces = Path(folder, 'a.index'), np.zeros(len(vectors), FACE)
        photographs = [Photograph('a.jpg', 0, 0, '', faces, vectors)]
        index.write_index(path, '/', 'f' * 64, photographs, False)
        archive = Index.open(path, 'f' * 64)
    return lambda query: [face for face, _ in archive.nearest(query, MOST)]


def faiss_flat(vectors):
    made = importlib.import_module('faiss').IndexFlatIP(vectors.shape[1])
    made.add(vectors)
    return lambda query: made.search(query[None], MOST)[1][0]


def faiss_ivf(vectors):
    faiss, dim, lists = importlib.import_module('faiss'), vectors.shape[1], 4 * len(vectors) ** 0.5
    made = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, int(lists), faiss.METRIC_INNER_PRODUCT)
    made.nprobe, made.cp.niter = max(1, int(lists) // 32), 5
    made.train(vectors[np.random.default_rng(0).permutation(len(vectors))[: int(lists) * 40]])
    made.add(vectors)
    return lambda query: made.search(query[None], MOST)[1][0]


def hnsw(vectors):
    made = importlib.import_module('hnswlib').Index('ip', vectors.shape[1])
    made.init_index(len(vectors), M=16, ef_construction=100)
    made.add_items(vectors)
    made.set_ef(200)
    return lambda query: made.knn_query(query, MOST)[0][0]


def usearch(vectors):
    library, how = importlib.import_module('usearch.index'), dict(connectivity=16, metric='ip')
    made = library.Index(ndim=vectors.shape[1], expansion_add=100, expansion_search=200, **how)
    made.add(np.arange(len(vectors)), vectors)
    return lambda query: made.search(query, MOST).keys


WAYS = {
    'index, exact': exact,
    'faiss Flat': faiss_flat,
    'faiss IVF': faiss_ivf,
    'usearch HNSW': usearch,
    'hnswlib HNSW': hnsw,
}


def timed(way, vectors, queries):
    """The faces that one query after another finds; seconds to build, and the times of a query."""
    start = time.perf_counter()
    nearest = WAYS[way](vectors)
    built = time.perf_counter() - start
    nearest(queries[0])
    times, found = [], []
    for query in queries:
        start = time.perf_counter()
        found.append(set(map(int, nearest(query))))
        times.append(1000 * (time.perf_counter() - start))
    row = {'fastest_ms': min(times), 'query_ms': float(np.median(times)), 'slowest_ms': max(times)}
    return found, {'way': way, 'build_s': built, **row}


def run(args):
    rng = np.random.default_rng(0)
    vectors, queries = faces_of(args.faces // args.each, args.each, args.dim, args.cosine, rng)
    report = {'faces': len(vectors), 'dim': args.dim, 'cosine': args.cosine, 'each': args.each}
    report |= machine() | {'ways': []}
    truth = None
    for way in args.ways:
        try:
            found, row = timed(way, vectors, queries)
        except ImportError as error:
            print(f'{way}: {error.name} is not installed')
            continue
        truth = truth or found
        hits = sum(len(a & b) for a, b in zip(found, truth, strict=True))
        report['ways'].append({**row, 'recall': hits / (MOST * QUERIES)})
        print(report['ways'][-1], flush=True)
    tables.write(report, args.out)


def arguments():
    parser = tables.parser(__doc__)
    add = parser.add_argument
    add('--faces', type=int, default=1_000_000)
    add('--each', type=int, default=10, help='faces of a person')
    add('--dim', type=int, default=256)
    add('--cosine', type=float, default=0.5)
    add('--ways', nargs='+', choices=WAYS, default=list(WAYS), metavar='WAY')
    add('--out', type=Path, metavar='JSON')
    return parser.parse_args()


if __name__ == '__main__':
    with utils.one_line_errors():
        run(arguments())
