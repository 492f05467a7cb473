"""The policies as their papers write them: row by row, with autograd through everything but drift.

Written without a look at the package's own arithmetic; `tests/objectives/policies` compares.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.objectives.policies import DrawnTokens


@dataclass(frozen=True)
class Rows:
    """Completions of different lengths: log-probabilities now and then, advantages, drifts."""

    logp: list[Tensor]
    old: list[Tensor]
    advantages: list[float]
    drift: list[Tensor]

    @property
    def tokens(self) -> DrawnTokens:
        """The same, as the package reads them."""
        lengths = [len(row) for row in self.logp]
        row_of = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        logp = torch.cat(self.logp).detach()
        return DrawnTokens(
            logp=logp,
            old_logp=torch.cat(self.old),
            advantages=torch.tensor(self.advantages, dtype=logp.dtype)[row_of],
            loss_mask=torch.ones(len(row_of), dtype=torch.bool),
            row_of=row_of,
            drift=torch.cat(self.drift),
        )


def made_up(*, seed: int = 0, spread: float = 0.3) -> Rows:
    """Ragged rows whose ratios lie on all sides of every clip; both signs and a zero among A."""
    generator = torch.Generator().manual_seed(seed)

    def some(length: int) -> Tensor:
        return torch.randn(length, generator=generator, dtype=torch.float64)

    lengths = (1, 4, 7, 3, 5, 2, 6, 4)
    old = [-some(length).abs() for length in lengths]
    logp = [(row + spread * some(len(row))).requires_grad_() for row in old]
    return Rows(
        logp=logp,
        old=old,
        advantages=[1.5, -0.7, 0.2, -1.9, 0.0, 1.1, -0.3, 0.6],
        drift=[some(length).abs() / 2 for length in lengths],
    )


def clipped(ratio: Tensor, advantage: float, low: float, high: float) -> Tensor:
    return torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def grpo(rows: Rows, *, low: float = 0.2, high: float = 0.2) -> list[Tensor]:
    """Equation 3 of arXiv:2402.03300 without its KL: J of every token."""
    return [
        clipped((new - old).exp(), a, low, high)
        for new, old, a in zip(rows.logp, rows.old, rows.advantages, strict=True)
    ]


def pr_grpo(
    rows: Rows, *, suppression: float = 0.1, low: float = 0.2, high: float = 0.2
) -> list[Tensor]:
    """Equations 8 and 9 of arXiv:2606.10369, drift held still."""
    found: list[Tensor] = []
    for new, old, a, drift in zip(rows.logp, rows.old, rows.advantages, rows.drift, strict=True):
        penalty = drift if a < 0 else torch.zeros_like(drift)
        found.append(clipped((new - old).exp() * (-suppression * penalty).exp(), a, low, high))
    return found


def gspo(rows: Rows, *, low: float = 3e-4, high: float = 4e-4) -> list[Tensor]:
    """Equations 5 and 7 of arXiv:2507.18071: J of every completion."""
    return [
        clipped((new - old).mean().exp(), a, low, high)
        for new, old, a in zip(rows.logp, rows.old, rows.advantages, strict=True)
    ]


def gmpo(rows: Rows, *, clip: float = 0.4) -> list[Tensor]:
    """The official code's form: log-ratios clipped in the direction of the advantage."""
    found: list[Tensor] = []
    for new, old, a in zip(rows.logp, rows.old, rows.advantages, strict=True):
        sign = -1.0 if a < 0 else 1.0
        gap = sign * (new - old)
        held = torch.minimum(gap, sign * (sign * gap).clamp(-clip, clip))
        found.append((sign * held).mean().exp() * a)
    return found


def rspo(rows: Rows, *, clip: float = 0.4, lowest: float = 0.8, before: bool) -> list[Tensor]:
    found: list[Tensor] = []
    for new, old, a, drift in zip(rows.logp, rows.old, rows.advantages, rows.drift, strict=True):
        w = (-drift).exp().clamp(min=lowest)
        sign = -1.0 if a < 0 else 1.0
        gap = new - old + (w.log() if before else 0.0)
        term = sign * torch.minimum(sign * gap, sign * gap.clamp(-clip, clip))
        found.append((term + (0.0 if before else w.log())).mean().exp() * a)
    return found


def mean_over_rows(values: list[Tensor]) -> Tensor:
    """The mean over completions of the mean over their tokens."""
    return torch.stack([row.mean() for row in values]).mean()


def mean_over_tokens(values: list[Tensor]) -> Tensor:
    return torch.cat(values).mean()
