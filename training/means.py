"""Running figures of a training: the host waits for the device once per report, not per step."""

import math
from collections import Counter
from typing import Any

import torch
from torch import Tensor


class Mean:
    """Running means of scalars that stay on the device."""

    def __init__(self) -> None:
        # by the names that were added together
        self.totals: dict[tuple[str, ...], Tensor] = {}
        self.counts: dict[tuple[str, ...], int] = {}

    def add(self, **scalars: Tensor) -> None:
        names, values = tuple(scalars), stacked(scalars)
        self.totals[names] = self.totals[names] + values if names in self.totals else values
        self.counts[names] = self.counts.get(names, 0) + 1

    def __bool__(self):
        return bool(self.counts)

    def flush(self) -> dict[str, float]:
        """Means since the last call, as floats."""
        sums: Counter[str] = Counter()
        counts: Counter[str] = Counter()
        for names, total in self.totals.items():
            sums.update(dict(zip(names, total.tolist(), strict=True)))
            counts.update(dict.fromkeys(names, self.counts[names]))
        Mean.__init__(self)
        return {name: value / counts[name] for name, value in sums.items()}

    def state_dict(self) -> dict:
        return {'totals': dict(self.totals), 'counts': dict(self.counts)}

    def load_state_dict(self, state: dict, device: torch.device) -> None:
        self.totals = {
            names: total.to(device).reshape(len(names)) for names, total in state['totals'].items()
        }
        self.counts = {names: int(state['counts'][names]) for names in self.totals}


class PhaseMean(Mean):
    """Means over max phases: |ρ| before a phase's first step, the rest after its last."""

    rho_at_start: Tensor | None = None  # () of the phase under way

    def add_step(self, ends: bool, rho_before: Tensor, **after: Tensor) -> None:
        """A step of the adversary; `ends` says whether it is the last of its phase."""
        if self.rho_at_start is None:
            self.rho_at_start = rho_before
        if ends:
            self.add(rho_before=self.rho_at_start, **after)
            self.rho_at_start = None


def stacked(scalars: dict[str, Tensor]) -> Tensor:
    """Their values in one float32 tensor."""
    return torch.stack([value.detach().float() for value in scalars.values()])


class NotFinite:
    """Notes the first step at which one of its scalars was not finite."""

    def __init__(self):
        self.names: tuple[str, ...] = ()
        self.step: Any = None
        self.values: Any = None

    def add(self, step: int, **scalars: Tensor) -> None:
        values = stacked(scalars)
        number = torch.full((), step, dtype=torch.long, device=values.device)
        if self.names == tuple(scalars):  # once a bad step is held, it stays; else the newest is
            fine = self.values.isfinite().all()
            values = torch.where(fine, values, self.values)
            number = torch.where(fine, number, self.step)
        self.names, self.step, self.values = tuple(scalars), number, values

    def first(self) -> tuple[int, dict[str, float]] | None:
        """(step, {name: value}) of that step, or None."""
        if self.values is None:
            return None
        values = self.values.tolist()
        if all(map(math.isfinite, values)):
            return None
        return int(self.step), dict(zip(self.names, values, strict=True))
