"""The order in which a training sees its faces: a function of seed and epoch alone."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

# faces among which one from shards is shuffled: about 2 GB, which stay in the system's cache
WINDOW = 1 << 18


class Batches(Sampler):
    """Lists of indices, epoch after epoch: shuffled by (seed, epoch), the incomplete last one left
    out.

    Set `epoch`, and `first` to begin at a later batch of it, as a resumed run does; the order never
    depends on what ran before. Of several processes, each takes its share of every batch: the same
    batches, whatever their number, and shares that differ by one at most. `shards` (n,), the shard
    that each face is in, keeps the order of more than WINDOW faces to a few shards at a time.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        seed: int,
        process: int = 0,
        processes: int = 1,
        shards: np.ndarray | None = None,
    ):
        self.n, self.batch_size, self.seed, self.shards = n, batch_size, seed, shards
        self.process, self.processes = process, processes
        self.epoch = self.first = 0

    def __len__(self) -> int:
        return self.n // self.batch_size

    def order(self) -> np.ndarray:
        """The epoch's order (n,), whole."""
        draw = np.random.default_rng((self.seed, self.epoch))
        if self.shards is None or self.n <= WINDOW:
            return draw.permutation(self.n)
        # shard after shard, each shuffled; then every face moves by less than WINDOW places, so
        # that neighbouring shards mix
        turn = draw.permutation(self.shards.max() + 1)
        faces = np.lexsort((draw.random(self.n), turn[self.shards]))
        moved = np.arange(self.n) + WINDOW * draw.random(self.n)
        return faces[np.argsort(moved, kind='stable')]

    def __iter__(self) -> Iterator[list[int]]:
        order = self.order()
        for number in range(self.first, len(self)):
            batch = order[number * self.batch_size : (number + 1) * self.batch_size]
            yield np.array_split(batch, self.processes)[self.process].tolist()
