"""Make the rows of the reasoning presets: small sums of reasoning-gym, worked, right and wrong.

    python examples/make_reasoning_rows.py src/tutelage/recipes/presets/data

A few seconds; no model is asked, and the same seed and reasoning-gym give the same files:

    reasoning.jsonl         for SmolLM2-135M-Instruct: sums and differences of numbers up to 29 and
                            products of numbers from 2 to 12 (task basic_arithmetic)
    reasoning_small.jsonl   for a small model over bytes: sums and differences of numbers from 10
                            to 99, worked column by column (task chain_sum)
    reasoning_base.jsonl    what that small model learns first

In all of them the last rows are held out. a + b and b + a are one problem here, so are a * b and
b * a, and no problem is on both sides: neither by itself nor inside what a prompt shows.

A model that has never been shown a solution does not read one. So the small model's first rows are
of four sorts, shuffled: problems alone; problems behind their own solution; problems behind that of
another problem, which does not help; and products of numbers from 10 to 99 behind their solution.
Those products are never asked alone and are beyond the model: it can answer them only by reading,
and that is how it learns to. (With sums alone it learned to add, and read nothing.) The texts are
those of the teacher's view with the wording `brief`. What the small model can do with a solution is
thus taught, not found: a run on these rows shows what self-distillation makes of such a skill, not
that models have it.
"""

import argparse
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, final

import reasoning_gym

from tutelage.core.records import Prompt
from tutelage.recipes.toy import byte_tokenizer
from tutelage.text import TeacherView, wording_file

ASKED = "State the final answer to the following arithmetic problem: {expression} ="
NUM_HELD_OUT = {"+": 110, "-": 70, "*": 20}
NUM_TRAIN = {"+": 340, "-": 200, "*": 60}
NUM_SMALL_HELD_OUT, NUM_SMALL_TRAIN = 200, 600
NUM_ALONE, NUM_WITH_OWN, NUM_WITH_OTHER, NUM_PRODUCTS = 1000, 450, 350, 1200
SLIPS = (-2, -1, 1, 2, 10)
TWO_TERMS = {"min_terms": 2, "max_terms": 2}

Row: TypeAlias = dict[str, Any]
Key: TypeAlias = tuple[str, int, int]


@final
@dataclass(frozen=True)
class Problem:
    """Two numbers, what is to be done with them, and the item of reasoning-gym it came from."""

    a: int
    sign: str
    b: int
    item: Row

    @property
    def key(self) -> Key:
        """The same for problems that are the same."""
        turned = self.sign != "-" and self.a > self.b
        return (self.sign, self.b, self.a) if turned else (self.sign, self.a, self.b)

    @property
    def metadata(self) -> Row:
        """What the task's scorer needs, and where to find the item again."""
        kept = ("source_dataset", "source_index", "expression")
        return {name: self.item["metadata"][name] for name in kept}


def problems(task: str, *, size: int, seed: int, **settings: object) -> Iterator[Problem]:
    """The task's items in its own order, each expression once."""
    seen: set[str] = set()
    for item in reasoning_gym.create_dataset(task, size=size, seed=seed, **settings):
        expression = item["metadata"]["expression"]
        if expression not in seen:
            seen.add(expression)
            a, sign, b = expression.split()
            yield Problem(int(a), sign, int(b), item)


def is_easy(problem: Problem) -> bool:
    """Of a size at which SmolLM2 is right now and then."""
    low, high = min(problem.a, problem.b), max(problem.a, problem.b)
    if problem.sign == "*":
        return low > 1 and high <= 12  # noqa: PLR2004 - the table of products
    return low > 0 and high <= 29 and not is_negative(problem)  # noqa: PLR2004


def is_negative(problem: Problem) -> bool:
    return problem.sign == "-" and problem.a < problem.b


def divided(
    found: Iterable[Problem], num_held_out: int, num_train: int
) -> tuple[list[Problem], list[Problem]]:
    """Held-out problems, each once; then others to train on, which may come in both orders."""
    held_out: dict[Key, Problem] = {}
    train: list[Problem] = []
    for problem in found:
        if len(held_out) < num_held_out:
            held_out.setdefault(problem.key, problem)
        elif problem.key not in held_out and len(train) < num_train:
            train.append(problem)
    assert len(train) == num_train, f"only {len(train)} of {num_train} problems"  # noqa: S101
    return list(held_out.values()), train


def reasoning_rows(seed: int) -> list[Row]:
    """SmolLM2's rows, the held-out ones last."""
    found = problems(
        "basic_arithmetic",
        size=60_000,
        seed=seed,
        **TWO_TERMS,
        max_digits=2,
        operators=["+", "-", "*"],
        allow_parentheses=False,
        allow_negation=False,
    )
    easy = [problem for problem in found if is_easy(problem)]
    slips = random.Random(seed)  # noqa: S311 - an order that repeats is the purpose
    parts: dict[str, list[Row]] = {"train": [], "held_out": []}
    for sign, num_train in NUM_TRAIN.items():
        own = (problem for problem in easy if problem.sign == sign)
        held_out, train = divided(own, NUM_HELD_OUT[sign], num_train)
        parts["train"] += [reasoning_row(problem, "train", slips) for problem in train]
        parts["held_out"] += [reasoning_row(problem, "held_out", slips) for problem in held_out]
    for part in parts.values():
        slips.shuffle(part)
    return parts["train"] + parts["held_out"]


