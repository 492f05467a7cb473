"""An objective of your own: settings, a definition, and the trainer takes it from there.

The fused loss differentiates the definition row by row, so the full table of logits is never made.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from tutelage import Objective, Trainer, TrainingSettings, load
from tutelage.recipes.assemble import assemble, make_student
from tutelage.recipes.narrator import Silence
from tutelage.rollouts import DatasetRollouts


class HellingerObjective(Objective):
    """Squared Hellinger distance: between 0 and 1, and gentle where the two hardly overlap."""

    kind: Literal["hellinger"] = "hellinger"

    @override
    def from_logits(
        self,
        student_logits: Float[Tensor, "*at V"],
        teacher_logits: Float[Tensor, "*at V"],
        labels: Int[Tensor, "*at"] | None = None,
    ) -> Float[Tensor, "*at"]:
        student, teacher = student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
        return 1 - ((student + teacher) / 2).exp().sum(-1)


if __name__ == "__main__":
    torch.manual_seed(0)
    recipe = load("tiny")
    work = assemble(recipe, None, Silence())
    trainer = Trainer(
        student=make_student(recipe, work).lm,
        teacher=work.teacher,
        objective=HellingerObjective(),
        rollouts=DatasetRollouts(work.rows.training),
        settings=TrainingSettings(num_steps=40, learning_rate=1e-2),
    )
    print(f"{trainer.loss_on(work.rows.held_out):.3f} before")
    trainer.train()
    print(f"{trainer.loss_on(work.rows.held_out):.3f} after")
