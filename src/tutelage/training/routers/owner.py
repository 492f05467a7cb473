"""The one owner of what moves in a student's routers, once for each optimiser step."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tutelage.core.errors import ConfigError
from tutelage.core.records import Rollout, TokenBatch
from tutelage.core.seeds import seed_for
from tutelage.models.causal_lm import CausalLM
from tutelage.models.routers import (
    Order,
    Route,
    RouterTap,
    UniformDense,
    UniformSample,
    biases_of,
    install_biased_routers,
    set_biases,
)
from tutelage.routing import (
    capped,
    expert_advantage,
    expert_load,
    loss_free_bias,
    moved_bias,
    moving_average,
    without_start,
)
from tutelage.training.ranks import Ranks
from tutelage.training.routers.numbers import Snapshot, numbers_of
from tutelage.training.routers.probe import Probe
from tutelage.training.routers.settings import LossFreeBalance, RewardBias, RoutingSettings
from tutelage.training.routers.tally import Tally, tally_of
from tutelage.training.routers.terms import Activities, balance_term


@final
class RouterOwner:
    """Hears the routers while the student trains, adds their losses, and moves their biases.

    The stepper puts `reading` around the student's forward pass, adds `share` to the loss, and
    calls `move` after each optimiser step, on all ranks alike. Evaluation goes around it.

    Args:
        targets: how active experts should be, where the settings ask for it: shares of each layer.
        domains: the kinds of text in the rows, where the settings name their column.
        probe: measures how far routing moves; None does not.
    """

    def __init__(
        self,
        lm: CausalLM,
        settings: RoutingSettings,
        *,
        seed: int,
        targets: Float[Tensor, "layer E"] | None = None,
        domains: Sequence[str] = (),
        probe: Probe | None = None,
    ) -> None:
        choice = isinstance(settings.balance, LossFreeBalance)
        self._control = install_biased_routers(lm, takes_part_in="choice" if choice else None)
        self._lm, self._settings, self._seed = lm, settings, seed
        biases = self._biases()
        self._shape = (biases.shape[0], biases.shape[1], len(domains))
        self._domains = {name: at for at, name in enumerate(domains)}
        self._probe = probe
        self._activities = None
        if settings.targets is not None:
            self._activities = Activities(_checked(targets, biases.shape), settings.targets)
        self._num_moves = 0
        self._average = torch.zeros(biases.shape, dtype=torch.float64)
        self._tally = Tally.empty(*self._shape)
        self._terms: list[Tensor] = []
        self._rows: Sequence[Rollout] = ()
        self._rank = 0
        self._tap: RouterTap | None = None
        self._generators: Sequence[torch.Generator] = ()
        self.latest: Snapshot | None = None
        """What the last step did, layer by layer, for reports."""

    def coming(self, rows: Sequence[Rollout], *, rank: int) -> None:
        """The rows of the next forward pass, as they came, and who reads them.

        A probe begins here, where nobody listens to the routers yet.
        """
        self._rows, self._rank = rows, rank
        if self._probe is not None:
            self._probe.begin()

    @contextmanager
    def reading(self, batch: TokenBatch) -> Generator[None]:
        """Around the student's forward pass over a micro-batch that is trained on."""
        tap = RouterTap(self._lm, with_gradient=balance_term(self._settings.balance) is not None)
        with ExitStack() as stack:
            if self._settings.mode != "route":
                # A policy may have the routers replay: an order to route would undo that.
                stack.enter_context(self._control.ordered(self._order()))
            stack.enter_context(tap)
            if self._activities is not None:
                self._activities.clear()
                stack.enter_context(self._control.experts_heard_by(self._activities))
            yield
        self._tap = tap
        self._tally += tally_of(
            tap.of(batch.student),
            batch,
            classes=self._classes(batch),
            num_classes=len(self._domains),
        )

    def share(self, batch: TokenBatch, weights: Float[Tensor, " N"]) -> Float[Tensor, ""] | None:
        """The routers' losses of what was just read, as this micro-batch's part of the step.

        They are means over a micro-batch's tokens of things that are not linear, so how a step is
        cut changes them, most where there are few; each counts by its share of the step's weight.
        """
        found: list[Tensor] = []
        term = balance_term(self._settings.balance)
        if term is not None and self._tap is not None:
            found.append(term(self._tap.of(batch.student)))
        if self._activities is not None:
            found.append(self._activities.loss())
        self._tap = None
        if not found:
            return None
        share = torch.stack(found).sum() * weights.sum()
        self._terms.append(share.detach().double().cpu())
        return share

    @torch.no_grad()
    def move(self, ranks: Ranks) -> Mapping[str, float]:
        """Move the biases by what was heard since the last move; answers what goes into the log."""
        terms = sum(self._terms, torch.zeros((), dtype=torch.float64))
        here = torch.cat([self._tally.flat(), terms[None]])
        total = ranks.total(here.to(ranks.device)).cpu()
        tally, term = self._tally.filled(total[:-1]), float(total[-1])
        self._num_moves += 1
        self._move_bias(tally)
        shift = None if self._probe is None else self._probe.after(self._num_moves)
        self.latest = Snapshot(
            load=expert_load(tally.counts),
            advantage=expert_advantage(tally.advantages, tally.judged),
            bias=self._biases().cpu(),
            shift=shift,
        )
        numbers = numbers_of(tally, self.latest, self._settings)
        self._tally, self._generators = Tally.empty(*self._shape), ()
        if self._terms:
            numbers["router_loss"] = term
            self._terms.clear()
        return numbers

    def _move_bias(self, tally: Tally) -> None:
        bias = self._biases()
        match self._settings.balance:
            case RewardBias() as settings:
                now = expert_advantage(tally.advantages, tally.judged)
                weight = settings.average_weight
                self._average = moving_average(self._average, now, weight=weight)
                advantage = without_start(self._average, weight=weight, num_updates=self._num_moves)
                moved = moved_bias(
                    bias,
                    expert_load(tally.counts).to(bias.device),
                    advantage.to(bias.device),
                    balance_rate=settings.balance_rate,
                    reward_rate=settings.reward_rate,
                    sign=settings.sign,
                )
                set_biases(
                    self._lm, moved if settings.cap is None else capped(moved, most=settings.cap)
                )
            case LossFreeBalance(rate=rate):
                set_biases(self._lm, loss_free_bias(bias, tally.counts.to(bias.device), rate=rate))
            case _:
                pass

    def _order(self) -> Order:
        match self._settings.mode:
            case "route":
                return Route()
            case "uniform_dense":
                return UniformDense()
            case "uniform_sample":
                if not self._generators:
                    # Anew for each step, so that the number of steps is all there is to save.
                    names = ("routers", self._num_moves, self._rank)
                    self._generators = [
                        torch.Generator().manual_seed(seed_for(self._seed, *names, layer))
                        for layer in range(self._shape[0])
                    ]
                return UniformSample(self._generators)

    def _classes(self, batch: TokenBatch) -> Int[Tensor, " B"] | None:
        column = self._settings.domain_column
        if column is None or not self._domains:
            return None
        named = [str(row.prompt.row.get(column, "")) for row in self._rows]
        return torch.tensor(
            [self._domains.get(name, -1) for name in named], device=batch.row_of.device
        )

    def _biases(self) -> Float[Tensor, "layer E"]:
        biases = biases_of(self._lm)
        assert biases is not None  # noqa: S101  they were installed at the beginning
        return biases

    def state_dict(self) -> dict[str, Any]:
        """What moves besides the biases, which are part of the student."""
        return {
            "num_moves": self._num_moves,
            "average": self._average,
            "probe": None if self._probe is None else self._probe.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._num_moves = state["num_moves"]
        self._average = state["average"]
        if self._probe is not None:
            self._probe.load_state_dict(state["probe"])


def _checked(
    targets: Float[Tensor, "layer E"] | None, shape: torch.Size
) -> Float[Tensor, "layer E"]:
    if targets is None or targets.shape != shape:
        got = "missing" if targets is None else f"of {tuple(targets.shape)}"
        message = (
            f"routing.targets is {got}; there must be a share for each of {shape[0]} layers and "
            f"{shape[1]} experts. Make them from this student's own clusters."
        )
        raise ConfigError(message)
    return targets
