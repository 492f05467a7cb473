"""Pages as Chromium shows them: no error, no request, no sideways scrolling, readable, safe.

One browser opens every page, wide and narrow, light and dark, in frames of one document; a probe
(`probe.js`) rides along in copies of the pages, allowed by its own hash in their policy.
"""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.reports.made_up import (
    add_routers,
    make_comparison,
    make_run,
    summary_row,
    write_json,
    write_lines,
)
from tests.reports.test_page import HOSTILE
from tutelage.reports.comparison import comparison_text
from tutelage.reports.page import report_text
from tutelage.reports.run_folder import read_run

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None,
        reason="NO BROWSER: install Chromium, or nobody checks what the pages look like",
    ),
]
WIDE, NARROW = 1280, 360
PAGES = ("report", "hostile", "young", "compare", "experts")
FRAMES = [
    (page, width, theme)
    for page in PAGES
    for width, theme in ((WIDE, "light"), (WIDE, "dark"), (NARROW, "light"))
]


def hostile_run(folder: Path) -> Path:
    make_run(folder, num_steps=30, title=HOSTILE * 3)
    (folder / "recipe.yaml").write_text(f"student: {{kind: {HOSTILE * 9!r}}}\n", encoding="utf-8")
    long = "a" * 300
    write_lines(
        folder / "samples.jsonl",
        [
            {"when": w, "prompt": HOSTILE + long, "completion": HOSTILE * 30}
            for w in ("before", long)
        ],
    )
    names = ("tokens", "student_top", "teacher_top")
    columns = {name: [HOSTILE, long, "\n", ""] for name in names}
    numbers = {name: [1.0, 2.0, None, 0.0] for name in ("forward_kl", "student_label_p")}
    rows = [
        {"row": 0, "when": w, "prompt": HOSTILE, **columns, **numbers} for w in ("before", "after")
    ]
    write_lines(folder / "tokens.jsonl", rows)
    summary = [summary_row("before", 2.0), summary_row(long, 9.0), summary_row("distilled", 1.0)]
    write_json(folder / "summary.json", {"title": HOSTILE * 3, "rows": summary, "notes": [long]})
    return folder


def probed(text: str, name: str) -> str:
    """A copy with the probe in front of everything, its hash added to the page's policy."""
    probe = (Path(__file__).parent / "probe.js").read_text(encoding="utf-8")
    probe = probe.replace("NAME", json.dumps(name))
    digest = base64.b64encode(hashlib.sha256(probe.encode()).digest()).decode()
    assert text.count("script-src ") == 1
    text = text.replace("script-src ", f"script-src 'sha256-{digest}' ")
    return text.replace(
        '<meta name="viewport"', f'<script>{probe}</script><meta name="viewport"', 1
    )


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("browser")
    young = make_run(folder / "young", num_steps=40)
    for name in ("summary.json", "tokens.jsonl", "samples.jsonl", "positions.json"):
        (young / name).unlink()
    texts = {
        "report": report_text(read_run(make_run(folder / "run", num_steps=120))),
        "hostile": report_text(read_run(hostile_run(folder / "hostile"))),
        "young": report_text(read_run(young)),
        "compare": comparison_text(make_comparison()),
        "experts": report_text(read_run(add_routers(make_run(folder / "experts", num_steps=120)))),
    }
    frames = ""
    for page, width, theme in FRAMES:
        name = f"{page}-{width}-{theme}"
        (folder / f"{name}.html").write_text(probed(texts[page], name), encoding="utf-8")
        frames += (
            f'<iframe src="{name}.html#{theme}" style="width:{width}px;height:900px"></iframe>'
        )
    collect = (
        "<script>addEventListener('message', (event) => {"
        " const line = document.createElement('pre');"
        " line.textContent = event.data; document.body.append(line); });</script>"
    )
    (folder / "all.html").write_text(f"<!doctype html><body>{collect}{frames}", encoding="utf-8")
    return look(folder / "all.html", folder / "profile")


def look(page: Path, profile: Path) -> dict[str, dict[str, Any]]:
    assert CHROMIUM is not None
    options = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
        "--disable-background-networking --disable-component-update --disable-sync "
        "--virtual-time-budget=60000 --dump-dom"
    )
    run = subprocess.run(
        [CHROMIUM, *options.split(), f"--user-data-dir={profile}", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    lines = re.findall(r"<pre>(.*?)</pre>", run.stdout, re.DOTALL)
    return {found["name"]: found for found in (json.loads(html.unescape(line)) for line in lines)}


@pytest.mark.parametrize(("page", "width", "theme"), FRAMES)
def test_a_page_behaves_in_a_browser(
    findings: dict[str, dict[str, Any]], page: str, width: int, theme: str
) -> None:
    found = findings[f"{page}-{width}-{theme}"]
    assert found["errors"] == []
    assert found["requests"] == []
    assert found["images"] == 0
    assert not found["pwned"]
    assert found["width"] == width
    assert found["overflow"] <= 0, found["overflowing"]
    assert found["overflowing"] == []
    assert found["scheme"] == theme
    # The threshold of WCAG AA for text of ordinary size.
    assert found["dimmest"]["ratio"] >= 4.5, found["dimmest"]
    assert found["hidden"]
    assert found["chosen"] == "dark"


def test_pointing_at_a_chart_reads_its_numbers(findings: dict[str, dict[str, Any]]) -> None:
    for page, title in (("report", "step 80"), ("compare", "step 200")):
        charts = [text for what, text in findings[f"{page}-1280-light"]["seen"] if what == "chart"]
        assert charts
        assert charts[0].startswith(title)
        assert "NaN" not in " ".join(charts)
    assert "Cross-entropy" in findings["report-1280-light"]["seen"][0][1]


def test_walking_over_tokens_tells_both_favourites(findings: dict[str, dict[str, Any]]) -> None:
    seen = findings["report-1280-light"]["seen"]
    after = [text for what, text in seen if what == "token after"]
    before = [text for what, text in seen if what == "token before"]
    assert len(after) == len(before) == 12
    assert all("Teacher says" in text and "Student says" in text for text in after + before)
    assert "before" in after[0]
    assert "after" in before[0]


def test_hostile_tokens_are_shown_as_text(findings: dict[str, dict[str, Any]]) -> None:
    seen = findings["hostile-1280-light"]["seen"]
    assert any("<img src=x" in text for what, text in seen if what.startswith("token"))
