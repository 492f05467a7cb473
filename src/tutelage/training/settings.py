"""What a run may choose about its steps; impossible choices cannot be written."""

from collections.abc import Mapping
from typing import Annotated, Literal, final

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from tutelage.core.settings import Settings
from tutelage.objectives import TokenWeighting
from tutelage.objectives.reduce import Reduction

Precision = Literal["fp32", "bf16"]
Tracker = Literal["tensorboard", "wandb", "trackio"]


@final
class TrainingSettings(Settings):
    """How long, how fast and how carefully a student is trained."""

    num_steps: PositiveInt = 100
    """Optimiser steps of the whole run."""
    rows_per_step: PositiveInt = 8
    """Rows that one optimiser step learns from, over all processes."""
    tokens_per_step: PositiveInt | None = None
    """In place of a number of rows: take rows until this many trained tokens are together."""
    updates_per_batch: PositiveInt = 1
    """Into how many steps one batch of rollouts is cut: so many times rows_per_step are written
    and judged together, then trained on part by part. Above 1 the student moves away from what it
    wrote, so rewards need a `policy`."""
    epochs_per_batch: PositiveInt = 1
    """How often a batch is gone through before the next is written, in a new order each time."""
    cut_batch_by: Literal["groups", "rows"] = "groups"
    """What a part is made of: whole groups of completions of one prompt, or rows by themselves.
    Advantages are within groups either way, from before the cut."""
    micro_batch_tokens: PositiveInt = 4096
    """Tokens in one forward pass, for whoever of student and teacher reads more of them. Memory
    grows with it; gradients do not depend on it."""

    learning_rate: Annotated[float, Gt(0)] = 1e-4
    """The highest one, right after the warm-up."""
    learning_rate_factors: Mapping[str, Annotated[float, Gt(0)]] = Field(
        default_factory=dict[str, float]
    )
    """Parameters that learn faster or slower than the others, by patterns of their names, such as
    {"model.layers.*.mlp.gate.weight": 0.02}; the first pattern that matches counts. A pattern that
    matches nothing that is trained is an error."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How the learning rate falls from the end of the warm-up to the end of the run."""
    warmup_steps: NonNegativeInt = 0
    """Steps on which the learning rate rises in a straight line; 0 starts at the highest."""
    final_learning_rate_share: Annotated[float, Ge(0), Le(1)] = 0.0
    """What is left of the highest learning rate when the schedule has run out."""
    weight_decay: Annotated[float, Ge(0)] = 0.0
    """AdamW's; never on norms and biases."""
    betas: tuple[Annotated[float, Ge(0), Lt(1)], Annotated[float, Ge(0), Lt(1)]] = (0.9, 0.95)
    """How much of AdamW's running mean and variance is kept from step to step."""
    epsilon: Annotated[float, Gt(0)] = 1e-8
    """AdamW's smallest divisor."""
    max_grad_norm: Annotated[float, Gt(0)] | None = 1.0
    """Gradients whose overall norm is larger are scaled down to it; null never does."""

    reduction: Reduction = "token_mean"
    """`token_mean`: every trained token of a step weighs the same. `sequence_mean`: every row
    does, however long it is."""
    weighting: TokenWeighting = TokenWeighting()
    """Tokens that are left out, and tokens that count for more."""
    precision: Precision = "fp32"
    """`bf16` computes in bfloat16 where that is safe, over weights that stay in float32."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""
    fused: bool = True
    """False makes the full table of logits, for checking the fused loss on short rows."""
    loss_logits: Literal["auto", "native", "split", "fp32"] = "auto"
    """How exact the scores of a half-precision head are: `native` rounds them, `split` keeps the
    rounding error, `fp32` never rounds. `auto` is exact, and fast on the device at hand."""
    loss_megabytes: PositiveInt = 256
    """About how much memory the fused loss may take for scores."""

    measure_drift: bool | None = None
    """Compare, token by token, the student's log-probabilities with those that its completions
    were drawn with: `engine_drift`, `engine_drift_max` and `engine_kl` in the log, for one more
    pass through the head. null: where rollouts.engine is vllm and all tokens can be drawn."""

    evaluate_first: bool = True
    """Evaluate before the first step, so that curves begin where the student began."""
    evaluate_every: PositiveInt | None = None
    """Steps between evaluations; null evaluates only before and after."""
    save_every: PositiveInt | None = 100
    """Steps between checkpoints; null saves only at the end and on Ctrl-C."""
    keep_checkpoints: PositiveInt = 2
    """Older ones are deleted."""
    track_with: tuple[Tracker, ...] = ()
    """Experiment trackers that also get every number; each needs its own package."""
    track_as: Annotated[str, MinLen(1)] = "tutelage"
    """The project's name in the trackers."""

    @model_validator(mode="after")
    def _no_contradiction(self) -> "TrainingSettings":
        complaint = self._contradiction()
        if complaint is not None:
            raise ValueError(complaint)
        return self

    @property
    def rows_per_batch(self) -> int:
        """Rows that are collected together, over all processes."""
        return self.rows_per_step * self.updates_per_batch

    @property
    def steps_per_batch(self) -> int:
        """Optimiser steps that one batch of rollouts serves."""
        return self.updates_per_batch * self.epochs_per_batch

    def _contradiction(self) -> str | None:
        given = self.model_fields_set
        if self.tokens_per_step is not None and self.steps_per_batch > 1:
            return (
                "training.tokens_per_step is given with updates_per_batch or epochs_per_batch, "
                "which cut a batch by rows; it must be left out. Give training.rows_per_step."
            )
        if self.tokens_per_step is not None and "rows_per_step" in given:
            return (
                "training.rows_per_step and training.tokens_per_step are both given; "
                "only one can decide how large a step is. Remove one."
            )
        if self.warmup_steps >= self.num_steps:
            return (
                f"training.warmup_steps is {self.warmup_steps}; it must be less than "
                f"training.num_steps ({self.num_steps}). Warm up for fewer steps."
            )
        if self.schedule == "constant" and self.final_learning_rate_share > 0:
            return (
                "training.final_learning_rate_share is given for a constant schedule, which never "
                "falls; it must be left out. Choose linear or cosine, or remove it."
            )
        if not self.fused and given & {"loss_logits", "loss_megabytes"}:
            return (
                "training.loss_logits or training.loss_megabytes is given, and both belong to the "
                "fused loss; training.fused must be true. Remove them, or fused: false."
            )
        return None

    def shaping(self) -> dict[str, object]:
        """The settings that decide where the weights go: a resumed run may not change them."""
        watching = {
            "measure_drift",
            "evaluate_first",
            "evaluate_every",
            "save_every",
            "keep_checkpoints",
            "track_with",
            "track_as",
        }
        return self.model_dump(mode="json", exclude=watching)
