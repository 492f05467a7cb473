"""The page of a run: complete, closed to the outside, and safe from what it shows."""

import re
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest

from tests.reports.made_up import make_run, summary_row, write_json, write_lines
from tutelage.core.errors import OutputError
from tutelage.reports import write_report
from tutelage.reports.page import completions, facts, report_text
from tutelage.reports.run_folder import read_run

HOSTILE = "</script><script>pwned=1</script><img src=x onerror='pwned=1'>\"'`{{7*7}}&lt;${1}"


class Reader(HTMLParser):
    """Collects what a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "input"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def count(self, tag: str) -> int:
        return sum(each == tag for each, _ in self.tags)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(make_run(tmp_path_factory.mktemp("page") / "run"))


def test_the_page_shows_every_part_of_a_run(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for part in ("result", "curves", "positions", "tokens", "worst", "completions", "run"):
        assert f'id="{part}"' in text
    for word in ("Learning rate", "Gradient norm", "TAID t", "Tokens/s", "keep_layers: 21"):
        assert word in text
    assert "60 held-out prompts" in text
    assert "日本の首都は東京です。" in text
    assert Reader(text).open == []


def test_every_chart_is_also_a_file(page: Path) -> None:
    names = {path.name for path in (page.parent / "plots").iterdir()}
    for chart in ("forward_kl", "top1_agreement", "perplexity", "loss", "learning_rate", "t"):
        for axis in ("step", "seconds"):
            assert {f"{chart}_by_{axis}.svg", f"{chart}_by_{axis}.png"} <= names
    assert "forward_kl_by_position.svg" in names


def test_the_page_asks_nothing_of_the_network(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for tag, attributes in Reader(text).tags:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base", "form"}
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#")
    assert not re.search(r"url\(|@import|https?://", text)
    policies = [a["content"] or "" for _, a in Reader(text).tags if a.get("http-equiv")]
    assert ["default-src 'none'" in policy for policy in policies] == [True]


def test_tables_have_heads_and_charts_have_words(page: Path) -> None:
    reader = Reader(page.read_text(encoding="utf-8"))
    assert reader.count("caption") == reader.count("table") == reader.count("thead")
    assert all(attributes.get("scope") for tag, attributes in reader.tags if tag == "th")
    pictures = [attributes for _, attributes in reader.tags if attributes.get("role") == "img"]
    assert len(pictures) > 10
    assert all(len(attributes["aria-label"]) > 20 for attributes in pictures)


def test_hostile_text_is_shown_and_never_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", title=HOSTILE)
    (folder / "recipe.yaml").write_text(f"teacher: {{model: {HOSTILE!r}}}\n", encoding="utf-8")
    write_json(folder / "versions.json", {HOSTILE: HOSTILE})
    write_lines(
        folder / "samples.jsonl",
        [
            {
                "when": HOSTILE,
                "prompt": HOSTILE * 20,
                "completion": HOSTILE * 20,
                "reference": HOSTILE,
            }
        ],
    )
    columns = {name: [HOSTILE] for name in ("tokens", "student_top", "teacher_top")}
    write_lines(
        folder / "tokens.jsonl",
        [{"row": 0, "when": "after", "prompt": HOSTILE, "forward_kl": [1.0], **columns}],
    )
    rows = [summary_row("before", 2.0), summary_row(HOSTILE, 1.5), summary_row("distilled", 1.0)]
    write_json(folder / "summary.json", {"title": HOSTILE, "rows": rows, "notes": [HOSTILE]})
    write_json(folder / "positions.json", {HOSTILE: {"forward_kl": [1.0, 2.0]}})
    nested = folder / "baselines" / HOSTILE.replace("/", "")
    nested.mkdir()
    (folder / "baselines" / "cross_entropy" / "metrics.jsonl").rename(nested / "metrics.jsonl")
    text = report_text(read_run(folder))
    reader = Reader(text)
    assert reader.open == []
    assert reader.count("img") == 0
    assert not any(name.startswith("on") for _, attributes in reader.tags for name in attributes)
    running = [a for tag, a in reader.tags if tag == "script" and a.get("type") is None]
    assert len(running) == 1
    assert "49" not in reader.text
    assert "{{7*7}}" in text


@pytest.mark.parametrize(
    "kept",
    [
        {"metrics.jsonl"},
        {"recipe.yaml"},
        {"summary.json"},
        {"metrics.jsonl", "tokens.jsonl"},
        {"recipe.yaml", "metrics.jsonl", "samples.jsonl"},
        {"summary.json", "positions.json"},
    ],
    ids=lambda kept: "+".join(sorted(kept)),
)
def test_a_page_is_written_from_whatever_is_there(tmp_path: Path, kept: set[str]) -> None:
    folder = make_run(tmp_path / "run", num_steps=20)
    for path in folder.iterdir():
        if path.is_file() and path.name not in kept:
            path.unlink()
    reader = Reader(report_text(read_run(folder)))
    assert reader.open == []
    assert reader.count("h1") == 1


def test_empty_files_not_a_number_and_one_step_do_no_harm(tmp_path: Path) -> None:
    tmp_path = tmp_path / "run"
    tmp_path.mkdir()
    for name in ("recipe.yaml", "samples.jsonl", "tokens.jsonl", "positions.json"):
        (tmp_path / name).write_text("", encoding="utf-8")
    nan = float("nan")
    write_lines(
        tmp_path / "metrics.jsonl",
        [
            {"step": 0, "phase": "eval", "forward_kl": nan, "perplexity": float("inf")},
            {"step": 1, "phase": "train", "loss": nan, "learning_rate": 0.0, "grad_norm": 0.0},
        ],
    )
    rows = [{"name": "before"}, {"name": "distilled", "forward_kl": nan, "perplexity": "many"}]
    write_json(tmp_path / "summary.json", {"rows": [*rows, {}, 3], "notes": None})
    text = report_text(read_run(tmp_path))
    assert "Nothing has been measured" in text
    shown = text.split("<main>")[1].split("Folder: ")[0]
    assert "nan" not in shown.lower()
    assert "inf" not in shown.lower()


def test_thousands_of_steps_make_a_page_of_bearable_size(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", num_steps=4000)
    assert len(report_text(read_run(folder))) < 1_500_000


def test_a_second_report_replaces_the_first(tmp_path: Path) -> None:
    write_lines(tmp_path / "metrics.jsonl", [])
    write_report(tmp_path)
    write_json(tmp_path / "summary.json", {"title": "newer", "rows": []})
    assert "newer" in write_report(tmp_path).read_text(encoding="utf-8")
    assert not list(tmp_path.glob("*.partial"))


def test_a_page_that_cannot_be_written_says_where(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", num_steps=5)
    (folder / "report.html.partial").mkdir()
    with pytest.raises(OutputError, match=r"report\.html cannot be written"):
        write_report(folder)


def test_answers_stand_in_one_order_and_the_data_is_not_shown_twice(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", num_steps=5))
    prompt, answers = completions(run)[0]
    assert prompt == "What is the capital of France?"
    assert [answer.name for answer in answers] == [
        "Before",
        "Cross-entropy",
        "Distilled",
        "Teacher",
    ]


def test_a_baseline_that_signs_with_its_own_name_is_shown_too(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", num_steps=5)
    lines = [
        {"when": when, "prompt": "p", "completion": when, "reference": "r"}
        for when in ("before", "cross_entropy")
    ]
    write_lines(folder / "baselines" / "cross_entropy" / "samples.jsonl", lines)
    answers = dict(completions(read_run(folder)))["p"]
    assert [(a.name, a.text) for a in answers] == [
        ("Cross-entropy", "cross_entropy"),
        ("Reference", "r"),
    ]


def test_facts_tell_what_was_distilled_and_leave_out_what_is_off(tmp_path: Path) -> None:
    write_lines(tmp_path / "metrics.jsonl", [{"step": 7, "phase": "train", "loss": 1}])
    (tmp_path / "recipe.yaml").write_text(
        "teacher: {kind: loaded, model: big, dtype: bf16}\n"
        "student: {kind: pruned, model: null, keep_layers: 21}\n"
        "objective: {temperature: 1.0, scale_by_t2: false, kind: jsd, teacher_share: 0.0}\n"
        "move: {kind: none}\n"
        "training: {num_steps: 30}\n",
        encoding="utf-8",
    )
    assert facts(read_run(tmp_path)) == [
        ("Teacher", "loaded, big"),
        ("Student", "pruned, keep layers 21"),
        ("Objective", "jsd, teacher share 0.0"),
        ("Steps", "7 of 30"),
    ]


def test_the_wheel_carries_templates_style_and_script(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    inside = {Path(name).name for name in zipfile.ZipFile(wheel).namelist() if "/reports/" in name}
    assert {entry.name for entry in (files("tutelage.reports") / "templates").iterdir()} <= inside
    assert {"report.html.j2", "compare.html.j2", "parts.html.j2", "page.css", "page.js"} <= inside
