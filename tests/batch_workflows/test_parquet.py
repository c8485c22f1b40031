"""Snapshots to Parquet: every cell there and back, days with other columns, DuckDB, kills, damage, as-of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from batch_workflows import BadParameters, SnapshotDamaged, UnknownSelection, parquet_import, parquet_snapshot
from batch_workflows.objects import Objects
from batch_workflows.parquet_schema import CELLS
from batch_workflows.parquet_snapshot import Day, days, read_day
from batch_workflows.runs import Outcome, RunStore
from catalog import Catalog
from catalog.documents import decode_document
from catalog.model import DOCUMENT_BODY, SOURCE_VERSION
from catalog.values import decode, encode
from storage_repo import Origin
from tests.batch_workflows.parquet_support import (
    ROWS,
    catalogue,
    child,
    contents,
    fill,
    killed_until_done,
    open_with,
)
from tests.batch_workflows.run_support import Opened, run


def snapshots(tmp_path: Path) -> str:
    """Return where the tests' snapshots go."""
    return str(tmp_path / "snapshots")


def query(sql: str) -> Any:
    """Ask DuckDB."""
    import duckdb

    found = duckdb.sql(sql)
    assert found is not None
    return found


def test_every_cell_comes_back(opened: Opened, empty: Opened, tmp_path: Path) -> None:
    """After an import the Repo has the very same cells: typed values, refused ones, the pipeline's own, index rows."""
    taken = run(opened, "snapshot", to=snapshots(tmp_path), day="2026-03-01")
    before = contents(opened.repo, opened.catalog)
    assert taken.outcome is Outcome.SUCCEEDED and taken.failed == 0
    assert taken.counts["rows"] == sum(map(len, before.values()))
    done = run(empty, "snapshot-import", source=snapshots(tmp_path))
    assert contents(empty.repo, empty.catalog) == before and done.counts["verified"] is True
    again = run(empty, "snapshot", to=str(tmp_path / "again"), day="2026-03-01")
    first, second = read_day(Objects(snapshots(tmp_path))), read_day(Objects(str(tmp_path / "again")))
    assert [t.digest for t in first.tables] == [t.digest for t in second.tables] and again.failed == 0


def test_rows_of_more_cells_than_most_come_back(opened: Opened, empty: Opened, tmp_path: Path) -> None:
    """Rows that together would be too much for one transaction of the Repo go in several; wide values do as well."""
    for start in range(0, 1_000, 100):
        wide = opened.repo.begin(Origin("test"))
        for row in range(start, start + 100):
            for cell in range(41):
                wide.put("pin", f"wide-{row:03}", f"content:more_{cell}", b"x" * (100_000 if row < 5 else 1))
        wide.commit()
    before = contents(opened.repo, opened.catalog)
    run(opened, "snapshot", to=snapshots(tmp_path), day="2026-03-01", documents=False)
    assert run(empty, "snapshot-import", source=snapshots(tmp_path)).counts["verified"] is True
    assert contents(empty.repo, empty.catalog) == before


def test_what_reads_a_directory_reads_nothing_but_complete_days(opened: Opened, tmp_path: Path) -> None:
    """Files of a day that was taken again, of a day that never became complete, and of writers that were killed, go
    with the next snapshot of any day; what snapshots did not make stays."""
    objects = Objects(snapshots(tmp_path))
    first = run(opened, "snapshot", to=snapshots(tmp_path), day="2026-03-01").counts["tables"]
    day = read_day(objects)
    whole = objects.read(day.files("ad")[0])
    for left in ("ad/day=2026-03-01/part-99-1-00000.parquet", "ad/day=2026-02-28/part-98-1-00000.parquet"):
        objects.write(left, whole)
    foreign = ["ad/day=2026-03-01/notes.txt", "ad/mine.parquet", "other/day=2026-03-01/part-1-1-00000.parquet"]
    for name in foreign:
        objects.write(name, whole)
    (tmp_path / "snapshots" / "ad" / "day=2026-03-01" / ".part-killed").write_bytes(b"half")
    (tmp_path / "snapshots" / "other" / ".part-of-somebody").write_bytes(b"half")
    run(opened, "snapshot", to=snapshots(tmp_path), day="2026-03-02")
    table = f"{snapshots(tmp_path)}/ad/day=*/*.parquet"
    counted = query(f"SELECT day, count(*) FROM read_parquet('{table}', hive_partitioning=true) GROUP BY 1 ORDER BY 1")
    assert [(str(d), n) for d, n in counted.fetchall()] == [(d, first["ad"]) for d in ("2026-03-01", "2026-03-02")]
    assert set(foreign) <= objects.names().keys()
    left_beside = [p.name for p in (tmp_path / "snapshots").rglob(".part-*")]
    assert left_beside == [".part-of-somebody"]


