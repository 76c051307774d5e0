"""Running figures of a training: the host waits for the device once per report, not per step."""

import math
from typing import Any

import torch
from torch import Tensor


class Mean:
    """Running means of scalars that stay on the device: one wait for it per report, not per
    step."""

    def __init__(self) -> None:
        # of names that are not added to now
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        # those that are, and their sums in one tensor
        self.names: tuple[str, ...] = ()
        self.total: Any = None

    def add(self, **scalars: Tensor) -> None:
        names, values = tuple(scalars), stacked(scalars)
        if names != self.names:
            self.sums = self._apart()
            known = [self.sums.pop(name, None) for name in names]
            self.names = names
            self.total = torch.stack(
                [
                    torch.zeros_like(value) if total is None else total
                    for total, value in zip(known, values, strict=True)
                ]
            )
        self.total = self.total + values
        for name in names:
            self.counts[name] = self.counts.get(name, 0) + 1

    def _apart(self):
        """The sums, a tensor () a name."""
        return self.sums | dict(
            zip(self.names, () if self.total is None else self.total.unbind(), strict=True)
        )

    def __bool__(self):
        return bool(self.counts)

    def flush(self) -> dict[str, float]:
        """Means since the last call, as floats."""
        sums = self._apart()
        values = torch.stack(list(sums.values())).tolist() if sums else []
        means = {name: value / self.counts[name] for name, value in zip(sums, values, strict=True)}
        Mean.__init__(self)
        return means

    def state_dict(self) -> dict:
        sums = {name: total.clone() for name, total in self._apart().items()}
        return {'sums': sums, 'counts': dict(self.counts)}

    def load_state_dict(self, state: dict, device: torch.device) -> None:
        Mean.__init__(self)
        self.sums = {name: total.to(device).reshape(()) for name, total in state['sums'].items()}
        self.counts = {name: int(state['counts'][name]) for name in self.sums}


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
    """Notes the first step at which one of its scalars was not finite, without waiting for the
    device at each."""

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
