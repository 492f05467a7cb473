"""`tutelage reroute`: a mixture of experts whose routers are made anew from a dense teacher."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from tutelage.core.errors import ModelError
from tutelage.core.run_log import write_json
from tutelage.core.seeds import seed_for
from tutelage.models import LoadedModel, load_model, save_model
from tutelage.recipes.making.card import write_making_card
from tutelage.recipes.making.fidelity import REMEMBER_BYTES, Routed, routed
from tutelage.recipes.making.request import Source, calibration_batches, check_free, dtype_of
from tutelage.recipes.making.targets import write_targets
from tutelage.recipes.narrator import Narrator, Silence
from tutelage.students import (
    ReroutedStudent,
    RoutedLayer,
    mean_activations,
    reroute,
    routers_of,
)
from tutelage.teachers import LiveTeacher
from tutelage.text import match

FILE_NAME = "rerouting.json"


@final
@dataclass(frozen=True, kw_only=True)
class RerouteOutcome:
    """The new model's folder, what it did before and does now, and what each router came from."""

    folder: Path
    before: Routed
    after: Routed
    layers: Sequence[RoutedLayer]


def reroute_model(
    source: Source, plan: ReroutedStudent, *, narrator: Narrator | None = None
) -> RerouteOutcome:
    """Give a mixture of experts routers from its teacher's clusters, and write it as a folder.

    Args:
        source: `model` names the dense teacher.
        plan: `model` names the mixture of experts; nothing but its routers changes.

    Raises:
        TutelageError: anything a user can mend; see `core.errors` for the family.
    """
    narrator = narrator or Silence()
    check_free(source)
    with narrator.stage("Loading the models"):
        base = load_model(plan.model, revision=plan.revision, dtype=dtype_of(source))
        dense = load_model(source.model, dtype=dtype_of(source))
        routers_of(base.lm)
        teacher = LiveTeacher(
            dense.lm, num_real=_shared_entries(base, dense), remember_bytes=REMEMBER_BYTES
        )
        batches = calibration_batches(source, base.tokenizer, base.lm.device)
    with narrator.stage("Measuring"):
        before = routed(base.lm, teacher, batches)
    with narrator.stage("Rerouting"):
        seed = seed_for(source.seed, "student")
        layers = reroute(base.lm, dense.lm, batches, plan, seed=seed)
    with narrator.stage("Measuring again"):
        after = routed(base.lm, teacher, batches)
    with narrator.stage("Writing"):
        folder = save_model(base.lm, base.tokenizer, source.output)
        write_json(folder / FILE_NAME, _told(before, after, layers))
        activities = mean_activations(dense.lm, batches)
        write_targets(
            folder,
            [activities[layer.origin] for layer in layers],
            [layer.experts for layer in layers],
        )
        _write_card(folder, source, plan, before, after)
    return RerouteOutcome(folder=folder, before=before, after=after, layers=layers)


def _shared_entries(student: LoadedModel, teacher: LoadedModel) -> int:
    heads = [model.lm.head.weight.shape[0] for model in (student, teacher)]
    try:
        return match(student.tokenizer, teacher.tokenizer, *heads).num_real
    except ModelError as error:
        raise ModelError(f"{student.source} and {teacher.source}: {error}") from error


def _told(before: Routed, after: Routed, layers: Sequence[RoutedLayer]) -> Mapping[str, Any]:
    return {
        **{
            when: {**one.report.numbers(), "load": one.load.tolist()}
            for when, one in (("before", before), ("after", after))
        },
        "layers": [
            {
                "teacher_layer": layer.origin,
                "cluster_of_expert": layer.order.tolist(),
                "explained": layer.explained,
            }
            for layer in layers
        ],
    }


def _write_card(
    folder: Path, source: Source, plan: ReroutedStudent, before: Routed, after: Routed
) -> None:
    settings = plan.model_dump(mode="json", include={"split", "match", "ridge", "keep_norm"})
    facts = {
        "experts of": f"`{plan.model}`",
        "routers made of": f"`{source.model}`",
        "how": settings,
        "seed": source.seed,
        "calibration": f"`{source.calibration}`, {source.num_rows} rows",
        "KL to that model, before and now": (
            f"{before.report.forward_kl:.4g}, {after.report.forward_kl:.4g}"
        ),
        "perplexity, before and now": (
            f"{before.report.perplexity:.4g}, {after.report.perplexity:.4g}"
        ),
    }
    about = "A mixture of experts whose routers were made anew; not trained since."
    write_making_card(folder, about, facts)