def test_a_day_that_has_lost_a_file_does_not_become_complete(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gone on with after another installation has swept its files, a run says so instead of publishing the rest."""
    objects, wrote = Objects(snapshots(tmp_path)), parquet_snapshot._Writer.write

    def write(self: Any, *how: Any) -> Day:
        day = wrote(self, *how)
        objects.delete(day.files("ad")[0])
        return day

    monkeypatch.setattr(parquet_snapshot._Writer, "write", write)
    with pytest.raises(SnapshotDamaged, match=r"has lost ad/day=2026-03-01/part-.*without --resume"):
        run(opened, "snapshot", to=snapshots(tmp_path), day="2026-03-01")
    assert days(objects) == []


def test_typed_columns_read_as_values(opened: Opened, tmp_path: Path) -> None:
    """DuckDB reads tables and documents by glob, and sees the values that the cells hold, NULL for those refused."""
    run(opened, "snapshot", to=snapshots(tmp_path), day="2026-03-01")
    table = query(
        f"SELECT * FROM read_parquet('{snapshots(tmp_path)}/ad/*/*.parquet', hive_partitioning=true) ORDER BY _key"
    )
    shown = {row["_key"]: row for row in table.to_arrow_table().to_pylist()}
    stored = contents(opened.repo, opened.catalog)["ad"]
    assert shown.keys() == stored.keys()
    for key, row in shown.items():
        assert str(row["day"]) == "2026-03-01"
        for name in ("quality", "adult", "labels", "codes", "raw", "notes", "caption", "ad_group_id"):
            cell = opened.catalog.tables["ad"].columns[name].cell
            assert row[name] == decode(stored[key].get(cell)), (key, name)
    documents = query(f"SELECT count(*), count(bid_micros) FROM '{snapshots(tmp_path)}/documents/*/*.parquet'")
    bodies = [decode_document(c[DOCUMENT_BODY]) for c in contents(opened.repo, opened.catalog)["ad_document"].values()]
    assert documents.fetchall() == [(len(bodies), sum(b.get("bid_micros") is not None for b in bodies))]


def test_columns_come_and_go_between_days(tmp_path: Path) -> None:
    """A column that is new, gone, or of another type from one day to the next: all days are read together by name, and
    each can be imported as it was."""
    schemas = [{"quality": "float"}, {"quality": "float", "caption": "string"}, {"caption": "int"}]
    kept = []
    for number, types in enumerate(schemas, 1):
        home = open_with(tmp_path / f"home{number}", catalogue(tmp_path, **types))
        fill(home, 30, number)
        run(home, "snapshot", to=snapshots(tmp_path), day=f"2026-03-0{number}")
        kept.append((home.catalog, contents(home.repo, home.catalog)))
        home.repo.close()
    names = [c.name for c in read_day(Objects(snapshots(tmp_path))).find("ad").columns]
    assert "caption__int" in names and "caption" not in names and "quality" not in names
    found = query(
        "SELECT day, count(*), count(quality) > 0, count(caption) > 0, count(caption__int) > 0 FROM "
        f"read_parquet('{snapshots(tmp_path)}/ad/*/*.parquet', hive_partitioning=true, union_by_name=true) "
        "GROUP BY day ORDER BY day"
    ).fetchall()
    assert [row[1:] for row in found] == [
        (30, True, False, False), (30, True, True, False), (30, False, False, True),
    ]  # fmt: skip
    for number, (catalog, before) in enumerate(kept, 1):
        home = open_with(tmp_path / f"import{number}", catalog)
        run(home, "snapshot-import", source=snapshots(tmp_path), as_of=f"2026-03-0{number}")
        assert contents(home.repo, catalog) == before
        home.repo.close()


def test_as_of(opened: Opened, tmp_path: Path) -> None:
    """The state as of a day is that of the newest complete day at or before it."""
    objects = Objects(snapshots(tmp_path))
    with pytest.raises(UnknownSelection, match="no snapshot"):
        read_day(objects)
    for day in ("2026-03-01", "2026-03-04"):
        run(opened, "snapshot", to=snapshots(tmp_path), day=day)
    assert days(objects) == ["2026-03-01", "2026-03-04"]
    asked = ["2026-03-01", "2026-03-03", "2026-03-04", "2027-01-01", ""]
    assert [read_day(objects, day).day for day in asked] == [days(objects)[n] for n in (0, 0, 1, 1, 1)]
    with pytest.raises(UnknownSelection, match="of 2026-02-28 or before"):
        read_day(objects, "2026-02-28")
    with pytest.raises(BadParameters, match="write it as"):
        read_day(objects, "yesterday")
    with pytest.raises(UnknownSelection, match="no table 'adz'"):
        read_day(objects).files("adz")


def test_as_of_in_sql(opened: Opened, tmp_path: Path) -> None:
    """One query reads the state as of a day, also while files of other runs lie about; OPERATIONS.md has it."""
    sql = """
        SELECT a.* FROM read_parquet('{s}/ad/*/*.parquet', hive_partitioning=true, union_by_name=true, filename=true) a
        JOIN (SELECT CAST(day AS DATE) AS day, run FROM read_json('{s}/_days/*.json')
              WHERE CAST(day AS DATE) <= DATE '{day}' ORDER BY 1 DESC LIMIT 1) d
        ON CAST(a.day AS DATE) = d.day AND contains(a.filename, '/part-' || d.run || '-')
    """
    for day in ("2026-03-01", "2026-03-04"):
        run(opened, "snapshot", to=snapshots(tmp_path), day=day)
        change = opened.repo.begin(Origin("test"))
        change.put("ad", f"after {day}", "meta:source_version", b"\x01")
        change.commit()
    newest = tmp_path / "snapshots/ad/day=2026-03-04"
    (newest / "part-99-1-00000.parquet").write_bytes(next(newest.iterdir()).read_bytes())
    for asked, rows in (("2026-03-03", ROWS), ("2026-03-04", ROWS + 1), ("2027-01-01", ROWS + 1)):
        found = query(f"SELECT count(*) FROM ({sql.format(s=snapshots(tmp_path), day=asked)})")
        assert found.fetchall() == [(rows,)], asked


def test_a_day_taken_again_replaces_itself(opened: Opened, tmp_path: Path) -> None:
    """A second snapshot of a day leaves its own files only, and they have the newer state."""
    run(opened, "snapshot", to=snapshots(tmp_path), day="2026-03-01")
    change = opened.repo.begin(Origin("test"))
    change.delete("ad", "5", "meta:source_version")
    change.put("ad", "new", "meta:source_version", b"\x01")
    change.commit()
    run(opened, "snapshot", to=snapshots(tmp_path), day="2026-03-01")
    day = read_day(Objects(snapshots(tmp_path)))
    there = {p.name for p in (tmp_path / "snapshots/ad/day=2026-03-01").iterdir()}
    assert there == {Path(name).name for name in day.files("ad")}
    keys = pq.read_table(tmp_path / "snapshots" / day.files("ad")[0]).column("_key").to_pylist()
    assert "new" in keys and keys == sorted(keys)


def test_writers_at_work_do_not_tear_a_snapshot(
    opened: Opened, empty: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All tables are read at one timestamp, however much is written between them."""
    before = contents(opened.repo, opened.catalog)
    real, number = Objects.put, [0]

    def put(self: Objects, file: Path, name: str) -> None:
        real(self, file, name)
        number[0] += 1
        transaction = opened.repo.begin(Origin("test"))
        for table in opened.catalog.tables:
            transaction.put(table, f"late{number[0]}", "meta:source_version", b"\x01")
            transaction.put(table, "7", "meta:source_version", b"\x63")
        transaction.commit()

    monkeypatch.setattr(Objects, "put", put)
    run(opened, "snapshot", to=snapshots(tmp_path))
    assert number[0] > len(opened.catalog.tables)
    run(empty, "snapshot-import", source=snapshots(tmp_path))
    assert contents(empty.repo, empty.catalog) == before


def test_bytes_that_are_no_value_are_counted_and_kept(opened: Opened, empty: Opened, tmp_path: Path) -> None:
    """A row that does not parse is named in the record; its bytes are in the snapshot all the same, and come back."""
    spoil = opened.repo.begin(Origin("test"))
    cell = opened.catalog.tables["ad"].columns["quality"].cell
    spoil.put("ad", "3", cell, b"\xd9\xff")
    spoil.put("ad_document", "4", DOCUMENT_BODY, b"\xc1broken")
    spoil.commit()
    taken = run(opened, "snapshot", to=snapshots(tmp_path))
    found = {f.kind: f for f in taken.failures}
    assert found["cell"].count == 1 and found["cell"].examples[0].startswith(f"ad/3 {cell}: ")
    assert found["document"].count == 1 and found["document"].examples[0].startswith("4: ")
    assert taken.outcome is Outcome.SUCCEEDED and "the policy is to go on" in taken.said
    day = read_day(Objects(snapshots(tmp_path)))
    raw = dict(
        zip(
            *(pq.read_table(tmp_path / "snapshots" / day.files("ad")[0])[c].to_pylist() for c in ("_key", CELLS)),
            strict=True,
        )
    )
    assert dict(raw["3"])[cell] == b"\xd9\xff"
    run(empty, "snapshot-import", source=snapshots(tmp_path))
    assert contents(empty.repo, empty.catalog) == contents(opened.repo, opened.catalog)


def test_a_value_in_another_encoding_is_kept_as_it_is(opened: Opened, empty: Opened, tmp_path: Path) -> None:
    """A cell that says its value in other bytes than ours is no typed value: its own bytes come back."""
    cell, other = opened.catalog.tables["pin"].columns["price_micros"].cell, b"\xcd\x00\x05"  # 5, in three bytes
    assert decode(other) == 5 and encode(5) != other
    spoil = opened.repo.begin(Origin("test"))
    spoil.put("pin", "3", cell, other)
    spoil.commit()
    taken = run(opened, "snapshot", to=snapshots(tmp_path))
    assert [f.examples for f in taken.failures] == [
        (f"pin/3 {cell}: not in the canonical encoding; kept as bytes in {CELLS}",)
    ]
    rows = pq.read_table(tmp_path / "snapshots" / read_day(Objects(snapshots(tmp_path))).files("pin")[0]).to_pylist()
    [row] = [row for row in rows if row["_key"] == "3"]
    assert row["price_micros"] is None and dict(row[CELLS])[cell] == other
    run(empty, "snapshot-import", source=snapshots(tmp_path))
    assert empty.repo.snapshot().get("pin", "3") == opened.repo.snapshot().get("pin", "3")


def test_import_wants_an_empty_repo_and_whole_files(opened: Opened, empty: Opened, tmp_path: Path) -> None:
    """An import into rows is refused before it writes; a cut file and cells that were changed are found out."""
    run(opened, "snapshot", to=snapshots(tmp_path))
    with pytest.raises(BadParameters, match="has rows in"):
        run(opened, "snapshot-import", source=snapshots(tmp_path))
    day = read_day(Objects(snapshots(tmp_path)))
    victim = tmp_path / "snapshots" / day.files("campaign")[0]
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SnapshotDamaged, match="campaign"):
        run(empty, "snapshot-import", source=snapshots(tmp_path))
    table = pq.read_table(tmp_path / "snapshots" / day.files("ad")[0])
    pq.write_table(table.slice(0, ROWS - 1), victim.parent.parent.parent / day.files("ad")[0])
    victim.write_bytes(whole)
    with pytest.raises(SnapshotDamaged, match="ad has 119 rows instead of 120"):
        run(empty, "snapshot-import", resume=True)


