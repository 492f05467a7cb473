"""`tutelage prune`: a dense model cut in depth or width, measured and written."""

from dataclasses import dataclass
from pathlib import Path
from typing import final

from tutelage.evaluation import DivergenceReport, evaluate_divergence
from tutelage.models import ParameterCount, load_model, parameter_count, save_model
from tutelage.recipes.making.card import write_making_card
from tutelage.recipes.making.request import Source, calibration_batches, check_free, dtype_of
from tutelage.recipes.narrator import Narrator, Silence
from tutelage.students import PrunedStudent, build_student
from tutelage.teachers import LiveTeacher


@final
@dataclass(frozen=True, kw_only=True)
class PruneOutcome:
    """The new model's folder, and how near it is to the whole one."""

    folder: Path
    report: DivergenceReport
    whole: ParameterCount
    pruned: ParameterCount
    what: str
    """Which layers and how many neurons stayed."""


def prune_model(
    source: Source, settings: PrunedStudent, *, narrator: Narrator | None = None
) -> PruneOutcome:
    """Cut a model and write what is left as an ordinary model folder.

    Raises:
        TutelageError: anything a user can mend; see `core.errors` for the family.
    """
    narrator = narrator or Silence()
    check_free(source)
    with narrator.stage("Loading the model"):
        base = load_model(source.model, dtype=dtype_of(source))
        batches = calibration_batches(source, base.tokenizer, base.lm.device)
    with narrator.stage("Cutting"):
        dtype = str(base.lm.dtype).removeprefix("torch.")
        student = build_student(
            settings.model_copy(update={"dtype": dtype}), teacher=base, calibration=batches
        )
    with narrator.stage("Measuring"):
        report = evaluate_divergence(student.lm, LiveTeacher(base.lm), batches)
    with narrator.stage("Writing"):
        folder = save_model(student.lm, base.tokenizer, source.output)
        facts = {
            "cut out of": f"`{source.model}`",
            "what stayed": student.source.removeprefix(f"{base.source}, "),
            "calibration": f"`{source.calibration}`, {source.num_rows} rows",
            "KL to the whole model": f"{report.forward_kl:.4g}",
            "perplexity": f"{report.perplexity:.4g}",
            "perplexity of the whole model": f"{report.teacher_perplexity:.4g}",
        }
        write_making_card(folder, "A part of a model; not trained since it was cut.", facts)
    return PruneOutcome(
        folder=folder,
        report=report,
        whole=parameter_count(base.lm.config),
        pruned=parameter_count(student.lm.config),
        what=student.source.removeprefix(f"{base.source}, "),
    )
