"""The shape of a mixture of experts, from the dense model's config and what is asked of it."""

from dataclasses import dataclass
from typing import final

from transformers import PretrainedConfig

from tutelage.core.errors import ConfigError
from tutelage.models import host_config, host_of
from tutelage.students.clustering import Sizes
from tutelage.students.moe.settings import ClusteredSplit, Copies, DropCopies, Upcycling

_KERNEL_MULTIPLE = 8


@final
@dataclass(frozen=True, kw_only=True)
class ExpertShape:
    """How many neurons go where, the same in every layer."""

    num_neurons: int
    """Of one feed-forward part of the dense model (d_ff)."""
    num_experts: int
    num_active: int
    num_shared: int
    """Neurons that every token uses."""
    smallest: int
    """Neurons of the smallest expert, at least."""
    largest: int
    """Neurons of the largest expert, at most."""
    width: int
    """Neurons an expert has room for: `largest`, rounded up to what matrix kernels ask for."""
    copied: bool
    """Each expert holds all neurons instead of a part of them."""

    @property
    def active_neurons(self) -> int:
        """Neurons that one token uses in one layer."""
        return self.num_active * self.width + self.num_shared


def shape_of(dense: PretrainedConfig, plan: Upcycling) -> ExpertShape:
    """How the dense model's neurons are to be divided; no weight is looked at.

    Raises:
        ModelError: no mixture-of-experts family computes what this family does.
        ConfigError: so many experts cannot be had.
    """
    host_of(dense)
    if plan.active > plan.experts:
        message = (
            f"student.active is {plan.active}; it must be from 1 to student.experts, "
            f"{plan.experts}. Lower it."
        )
        raise ConfigError(message)
    num_neurons = int(dense.intermediate_size)
    copied = isinstance(plan.split, Copies | DropCopies)
    if copied:
        _refuse_for_copies(plan)
        return ExpertShape(
            num_neurons=num_neurons,
            num_experts=plan.experts,
            num_active=plan.active,
            num_shared=0,
            smallest=num_neurons,
            largest=num_neurons,
            width=_rounded(num_neurons),
            copied=True,
        )
    parts = plan.experts + plan.shared
    tolerance = plan.split.size_tolerance if isinstance(plan.split, ClusteredSplit) else 0.0
    if num_neurons % parts and (tolerance == 0 or num_neurons < parts):
        raise _indivisible(plan, num_neurons)
    num_shared = plan.shared * (num_neurons // parts)
    sizes = Sizes.within(num_neurons - num_shared, plan.experts, tolerance)
    return ExpertShape(
        num_neurons=num_neurons,
        num_experts=plan.experts,
        num_active=plan.active,
        num_shared=num_shared,
        smallest=sizes.smallest,
        largest=sizes.largest,
        width=_rounded(sizes.largest),
        copied=False,
    )


def upcycled_config(dense: PretrainedConfig, plan: Upcycling) -> PretrainedConfig:
    """The config of the mixture of experts that `upcycle` makes of such a model.

    Raises:
        ModelError: no mixture-of-experts family computes what this family does.
        ConfigError: so many experts cannot be had, or the host has no place for what is asked.
    """
    shape = shape_of(dense, plan)
    return host_config(
        dense,
        num_experts=shape.num_experts,
        num_active=shape.num_active,
        expert_width=shape.width,
        shared_width=shape.num_shared,
        add_up_to_one=plan.gates == "renormalised",
    )


def _rounded(width: int) -> int:
    # Grouped matrix products want rows of 16 bytes, in any precision.
    return -(-width // _KERNEL_MULTIPLE) * _KERNEL_MULTIPLE


def _refuse_for_copies(plan: Upcycling) -> None:
    if plan.shared:
        message = (
            f"student.shared is {plan.shared} with split.kind {plan.split.kind}, where every "
            "expert holds all neurons; it must be 0. Leave it out, or split the neurons."
        )
        raise ConfigError(message)
    if plan.router is not None and plan.router.kind in ("centroids", "fitted"):
        message = (
            f"student.router.kind is {plan.router.kind} with split.kind {plan.split.kind}, whose "
            "experts all hold the same neurons; it must be random or zeros. Leave it out."
        )
        raise ConfigError(message)


def _indivisible(plan: Upcycling, num_neurons: int) -> ConfigError:
    def fits(experts: int) -> bool:
        return num_neurons % (experts + plan.shared) == 0

    below = next((n for n in range(plan.experts, 1, -1) if fits(n)), None)
    above = next((n for n in range(plan.experts, num_neurons + 1) if fits(n)), None)
    near = " or ".join(str(n) for n in (below, above) if n is not None)
    with_shared = f" and {plan.shared} shared" if plan.shared else ""
    return ConfigError(
        f"student.experts is {plan.experts}{with_shared}, which does not divide the model's "
        f"{num_neurons} neurons a layer; it must, so that all experts are equal. Take "
        f"{near or 'fewer'}, or set split.size_tolerance."
    )
