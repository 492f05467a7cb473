"""The loss of a student whose teacher has another tokenizer, from hidden states and heads."""

from tutelage.objectives.groupwise.loss import (
    can_cross,
    groupwise_loss,
    groupwise_per_token,
    needs_bridge,
)

__all__ = ["can_cross", "groupwise_loss", "groupwise_per_token", "needs_bridge"]
