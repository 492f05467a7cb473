"""Shards on the disk: found by content, whole or named, whatever was done to the files."""

import json
import multiprocessing
from pathlib import Path

import pytest
import torch

from tutelage.core.errors import DataError, OutputError
from tutelage.teachers.cache.packing import pack_ids, unpack_ids
from tutelage.teachers.cache.shard import Row
from tutelage.teachers.cache.store import LIST, Store, StoreWriter, locked


def row(number: int, num_tokens: int = 3) -> Row:
    generator = torch.Generator().manual_seed(number)
    return Row(
        key=f"{number * 7919 % 1009:08x}" + f"{number:024x}",
        name=f"rows.jsonl:{number}",
        num_tokens=num_tokens,
        payload={
            "hidden": torch.randn(num_tokens, 4, generator=generator).bfloat16(),
            "ids": (torch.arange(2 * num_tokens) + number).to(torch.uint16),
        },
    )


ROWS = [row(n, num_tokens=1 + n % 4) for n in range(23)]


def write(folder: Path, rows: list[Row] = ROWS, tokens: int = 10) -> StoreWriter:
    folder.mkdir(parents=True, exist_ok=True)
    writer = StoreWriter(folder, tokens_per_shard=tokens)
    for one in rows:
        writer.append(one)
    writer.close_shard()
    return writer


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def assert_holds(folder: Path, rows: list[Row] = ROWS) -> None:
    store = Store(folder)
    for one in reversed(rows):
        payload, num_tokens = store.read(one.key)
        assert num_tokens == one.num_tokens
        assert payload.keys() == one.payload.keys()
        for name, tensor in payload.items():
            assert tensor.dtype == one.payload[name].dtype
            assert torch.equal(tensor, one.payload[name])


def test_rows_are_found_by_their_content_in_any_order(tmp_path: Path) -> None:
    write(tmp_path)
    store = Store(tmp_path)
    assert len(store.entries) > 3
    assert (store.num_rows, store.num_tokens) == (23, sum(r.num_tokens for r in ROWS))
    assert store.num_bytes == sum(p.stat().st_size for p in tmp_path.glob("*.safetensors"))
    assert_holds(tmp_path)
    assert dict(store.names())[ROWS[5].key] == "rows.jsonl:5"
    assert ROWS[3].key in store
    assert "f" * 32 not in store


def test_a_shard_is_closed_with_the_row_that_fills_it(tmp_path: Path) -> None:
    write(tmp_path)
    *full, _ = Store(tmp_path).entries
    assert all(10 <= entry.num_tokens < 10 + 4 for entry in full)


def test_a_file_of_another_size_is_refused_before_it_is_read(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "shard-00001.safetensors"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-7])
    complaint = rf"shard-00001\.safetensors is {size - 7} bytes long; it must have {size} bytes"
    with pytest.raises(DataError, match=complaint):
        Store(tmp_path)


def test_keys_that_share_a_half_are_told_apart(tmp_path: Path) -> None:
    rows = [
        Row(key=high + low, name="x", num_tokens=1, payload=row(n).payload)
        for n, (high, low) in enumerate(
            [("a" * 16, "1" * 16), ("a" * 16, "2" * 16), ("b" * 16, "1" * 16)]
        )
    ]
    write(tmp_path, rows)
    for n, one in enumerate(rows):
        assert torch.equal(Store(tmp_path).read(one.key)[0]["hidden"], row(n).payload["hidden"])
    assert "a" * 16 + "3" * 16 not in Store(tmp_path)
    assert "c" * 16 + "1" * 16 not in Store(tmp_path)


def test_a_missing_row_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(DataError, match=f"key {'f' * 32} is not in the cache"):
        Store(tmp_path).read("f" * 32)


def test_a_row_that_comes_twice_is_kept_once(tmp_path: Path) -> None:
    write(tmp_path, [*ROWS, *ROWS])
    assert Store(tmp_path).num_rows == 23


def test_rows_are_added_to_a_finished_cache_without_touching_it(tmp_path: Path) -> None:
    write(tmp_path, ROWS[:20])
    before = files(tmp_path)
    write(tmp_path, ROWS)
    after = files(tmp_path)
    assert all(after[name] == data for name, data in before.items() if name != LIST)
    assert_holds(tmp_path)


