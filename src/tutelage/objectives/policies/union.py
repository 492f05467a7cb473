"""The union of all policies."""

from typing import Annotated

from pydantic import Field

from tutelage.objectives.policies.sequence_ratio import Gmpo, Gspo, Rspo
from tutelage.objectives.policies.token_ratio import DrGrpo, Grpo, PrGrpo

PolicySettings = Annotated[Grpo | DrGrpo | Gspo | Gmpo | Rspo | PrGrpo, Field(discriminator="kind")]
"""Any policy, as a field of a tree of settings."""
