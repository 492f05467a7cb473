"""What a run may choose about the routers of a student that is a mixture of experts."""

from typing import Annotated, Literal, TypeAlias, final

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from tutelage.core.settings import Settings
from tutelage.routing import Sign


@final
class NoBalance(Settings):
    """Nothing but the loss decides where tokens go."""

    kind: Literal["none"] = "none"


@final
class RewardBias(Settings):
    """A bias before the softmax: away from busy experts, towards those whose tokens did well.

    Source: Peng et al. 2026 (PADD), arXiv:2606.10369, equations 10 and 11.
    """

    kind: Literal["reward_bias"] = "reward_bias"
    balance_rate: NonNegativeFloat = 0.01
    """How far an update moves a bias for each unit of load above or below the fair share (eta)."""
    reward_rate: NonNegativeFloat = 0.05
    """The same for each unit of the expert's averaged advantage (gamma); 0 only balances."""
    average_weight: Annotated[float, Gt(0), Le(1)] = 0.2
    """The newest advantage's part in its moving average; 1 has no memory."""
    sign: Sign = "intended"
    """`literal` adds load to the bias of the busy, as the paper prints it; for looking at only."""
    cap: PositiveFloat | None = None
    """Biases are kept this near to their mean; null lets the rewards' part grow without end."""
    alarm: PositiveFloat | None = None
    """Layers whose busiest expert has more than this many fair shares too much (MaxVio) are
    counted in the log as `router_alarms`; null counts none."""


@final
class LossFreeBalance(Settings):
    """A bias in the choice of experts alone, moved one fixed stride towards even load.

    Source: Wang et al. 2024 (Loss-Free Balancing), arXiv:2408.15664.
    """

    kind: Literal["loss_free"] = "loss_free"
    rate: PositiveFloat = 0.001
    """The stride (u)."""


@final
class SwitchLoss(Settings):
    """An auxiliary loss on load times probability, as transformers computes it.

    Source: Fedus et al. 2021 (Switch), arXiv:2101.03961.
    """

    kind: Literal["switch_loss"] = "switch_loss"
    weight: PositiveFloat = 0.001
    """Added to the loss with this factor."""


@final
class ImportanceLoss(Settings):
    """An auxiliary loss on how unevenly probability is spread over experts.

    Source: Shazeer et al. 2017, arXiv:1701.06538.
    """

    kind: Literal["importance_loss"] = "importance_loss"
    weight: PositiveFloat = 0.01
    """Added to the loss with this factor."""


BalanceSettings: TypeAlias = Annotated[
    NoBalance | RewardBias | LossFreeBalance | SwitchLoss | ImportanceLoss,
    Field(discriminator="kind"),
]


@final
class ExpertTargetSettings(Settings):
    """How active each expert should be, beside the others of its layer (L_init)."""

    file: Annotated[str, MinLen(1)] | None = None
    """A safetensors file with `shares`, one row a layer and one column an expert, each row adding
    up to 1; null is expert_targets.safetensors in the student's folder."""
    weight: Annotated[float, Gt(0)] = 0.1
    """Added to the loss with this factor (beta)."""
    temperature: Annotated[float, Gt(0)] = 0.1
    """Divides mean activities before the softmax over experts (xi): the one the targets have."""


@final
class RoutingSettings(Settings):
    """How a mixture of experts is routed, balanced and watched while it trains."""

    mode: Literal["route", "uniform_sample", "uniform_dense"] = "route"
    """`route` asks the routers. `uniform_sample` sends each token to experts drawn at random, as
    many as ever; `uniform_dense` to all. Both are for the training's own forward passes only."""
    trained: Literal["all", "experts"] | None = None
    """`experts` freezes everything else; null does so exactly where routing is uniform."""
    balance: BalanceSettings = NoBalance()
    """What keeps experts in use, such as {kind: reward_bias}."""
    targets: ExpertTargetSettings | None = None
    """Pull experts towards the activities of a teacher's clusters; null does not."""
    save_bias: Literal["code", "fold", "refuse"] = "code"
    """What becomes of biases in the saved student, for which stock classes have no place: `code`
    saves them with the code that reads them, `fold` puts them into the routers' weights as well
    as that can be done and says how well, `refuse` starts no run that might end with any."""
    domain_column: Annotated[str, MinLen(1)] | None = None
    """A column of the rows that names what kind of text they are; the log then has how much
    experts and kinds belong together. Null does not ask."""
    probe_rows: Annotated[int, Ge(0)] = 8
    """Rows on which the routing shift is measured again and again; 0 does not."""
    probe_every: PositiveInt | None = None
    """Updates between two such measurements; null is about fifty in a run."""

    @property
    def trains_experts_only(self) -> bool:
        """Whether all but the experts are frozen."""
        return (self.trained or ("all" if self.mode == "route" else "experts")) == "experts"

    @property
    def moves_bias(self) -> bool:
        """Whether a run may end with biases other than 0."""
        return isinstance(self.balance, RewardBias | LossFreeBalance)
