"""Learning from rewards: the log-likelihood of what was said, times how well it did."""

from typing import Annotated, Literal, final

from annotated_types import Gt
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from tutelage.core.errors import DataError
from tutelage.objectives.cross_entropy import CrossEntropy
from tutelage.objectives.objective import Objective


@final
class PolicyGradient(Objective):
    """-log student(y) of the sampled tokens; whoever trains multiplies it by their advantages.

    With advantages within the group of completions of one prompt, and one optimiser step for each
    window of fresh completions, it is GRPO without a KL term: the ratio of new to old policy is 1
    on every step, so there is nothing to clip. The training loss that is reported,
    -advantage * log student(y), tells nothing by itself: look at the reward.

    Source: Williams 1992 (REINFORCE); Shao et al. 2024 (GRPO), arXiv:2402.03300.
    """

    kind: Literal["policy_gradient"] = "policy_gradient"

    temperature: Annotated[float, Gt(0)] = 1.0
    """Divides the logits. The gradient is that of the policy which drew the tokens only where they
    were drawn at the same."""

    @property
    @override
    def needs_teacher(self) -> bool:
        """Never: rewards teach."""
        return False

    @override
    def from_logits(
        self,
        student_logits: Float[Tensor, "*at V"],
        teacher_logits: Float[Tensor, "*at V"],
        labels: Int[Tensor, "*at"] | None = None,
    ) -> Float[Tensor, "*at"]:
        """Nats at the labels, before any advantage."""
        labels = _asked(labels)
        return _TOKENS.from_logits(student_logits / self.temperature, teacher_logits, labels)

    @override
    def rows(
        self,
        student_logits: Float[Tensor, "R V"],
        teacher_logits: Float[Tensor, "R V"],
        labels: Int[Tensor, " R"] | None,
    ) -> Float[Tensor, " R"]:
        """Value and gradient of a few rows in place."""
        labels = _asked(labels)
        if self.temperature == 1:
            return _TOKENS.rows(student_logits, teacher_logits, labels)
        student_logits.div_(self.temperature)
        values = _TOKENS.rows(student_logits, teacher_logits, labels)
        student_logits.div_(self.temperature)
        return values


_TOKENS = CrossEntropy(labels="tokens")


def _asked(labels: Int[Tensor, "*at"] | None) -> Int[Tensor, "*at"]:
    if labels is None:
        raise DataError(
            "policy_gradient has a target without token ids; it must carry the sampled ones. "
            "Give the target labels."
        )
    return labels
