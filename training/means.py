"""Running figures of a training, synchronised with the device once per report, not per step."""
import math

import torch


class Mean:
    """Running means of scalars that stay on the device: one wait for it per report, not per
    step."""

    def __init__(self):
        self.sums, self.counts = {}, {}

    def add(self, **scalars):
        for name, value in scalars.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()
            self.counts[name] = self.counts.get(name, 0) + 1

    def __bool__(self):
        return bool(self.sums)

    def flush(self):
        """Means since the last call, as floats."""
        names = list(self.sums)
        values = torch.stack([self.sums[name].float() for name in names]).tolist() if names else []
        means = {name: value / self.counts[name] for name, value in zip(names, values, strict=True)}
        self.__init__()
        return means

    def state_dict(self):
        return {'sums': dict(self.sums), 'counts': dict(self.counts)}

    def load_state_dict(self, state, device):
        self.sums = {name: total.to(device).reshape(()) for name, total in state['sums'].items()}
        self.counts = {name: int(state['counts'][name]) for name in self.sums}


class NotFinite:
    """Notes the first step at which one of its scalars was not finite, without waiting for the
    device at each."""

    def __init__(self):
        self.names, self.values = (), None

    def add(self, step, **scalars):
        number = torch.full_like(scalars['loss'].detach(), step, dtype=torch.float64)
        values = torch.stack([number, *(value.detach().double() for value in scalars.values())])
        keep = self.values is not None and self.names == tuple(scalars)
        self.names = tuple(scalars)
        if keep:  # once a bad step is held, it stays; until then the newest is held
            values = torch.where(self.values.isfinite().all(), values, self.values)
        self.values = values

    def first(self):
        """(step, {name: value}) of that step, or None."""
        if self.values is None:
            return None
        step, *values = self.values.tolist()
        if all(map(math.isfinite, values)):
            return None
        return int(step), dict(zip(self.names, values, strict=True))
