"""`tutelage upcycle`: a dense model read, taken apart, measured and written as experts."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from tutelage.core.run_log import write_json
from tutelage.core.seeds import seed_for
from tutelage.models import (
    LoadedModel,
    ParameterCount,
    load_config,
    load_model,
    parameter_count,
    save_model,
)
from tutelage.recipes.making.card import write_making_card
from tutelage.recipes.making.fidelity import Fidelity, fidelity_of
from tutelage.recipes.making.request import Source, calibration_batches, check_free, dtype_of
from tutelage.recipes.making.targets import write_targets
from tutelage.recipes.narrator import Narrator, Silence
from tutelage.students import (
    Upcycled,
    UpcycledStudent,
    equal_gate,
    layers_by_influence,
    make_upcycled,
    mean_activations,
    prune_layers,
    upcycled_config,
)

FILE_NAME = "fidelity.json"


@final
@dataclass(frozen=True, kw_only=True)
class UpcycleOutcome:
    """The new model's folder, and how near it is to the dense one."""

    folder: Path
    made: Upcycled
    fidelity: Fidelity
    dense: ParameterCount
    experts: ParameterCount


def upcycle_model(
    source: Source,
    plan: UpcycledStudent,
    *,
    keep_layers: int | None = None,
    narrator: Narrator | None = None,
) -> UpcycleOutcome:
    """Make a mixture of experts of a dense model and write it as an ordinary model folder.

    Args:
        keep_layers: first drop layers by their influence, down to so many.

    Raises:
        TutelageError: anything a user can mend; see `core.errors` for the family.
    """
    narrator = narrator or Silence()
    check_free(source)
    upcycled_config(load_config(source.model), plan)
    with narrator.stage("Loading the model"):
        base = load_model(source.model, dtype=dtype_of(source))
        batches = calibration_batches(source, base.tokenizer, base.lm.device)
    if keep_layers is not None:
        kept = layers_by_influence(base.lm, batches, keep=keep_layers)
        base = replace(base, lm=prune_layers(base.lm, kept))
    with narrator.stage("Splitting", total=base.lm.config.num_hidden_layers) as advance:
        made = make_upcycled(
            base.lm, plan, batches, seed=seed_for(source.seed, "student"), advance=advance
        )
    with narrator.stage("Measuring"):
        fidelity = fidelity_of(made, base.lm, batches, equal_gate=equal_gate(plan, made.shape))
    with narrator.stage("Writing"):
        folder = _write(source, plan, base, made, fidelity)
        write_targets(
            folder,
            mean_activations(base.lm, batches),
            [groups.experts for groups in made.groups],
        )
    return UpcycleOutcome(
        folder=folder,
        made=made,
        fidelity=fidelity,
        dense=parameter_count(base.lm.config),
        experts=parameter_count(made.lm.config),
    )


def _write(
    source: Source, plan: UpcycledStudent, base: LoadedModel, made: Upcycled, fidelity: Fidelity
) -> Path:
    folder = save_model(made.lm, base.tokenizer, source.output)
    write_json(folder / FILE_NAME, fidelity.to_json())
    settings = plan.model_dump(mode="json", exclude={"kind", "freeze", "model", "dtype"})
    facts = {
        "made of": f"`{source.model}`",
        "how": settings,
        "seed": source.seed,
        "calibration": f"`{source.calibration}`, {source.num_rows} rows",
        "KL to the dense model, all experts with equal gates": f"{fidelity.whole.forward_kl:.3g}",
        "KL to the dense model, as routed": f"{fidelity.routed.report.forward_kl:.4g}",
        "perplexity, as routed": f"{fidelity.routed.report.perplexity:.4g}",
        "perplexity of the dense model": f"{fidelity.routed.report.teacher_perplexity:.4g}",
    }
    about = "A mixture of experts made of a dense model's own neurons; not trained since."
    write_making_card(folder, about, facts)
    return folder