def test_kill_in_the_middle(opened: Opened, empty: Opened, catalog: Catalog, tmp_path: Path) -> None:
    """Snapshot and import are killed again and again, resumed, and what arrives is what there was; a reader never sees
    a day that is not whole, nor one of two moments, whatever is written between the attempts."""
    before = contents(opened.repo, catalog)

    def overwrite() -> None:
        for table in catalog.tables.values():
            transaction = opened.repo.begin(Origin("test"))
            for row in before[table.name]:
                transaction.put(table.name, row, SOURCE_VERSION, encode(1 << 40))
            transaction.put(table.name, "~new", SOURCE_VERSION, encode(1))
            transaction.commit()

    kills = killed_until_done(
        opened.home.root,
        catalog,
        "snapshot",
        [3, 9, 1],
        overwrite,
        to=snapshots(tmp_path),
        day="2026-03-01",
        processes=1,
    )
    assert kills == 3
    day = read_day(Objects(snapshots(tmp_path)))
    assert len(day.find("ad").parts) == 5 and day.find("ad").rows == ROWS
    there = {str(p.relative_to(tmp_path / "snapshots")) for p in (tmp_path / "snapshots").rglob("*.parquet")}
    wanted = {name for t in [*day.tables, day.documents] if t for name in day.files(t.table)}
    assert there == wanted, "parts of the killed attempts are gone"
    asked = {"source": snapshots(tmp_path), "processes": 1}
    assert killed_until_done(empty.home.root, catalog, "snapshot-import", [5, 40, 2], **asked) == 3
    assert contents(empty.repo, catalog) == before
    record = RunStore(empty.repo).get("snapshot-import-1")
    assert len(record.attempts) == 4 and record.counts["verified"] is True


