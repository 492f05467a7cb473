"""What a teacher may answer for a batch, and the head that turns hidden states into logits."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, final

from jaxtyping import Float, Int
from torch import Tensor, nn

from tutelage.core.crossing import Coverage, Groups, SharedWords


@final
@dataclass(frozen=True, kw_only=True)
class Head:
    """The last linear map of a language model.

        logits = softcap(scale * (hidden @ weight.T + bias))

    The weight may be tied to the input embedding; it is never copied here.
    """

    weight: Float[Tensor, "V D"]
    bias: Float[Tensor, " V"] | None = None
    scale: float = 1.0
    """Multiplies the logits (Cohere, Granite divide by a constant: give its inverse)."""
    softcap: float | None = None
    """Squeezes the scaled logits to softcap * tanh(logits / softcap) (Gemma)."""
    num_real: int | None = None
    """Vocabulary entries that mean something; rows behind them are padding. None: all of them."""


@final
@dataclass(frozen=True, kw_only=True)
class LogitsTarget:
    """The teacher's raw scores, one row for each position."""

    logits: Float[Tensor, "*at V"]
    labels: Int[Tensor, "*at"] | None = None
    """The completion's own token ids, for objectives with hard labels."""
    num_real: int | None = None
    """Vocabulary entries that mean something; what lies behind them is ignored on both sides."""


@final
@dataclass(frozen=True, kw_only=True)
class HiddenTarget:
    """The teacher's last hidden states and its head: exact for every objective, and small."""

    hidden: Float[Tensor, "N W"]
    head: Head
    labels: Int[Tensor, " N"] | None = None


Rest = Literal["tail_bucket", "renormalised", "truncated"]
"""What becomes of the tokens that a top-k target did not keep: see `objectives.partial.top_k`."""


@final
@dataclass(frozen=True, kw_only=True)
class TopKTarget:
    """The K entries a teacher kept, with natural-log probabilities over its whole vocabulary."""

    ids: Int[Tensor, "*at K"]
    logp: Float[Tensor, "*at K"]
    labels: Int[Tensor, "*at"] | None = None
    tail_logp: Float[Tensor, "*at"] | None = None
    """Log of the mass of all other entries, summed over themselves; None takes what the kept ones
    leave of 1, which has lost digits where they hold nearly everything."""
    temperature: float = 1.0
    """Divided the teacher's logits before they became probabilities."""
    num_real: int | None = None
    """How many leading entries of the vocabulary the K were chosen from; None: all."""
    rest: Rest | None = None
    """None is what suits the objective best."""


@final
@dataclass(frozen=True, kw_only=True)
class SampledTarget:
    """Token ids drawn from the teacher, with weights that add up to about one.

    Source: random-sampling knowledge distillation, arXiv:2503.16870.
    """

    ids: Int[Tensor, "*at S"]
    weights: Float[Tensor, "*at S"]
    labels: Int[Tensor, "*at"] | None = None
    entropy: Float[Tensor, "*at"] | None = None
    """Of the teacher, in nats: turns a cross-entropy into a divergence. None where unknown."""
    temperature: float = 1.0
    """Divided the teacher's logits before anything was drawn."""
    num_real: int | None = None
    """How many leading entries of the vocabulary they were drawn from; None: all."""


PartialTarget = TopKTarget | SampledTarget
"""An answer that holds part of the vocabulary only."""


@final
@dataclass(frozen=True, kw_only=True)
class SeveralTarget:
    """Several teachers' hidden states for the same tokens, and what each of them counts."""

    members: tuple[HiddenTarget, ...]
    weights: Float[Tensor, "N M"]
    """Each teacher's share in each token: not negative, and 1 in sum. Where it is 0, that
    teacher's hidden states are never looked at."""
    blend: Literal["mixture", "product"] = "mixture"
    """`mixture`: sum_m w_m p_m. `product`: in proportion to prod_m p_m ** w_m."""
    labels: Int[Tensor, " N"] | None = None
    row_shares: Mapping[str, float] | None = None
    """Where a router weighs: each teacher by name, also those without a share here, and the sum of
    its weights over the rows, for the log."""


@final
@dataclass(frozen=True, kw_only=True)
class OtherVocabularyTarget:
    """A teacher with another tokenizer: its answer in its own tokens, and what lies beside what."""

    teacher: HiddenTarget
    """One row for each of the teacher's own M completion tokens, which are its labels."""
    groups: Groups
    words: SharedWords
    coverage: Coverage
    labels: Int[Tensor, " N"]
    """The student's completion tokens."""
    bridge: nn.Module | None = None
    """The student's projections to this teacher's space and back, where an objective trains
    such; whoever asks for the loss puts them in."""


SameVocabularyTarget = SeveralTarget | LogitsTarget | HiddenTarget | TopKTarget | SampledTarget
Target = SameVocabularyTarget | OtherVocabularyTarget
