"""A run from Python, object by object, offline: the recipe `tiny` without its recipe.

With a hub, `load_model("Qwen/Qwen3-0.6B")` takes the place of the toy models.
"""

import sys
from pathlib import Path

from tutelage import (
    DatasetRollouts,
    Formatter,
    LiveTeacher,
    Trainer,
    TrainingSettings,
    build_student,
    collate,
    cut,
    evaluate_divergence,
    from_settings,
    read_rows,
    save_model,
)
from tutelage.recipes.config import ToyTeacherSettings
from tutelage.recipes.toy import toy_teacher
from tutelage.students import PrunedStudent

ROWS = [
    {"prompt": f"What is {a} and {b}?", "completion": f"{a + b}"}
    for a in range(10)
    for b in range(10)
]


def main(output: Path) -> None:
    teacher = toy_teacher(ToyTeacherSettings())
    formatter = Formatter(teacher.tokenizer, max_completion_tokens=32)
    rows = formatter.rollouts((row, name) for name, row in read_rows(ROWS)).rows
    training, held_out = rows[:-20], rows[-20:]
    batches = [collate(piece) for piece in cut(held_out, max_tokens=1024)]

    student = build_student(
        PrunedStudent(keep_layers=2), teacher=teacher, calibration=[collate(training[:16])]
    )
    live = LiveTeacher(teacher.lm, remember_bytes=2**24)

    def evaluate() -> dict[str, float]:
        return evaluate_divergence(student.lm, live, batches).numbers()

    result = Trainer(
        student=student.lm,
        teacher=live,
        objective=from_settings({"kind": "jsd"}),
        rollouts=DatasetRollouts(training, seed=0),
        settings=TrainingSettings(num_steps=60, rows_per_step=8, learning_rate=1e-2),
        evaluate=evaluate,
        output=output,
    ).train()
    for point in result.evaluations:
        print(f"step {point['step']}: forward KL {point['forward_kl']:.3f} nats")
    print(save_model(student.lm, student.tokenizer, output / "student"))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/python_api"))