@pytest.mark.parametrize("finished", [0, 1, 3])
def test_a_writer_that_was_killed_goes_on_to_the_same_files(tmp_path: Path, finished: int) -> None:
    write(tmp_path / "whole")
    folder = tmp_path / "killed"
    folder.mkdir()
    writer = StoreWriter(folder, tokens_per_shard=10)
    for one in ROWS:
        if len(list(folder.glob("shard-*"))) == finished and writer.num_rows % 3 == 2:
            break
        writer.append(one)
    # The open shard as a kill leaves it: half written aside, or named but not yet listed.
    (folder / ".writing-shard-00009.safetensors").write_bytes(b"half")
    (folder / "shard-00008.safetensors").write_bytes(b"whole, but nobody knows of it")
    again = write(folder)
    assert len(again.repaired) == 2
    assert files(folder) == files(tmp_path / "whole")


DAMAGE = {
    "truncated": lambda data: data[:-20],
    "a flipped bit in a row": lambda data: data[:-9] + bytes([data[-9] ^ 4]) + data[-8:],
    "a flipped bit in the header": lambda data: data[:30] + bytes([data[30] ^ 1]) + data[31:],
    "longer": lambda data: data + b"\0",
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_shard_is_named_by_the_reader_and_mended_by_the_writer(
    tmp_path: Path, what: str
) -> None:
    write(tmp_path)
    whole = files(tmp_path)
    path = tmp_path / "shard-00001.safetensors"
    path.write_bytes(DAMAGE[what](path.read_bytes()))
    wrong = []
    with pytest.raises(DataError, match=r"shard-00001\.safetensors"):  # noqa: PT012  one of two
        store = Store(tmp_path)
        wrong = [entry.file for entry, complaint in store.verify() if complaint]
        for one in ROWS:
            store.read(one.key)
    assert wrong in ([], [path.name])
    writer = write(tmp_path)
    assert [line.split()[0] for line in writer.repaired] == [str(path)]
    assert files(tmp_path) == whole


def test_a_flipped_bit_names_the_row_and_leaves_its_neighbours_readable(tmp_path: Path) -> None:
    write(tmp_path, ROWS, tokens=1000)
    path = tmp_path / "shard-00000.safetensors"
    data = bytearray(path.read_bytes())
    raw = bytes(ROWS[7].payload["hidden"].view(torch.uint8).flatten().tolist())
    data[data.index(raw)] ^= 1
    path.write_bytes(bytes(data))
    store = Store(tmp_path)
    for one in ROWS:
        if one is ROWS[7]:
            with pytest.raises(DataError, match=rf"in row 7 \(rows\.jsonl:7, key {one.key}\)"):
                store.read(one.key)
        else:
            store.read(one.key)


@pytest.mark.parametrize("index", ["row.keys", "row.starts", "row.checksums", "row.num_tokens"])
def test_a_flipped_bit_in_the_index_is_noticed_at_once(tmp_path: Path, index: str) -> None:
    write(tmp_path, ROWS, tokens=1000)
    path = tmp_path / "shard-00000.safetensors"
    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[:8], "little")
    start = json.loads(bytes(data[8 : 8 + size]))[index]["data_offsets"][0]
    data[8 + size + start + 8] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"shard-00000\.safetensors has a damaged index"):
        Store(tmp_path)


def test_a_missing_or_wrong_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"shards\.json is missing"):
        Store(tmp_path)
    write(tmp_path)
    (tmp_path / LIST).write_text('{"shards": [{"file": "../../etc/passwd"}]}')
    with pytest.raises(DataError, match=r"shards\.json is damaged"):
        Store(tmp_path)


def read_all(folder: str) -> int:
    store = Store(Path(folder))
    return sum(store.read(one.key)[1] for one in ROWS)


def test_two_processes_read_at_once_and_only_one_writes(tmp_path: Path) -> None:
    write(tmp_path / "rows")
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        found = pool.map(read_all, [str(tmp_path / "rows")] * 2)
        assert found == [sum(r.num_tokens for r in ROWS)] * 2
        with locked(tmp_path):
            assert pool.apply(tries_to_lock, (str(tmp_path),)) == "refused"
        assert pool.apply(tries_to_lock, (str(tmp_path),)) == "let in"


def tries_to_lock(folder: str) -> str:
    try:
        with locked(Path(folder)):
            return "let in"
    except OutputError as error:
        return "refused" if "being written by another process" in str(error) else str(error)


@pytest.mark.parametrize("num_entries", [260, 65_536, 65_537, 262_144, 1 << 20])
@pytest.mark.parametrize("k", [1, 4, 5])
def test_ids_come_back_from_their_bits(num_entries: int, k: int) -> None:
    generator = torch.Generator().manual_seed(k)
    ids = torch.randint(0, num_entries, (50, k), generator=generator)
    ids[0, 0], ids[1, -1] = 0, num_entries - 1
    low, high = pack_ids(ids, num_entries)
    assert (high is None) == (num_entries <= 65_536)
    assert low.element_size() == 2
    assert torch.equal(unpack_ids(low, high), ids)