def test_a_killed_day_does_not_count(opened: Opened, catalog: Catalog, tmp_path: Path) -> None:
    """Until a day is complete, the one before it is the newest."""
    run(opened, "snapshot", to=snapshots(tmp_path), day="2026-03-01")
    process = child(opened.home.root, catalog, "snapshot", False, to=snapshots(tmp_path), day="2026-03-02", processes=1)
    assert process.stdout is not None
    for _ in range(6):
        process.stdout.readline()
    process.kill()
    process.wait()
    assert list((tmp_path / "snapshots").rglob("day=2026-03-02/*.parquet"))
    assert read_day(Objects(snapshots(tmp_path))).day == "2026-03-01"


def test_a_full_disk_fails_the_run_with_a_sentence(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without space the run fails and says where and what to do; no day appears, and a resume completes it."""
    real = Objects.put

    def full(self: Objects, file: Path, name: str) -> None:
        if name.startswith("campaign"):
            raise OSError(28, "No space left on device", name)
        real(self, file, name)

    monkeypatch.setattr(Objects, "put", full)
    with pytest.raises(OSError, match="No space"):
        run(opened, "snapshot", to=snapshots(tmp_path))
    failed = RunStore(opened.repo).get("snapshot-1")
    assert failed.outcome is Outcome.FAILED and "free some space" in failed.error and "--resume" in failed.said
    assert days(Objects(snapshots(tmp_path))) == []
    monkeypatch.setattr(Objects, "put", real)
    assert run(opened, "snapshot", resume=True).outcome is Outcome.SUCCEEDED
    assert len(days(Objects(snapshots(tmp_path)))) == 1


def test_part_names_are_of_the_day(opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is in a directory day=… of its table, as Hive, Spark and DuckDB expect partitions."""
    monkeypatch.setattr(parquet_snapshot, "PART_ROWS", 50)
    monkeypatch.setattr(parquet_import, "BATCH_ROWS", 50)
    run(opened, "snapshot", to=snapshots(tmp_path), day="2026-03-01", documents=False, processes=1)
    day: Day = read_day(Objects(snapshots(tmp_path)))
    assert day.documents is None and day.find("ad").parts == (50, 50, 20)
    for table in day.tables:
        for name in day.files(table.table):
            assert Path(name).parts[:2] == (table.table, "day=2026-03-01")
