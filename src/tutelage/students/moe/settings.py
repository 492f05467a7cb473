"""How the neurons of a dense model become experts, and how their routers begin."""

from abc import ABC
from typing import Annotated, Literal, TypeAlias, final

from annotated_types import Ge, Gt, Le, Lt
from pydantic import Field, NonNegativeFloat, PositiveInt

from tutelage.core.settings import Settings

RowsOf: TypeAlias = Literal["gate_proj", "up_proj", "concat"]


@final
class ClusteredSplit(Settings):
    """Neurons with similar weights share an expert: balanced k-means on their rows.

    Source: Zhang et al. 2022 (MoEfication), arXiv:2110.01786; PADD, arXiv:2606.10369, equation 1.
    """

    kind: Literal["clustered"] = "clustered"
    rows: RowsOf = "gate_proj"
    """Which weights of a neuron are compared: those into its gate, those beside it, or both."""
    normalised: bool = False
    """Compare directions: every row is divided by its length."""
    solver: Literal["lloyd", "k_means_constrained"] = "lloyd"
    """Ours, exact in every step and fast at any size; or the package of that name, which
    MoEfication and LLaMA-MoE use and which takes long beyond some thousand neurons."""
    num_starts: PositiveInt = 1
    """Times to begin anew; the best clusters are kept."""
    max_iterations: PositiveInt = 100
    """Rounds of assignment and new centroids, at most."""
    size_tolerance: Annotated[float, Ge(0), Lt(1)] = 0.0
    """How far an expert's share of neurons may be from the fair one, as a fraction of it. At 0 all
    are equal; else smaller experts are filled up with neurons that are always zero."""
    poor_clusters: Literal["warn", "refuse", "ignore"] = "warn"
    """What to do where a layer's mean silhouette is below 0 or its sizes vary by more than a tenth
    (CV): say so once, stop, or go on."""
    merge_from: PositiveInt | None = None
    """Cluster into this many first, then merge those on average nearest (UPGMA) into the experts
    and balance again; null clusters into the experts at once."""


@final
class CoActivationSplit(Settings):
    """Neurons that are strong on the same tokens share an expert.

    Source: Pei et al. 2025 (CMoE), arXiv:2502.04416, with Euclidean instead of L1 distances, which
    between marks of 0 and 1 order alike, and all its rounds instead of one.
    """

    kind: Literal["co_activation"] = "co_activation"
    marks_per_token: PositiveInt = 10
    """How many of a token's strongest neurons are marked (K_a)."""
    max_tokens: PositiveInt = 4096
    """Tokens that are looked at; each costs a byte a neuron."""
    max_iterations: PositiveInt = 100
    """Rounds of assignment and new centroids, at most."""


@final
class RandomSplit(Settings):
    """Neurons are dealt to the experts by chance: a baseline."""

    kind: Literal["random"] = "random"


@final
class ContiguousSplit(Settings):
    """Neurons stay in their order, the first expert takes the first ones: a baseline."""

    kind: Literal["contiguous"] = "contiguous"


@final
class Copies(Settings):
    """Every expert is a copy of the whole feed-forward part (sparse upcycling).

    Source: Komatsuzaki et al. 2023 (Sparse Upcycling), arXiv:2212.05055.
    """

    kind: Literal["copies"] = "copies"


@final
class DropCopies(Settings):
    """Copies in which some neurons begin anew, so that experts differ (drop-upcycling).

    Source: Nakamura et al. 2025 (Drop-Upcycling), arXiv:2502.19261.
    """

    kind: Literal["drop_copies"] = "drop_copies"
    redrawn: Annotated[float, Ge(0), Le(1)] = 0.5
    """Share of each expert's neurons whose weights are drawn from a normal distribution with the
    mean and spread of those that they replace."""


SplitSettings = Annotated[
    ClusteredSplit | CoActivationSplit | RandomSplit | ContiguousSplit | Copies | DropCopies,
    Field(discriminator="kind"),
]


@final
class CentroidRouter(Settings):
    """An expert's row is the mean of its neurons' rows: its logit is their mean pre-activation.

    Source: PADD, arXiv:2606.10369, section 2.2.
    """

    kind: Literal["centroids"] = "centroids"
    mean_norm: Annotated[float, Gt(0)] | None = 0.01
    """Rescale the rows of a layer to this mean length. Short rows choose as long ones do, but with
    gates that are nearly equal, as the experts were scaled for; null leaves the means as they are,
    and the largest gate may be nearly all."""


@final
class FittedRouter(Settings):
    """Rows that tell, by least squares on calibration rows, which experts will write most.

        logit of expert j  ~  sum over its neurons of |activation| * |down column|,
                              less the mean over experts

    Source: the linear case of the learned routers of MoEfication, arXiv:2110.01786.
    """

    kind: Literal["fitted"] = "fitted"
    ridge: Annotated[float, Gt(0)] = 0.01
    """Weight of the rows' own squared length, relative to the mean square of the inputs."""
    mean_norm: Annotated[float, Gt(0)] | None = 0.01
    """As for centroids."""


@final
class ZeroRouter(Settings):
    """All rows are zero: every gate is the same, and ties decide who is chosen."""

    kind: Literal["zeros"] = "zeros"


@final
class RandomRouter(Settings):
    """Rows of small random numbers."""

    kind: Literal["random"] = "random"
    std: NonNegativeFloat = 0.02
    """Their standard deviation."""


RouterSettings = Annotated[
    CentroidRouter | FittedRouter | ZeroRouter | RandomRouter, Field(discriminator="kind")
]


class Upcycling(Settings, ABC):
    """What is asked of a mixture of experts that is made of a dense model."""

    experts: Annotated[int, Ge(2)]
    """Experts in every layer that a router chooses from (N)."""
    active: PositiveInt
    """How many of them a token uses (K); at most all."""
    shared: Annotated[int, Ge(0)] = 0
    """As many experts' worth of neurons are used by every token: those with the largest
    activations on calibration rows. Only where the host has such a place (Qwen2)."""
    split: SplitSettings = ClusteredSplit()
    """Which neurons share an expert, such as {kind: random}."""
    router: RouterSettings | None = None
    """How routers begin, such as {kind: zeros}; null is centroids where the neurons are split, and
    random rows where experts are copies, which have no centroid of their own."""
    gates: Literal["renormalised", "softmax"] = "renormalised"
    """Whether the gates of the chosen experts are divided by their sum, or stay what the softmax
    over all experts gave them. Experts are scaled so that equal gates count as 1 each."""


class Rerouting(Settings, ABC):
    """How the teacher's clusters become the routers of experts that know something already."""

    split: ClusteredSplit = ClusteredSplit()
    """How the teacher's neurons are clustered."""
    match: Literal["identity", "hungarian"] = "identity"
    """Cluster j to expert j; or every cluster to an expert so that, over the calibration tokens,
    what clusters do and whom the router likes so far are as correlated as can be."""
    ridge: Annotated[float, Gt(0)] = 0.01
    """Of the map between hidden states, relative to the mean square of the student's."""
    keep_norm: bool = True
    """Rescale a layer's rows to the mean length they had, so that gates stay in their range."""
