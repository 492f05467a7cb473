"""A classifier that says which teachers each row is for, asked once before the first step."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.core.errors import ConfigError
from tutelage.core.records import Rollout
from tutelage.models import LoadedClassifier, load_classifier
from tutelage.recipes.narrator import Narrator
from tutelage.teachers import ByShares, ClassifierRouter, shares_by
from tutelage.text import key_of
from tutelage.text.chat import question_of


def classified(
    router: ClassifierRouter, names: Sequence[str], rows: Sequence[Rollout], narrator: Narrator
) -> ByShares:
    """What each teacher counts in each row: a function of the row's question alone.

    Raises:
        ConfigError: the classifier's labels are not the teachers' names.
        ModelError: it cannot be loaded.
    """
    classifier = load_classifier(router.model, revision=router.revision)
    columns = _columns(router, classifier, names)
    shares: dict[str, tuple[float, ...]] = {}
    num_cut = 0
    title = "Asking the router whose each row is"
    with narrator.stage(title, total=len(rows)) as advance:
        for done, row in enumerate(rows, 1):
            scores, cut = _scores(classifier, _question(row))
            found = shares_by(scores[:, columns], temperature=router.temperature, top=router.top)
            shares[key_of(row)] = tuple(found[0].tolist())
            num_cut += cut
            advance(done)
    if num_cut:
        narrator.say(
            f"note: {num_cut} of {len(rows)} questions were cut at the router's "
            f"{_most_tokens(classifier)} tokens, and it was asked about their beginnings."
        )
    return ByShares(shares_of=shares)


def _columns(
    router: ClassifierRouter, classifier: LoadedClassifier, names: Sequence[str]
) -> list[int]:
    """The class of each teacher."""
    labels = {int(n): name for n, name in (classifier.model.config.id2label or {}).items()}
    if sorted(labels.values()) != sorted(names):
        raise ConfigError(
            f"teacher.router.model is {router.model}, whose labels are "
            f"{', '.join(sorted(labels.values()))}; they must be the names in teacher.teachers: "
            f"{', '.join(sorted(names))}. Rename the teachers, or the labels in its config.json "
            "(id2label)."
        )
    number = {label: column for column, label in labels.items()}
    return [number[name] for name in names]


def _question(row: Rollout) -> str:
    """What the user says, without any template's words."""
    question = question_of(row.prompt.row, row.prompt.name)
    if isinstance(question, str):
        return question
    asked = [one for one in question if one["role"] == "user"] or question
    return "\n\n".join(str(one["content"]) for one in asked)


@torch.no_grad()
def _scores(classifier: LoadedClassifier, text: str) -> tuple[Float[Tensor, "1 C"], bool]:
    """Of each class, in float64; and whether the text was cut."""
    most = _most_tokens(classifier)
    encoded: Any = classifier.tokenizer(text, return_tensors="pt", verbose=False)
    cut = most is not None and encoded["input_ids"].shape[1] > most
    if cut:
        encoded = classifier.tokenizer(text, return_tensors="pt", truncation=True, max_length=most)
    return classifier.model(**encoded).logits.double(), cut


def _most_tokens(classifier: LoadedClassifier) -> int | None:
    """What it reads; None where nothing says."""
    config = classifier.model.config
    limits = [
        getattr(config, "max_position_embeddings", None),
        classifier.tokenizer.model_max_length,
    ]
    # A tokenizer without a limit says a number of thirty digits.
    known = [int(limit) for limit in limits if limit is not None and limit < 1 << 40]
    return min(known) if known else None
