"""Rows that several rooms of recipes are tried on."""

import json
from pathlib import Path

import pytest


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Twenty sums, with answers for those who judge and domains for those who sort."""
    path = tmp_path / "sums.jsonl"
    rows = [
        {
            "prompt": [{"role": "user", "content": f"{n} and 1?"}],
            "completion": [{"role": "assistant", "content": f"{n + 1}"}],
            "answer": str(n + 1),
            "domain": "even" if n % 2 else "odd",
        }
        for n in range(20)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)
