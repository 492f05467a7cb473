"""Rows from files, folders, hubs and lists, named so that an error can point at one."""

import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tutelage.core.errors import DataError
from tutelage.rollouts import read_rows

ROWS = [{"prompt": "What is 1 + 1?", "completion": "2"}, {"prompt": "Grüße?", "completion": "a,b"}]


def written(folder: Path, kind: str) -> Path:
    path = folder / f"rows.{kind}"
    match kind:
        case "jsonl":
            text = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n"
            path.write_text(text, encoding="utf-8")
        case "json":
            path.write_text(json.dumps(ROWS), encoding="utf-8")
        case "csv":
            text = 'prompt,completion\nWhat is 1 + 1?,2\nGrüße?,"a,b"\n'
            path.write_text(text, encoding="utf-8")
        case _:
            pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_every_kind_of_file_gives_the_same_rows_each_with_a_name(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, kind)
    found = list(read_rows(path))
    assert [dict(row) for _, row in found] == ROWS
    ends = {"jsonl": (":1", ":2"), "csv": (":2", ":3")}.get(kind, (": row 1", ": row 2"))
    assert [name for name, _ in found] == [f"{path}{end}" for end in ends]
    assert [row for _, row in read_rows(str(path))] == [row for _, row in found]


def test_rows_may_be_given_as_they_are() -> None:
    assert list(read_rows(iter(ROWS))) == [("row 1", ROWS[0]), ("row 2", ROWS[1])]


def test_columns_are_renamed_and_others_stay() -> None:
    rows = [{"question": "q", "prompt": "old", "extra": 1}]
    ((_, row),) = read_rows(rows, columns={"prompt": "question"})
    assert row == {"prompt": "q", "extra": 1}
    ((_, swapped),) = read_rows([{"a": 1, "b": 2}], columns={"a": "b", "b": "a"})
    assert swapped == {"a": 2, "b": 1}


def test_only_the_first_rows_are_read_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "p"}\nthis is never parsed\n')
    assert len(list(read_rows(path, num_rows=1))) == 1


def test_a_byte_order_mark_and_blank_lines_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "p"}\r\n\r\n{"prompt": "q"}')
    assert [(name[-2:], row["prompt"]) for name, row in read_rows(path)] == [
        (":1", "p"),
        (":3", "q"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("rows.jsonl", b'{"prompt": "p"}\n{"prompt": \n', r"rows\.jsonl:2 is not JSON"),
        ("rows.jsonl", b'{"prompt": "p"}\n["q"]\n', r"rows\.jsonl:2 is a list; it must be an obj"),
        ("rows.jsonl", b'{"prompt": "\xff"}\n', r"rows\.jsonl:1 is not JSON in UTF-8"),
        ("rows.json", b'{"prompt": "p"}', r"rows\.json holds a dict; it must be a list"),
        ("rows.csv", b"prompt,completion\np,c,more\n", r"rows\.csv:2 has another number"),
        ("rows.csv", b"prompt,completion\np\n", r"rows\.csv:2 has another number"),
        ("rows.parquet", b"no parquet at all", r"rows\.parquet is not a parquet file"),
        ("rows.txt", b"text", r"rows\.txt ends in \.txt; it must be one of \.jsonl"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, name, content, complaint) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=complaint):
        list(read_rows(path))


def test_a_missing_file_a_missing_column_and_an_unknown_dataset_say_what_to_do(tmp_path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl is missing.*Correct the path"):
        list(read_rows(tmp_path / "nowhere.jsonl"))
    with pytest.raises(DataError, match=r"row 1 has no column 'question'; .* completion, prompt"):
        list(read_rows(ROWS, columns={"prompt": "question"}))
    with pytest.raises(DataError, match="Data no-such-owner/no-such-data cannot be read"):
        list(read_rows("no-such-owner/no-such-data"))


def test_a_folder_that_datasets_saved_is_read_split_by_split(tmp_path: Path) -> None:
    train = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict(train=train, test=train.select([1])).save_to_disk(tmp_path / "saved")
    found = list(read_rows(str(tmp_path / "saved"), split="test"))
    assert found == [(f"{tmp_path}/saved[test]:0", ROWS[1])]
    with pytest.raises(DataError, match=r"rollouts\.split is dev; it must be one of train, test"):
        list(read_rows(str(tmp_path / "saved"), split="dev"))