def reasoning_row(problem: Problem, split: str, slips: random.Random) -> Row:
    expression, answer = problem.item["metadata"]["expression"], problem.item["answer"]
    wrong = slips.choice([near for slip in SLIPS if (near := int(answer) + slip) >= 0])
    return {
        "prompt": [{"role": "user", "content": ASKED.format(expression=expression)}],
        "completion": f"{expression} = {answer}",
        "question": problem.item["question"],
        "answer": answer,
        "solution": f"{expression} = {answer}",
        "wrong_solution": f"{expression} = {wrong}",
        "metadata": problem.metadata,
        "split": split,
    }


def by_columns(a: int, sign: str, b: int, *, slip: int = 0) -> str:
    """A sum or difference worked from the last digit on: 47+85 is 7+5=12;4+8+1=13;132.

    Args:
        slip: added to what the first column gives, and carried through to the end.
    """
    steps: list[str] = []
    digits, over = "", 0
    for place, (upper, lower) in enumerate(zip(str(a)[::-1], str(b)[::-1], strict=True)):
        x, y = int(upper), int(lower)
        told = f"{sign}{over}" if over else ""
        value = (x + y + over if sign == "+" else x - y - over) + (0 if place else slip)
        lent = sign == "-" and value < 0
        value += 10 * lent
        steps.append(f"{'1' * lent}{x}{sign}{y}{told}={value}")
        digits, over = f"{value % 10}{digits}", int(lent or value // 10)
    digits = f"{over}{digits}" if sign == "+" and over else digits
    return ";".join([*steps, str(int(digits))])


def by_parts(a: int, b: int) -> str:
    """A product worked by tens and ones."""
    tens, ones = b // 10 * 10, b % 10
    return f"{a}*{tens}={a * tens};{a}*{ones}={a * ones};{a * b}"


def small_row(problem: Problem) -> Row:
    a, sign, b = problem.a, problem.sign, problem.b
    worked = by_parts(a, b) if sign == "*" else by_columns(a, sign, b)
    return {"prompt": f"{a}{sign}{b}=", "completion": worked, "solution": worked}


def full_small_row(problem: Problem, split: str) -> Row:
    """With everything that a run of any context or reward asks for."""
    a, sign, b = problem.a, problem.sign, problem.b
    up = (a % 10 + b % 10 if sign == "+" else (a - b) % 10) % 10 < 9  # noqa: PLR2004 - a digit
    return {
        **small_row(problem),
        "question": problem.item["question"],
        "answer": problem.item["answer"],
        "wrong_solution": by_columns(a, sign, b, slip=1 if up else -1),
        "metadata": problem.metadata,
        "split": split,
    }


def behind(rows: Sequence[Row], context: Literal["solution", "other"], *, seed: int) -> list[Row]:
    """The rows as the teacher reads them: their prompts behind a solution, in the brief words."""
    tokenizer = byte_tokenizer()
    view = TeacherView(
        tokenizer=tokenizer, context=context, wording=wording_file("brief"), seed=seed
    )
    # The ids do nothing here but tell the rows apart.
    shown = view.prompts([Prompt(student_ids=(at,), row=row) for at, row in enumerate(rows)])
    texts = [str(tokenizer.decode(list(prompt.teacher_ids or ()))) for prompt in shown.rows]
    return [{**row, "prompt": text} for row, text in zip(rows, texts, strict=True)]


def small_and_base_rows(seed: int) -> tuple[list[Row], list[Row]]:
    """The small model's two files, whose held-out problems are the same."""
    digits = {**TWO_TERMS, "min_digits": 2, "max_digits": 2}
    sums = problems("chain_sum", size=8_000, seed=seed, **digits)
    num_first = NUM_ALONE + NUM_WITH_OWN + NUM_WITH_OTHER
    usable = (problem for problem in sums if not is_negative(problem))
    held_out, train = divided(usable, NUM_SMALL_HELD_OUT, num_first + NUM_SMALL_TRAIN)
    first, later = train[:num_first], train[num_first:]
    small = [full_small_row(problem, "train") for problem in later]
    small += [full_small_row(problem, "held_out") for problem in held_out]

    products = problems("products", size=4 * NUM_PRODUCTS, seed=seed, **digits)
    beyond = [problem for problem, _ in zip(products, range(NUM_PRODUCTS), strict=False)]
    rows = [small_row(problem) for problem in first]
    alone, others = rows[:NUM_ALONE], rows[NUM_ALONE + NUM_WITH_OWN :]
    base = [
        *alone,
        *behind(rows[NUM_ALONE : NUM_ALONE + NUM_WITH_OWN], "solution", seed=seed),
        *behind(others, "other", seed=seed),
        *behind([small_row(problem) for problem in beyond], "solution", seed=seed),
    ]
    random.Random(seed).shuffle(base)  # noqa: S311 - an order that repeats is the purpose
    base += [small_row(problem) for problem in held_out]
    return small, [{name: row[name] for name in ("prompt", "completion")} for row in base]


def write(path: Path, rows: Sequence[Row], say: Callable[[str], object]) -> None:
    lines = [json.dumps(row, separators=(",", ":")) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")
    say(f"{len(rows)} rows in {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    small, base = small_and_base_rows(arguments.seed)
    write(arguments.folder / "reasoning.jsonl", reasoning_rows(arguments.seed), print)
    write(arguments.folder / "reasoning_small.jsonl", small, print)
    write(arguments.folder / "reasoning_base.jsonl", base, print)


if __name__ == "__main__":
    main()
