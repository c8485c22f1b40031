"""Base indexes: what is in them, on which engine they are built, what refuses them, what is left of a failed build."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from argus import HandlerContext, Inputs
from batch_workflows import _base_tasks
from batch_workflows._exceptions import BaseRefused, RunStopped, TooManyFailures
from batch_workflows._objects_errors import EngineFailed, ObjectDamaged
from batch_workflows._runs_model import Policy, RunRequest
from batch_workflows.base_gates import GateLimits
from batch_workflows.base_index import Hooks
from batch_workflows.engines import InlineEngine, LocalEngine, open_engine
from batch_workflows.execution import Stop, execute
from catalog.model import DOCUMENT_BODY
from gateway import AdsDb
from manas import Base, Index, SegmentMissing, current_base, open_local_index, shard_of
from storage_repo import Origin
from tests.argus.world import AD, CATALOG, PIN, with_handlers
from tests.batch_workflows.base_support import Built, files_of
from tests.batch_workflows.run_support import Opened

ADS = 420
WORDLESS = {"title": "!", "description": None, "brand": None, "category_path": None}
"""A pin of which no embedding can be made."""
AD_GROUP_CELL = CATALOG.column("ad.ad_group_id").cell
CUT = b"\xd9\x30 says that 48 bytes follow"
"""A cell that does not parse."""


@pytest.fixture
def built(tmp_path: Path) -> Iterator[Built]:
    """A home without documents yet."""
    made = Built(tmp_path / "home")
    yield made
    made.close()


def test_a_base_has_every_servable_document_once(built: Built) -> None:
    """Deleted, paused and unreviewed ads are in none; every shard has those whose hash it is; a search finds all."""
    built.fill(ADS)
    built.world.delete("ad", 7)
    built.world.put("ad", 8, **{**AD, "id": 8, "pin_id": "p8", "review_status": "REJECTED"})
    report = built.build(engine=InlineEngine(), shards=3, range_rows=100)
    served = built.served(report.base_version)
    assert served == built.expected(ADS)
    assert len(served) == report.documents == ADS - 2
    assert (report.rows, report.shards, report.faults) == (ADS, 3, [])
    base = Base.open(built.home.base / report.base_version)
    for number, segment in enumerate(base.segments):
        assert {shard_of(segment.document_id(i), 3) for i in range(segment.count)} == {number}
    index = Index(built.world.catalog, base)
    assert index.documents() == ADS - 2
    assert [d.found for d in index.get(["9", "7", "8"])] == [True, False, False]
    assert index.get(["9"])[0].body == served["9"]
    assert built.store.verify().documents == ADS - 2


def test_the_pool_builds_the_same_files_as_one_process(built: Built) -> None:
    """Engine, number of ranges and their order of completion leave no trace in a base."""
    built.fill(ADS)
    inline = built.build(engine=InlineEngine(), shards=2, range_rows=130)
    pool = LocalEngine(2)
    try:
        pooled = built.build(engine=pool, shards=2, range_rows=130)
        again = built.build(engine=pool, shards=2, range_rows=7)
    finally:
        pool.close()
    files = [files_of(built.home.base / report.base_version) for report in (inline, pooled, again)]
    assert files[0] == files[1] == files[2]
    assert len(files[0]) > 40
    assert inline.to_json() | {"base_version": "", "seconds": {}, "snapshot_ts": 0} == pooled.to_json() | {
        "base_version": "", "seconds": {}, "snapshot_ts": 0, "volume_change": 0.0,
    }  # fmt: skip
    assert not [p.name for p in built.home.base.iterdir() if p.name.startswith(".building-")]


def test_stored_documents_can_be_taken_as_they_are(built: Built) -> None:
    """Without recomputing, what the pipeline stored is served; with it, what differs is counted and named."""
    built.fill(60, settle=True)
    assert built.build().differing == 0
    transaction = built.world.repo.begin(Origin("test"))
    body = built.world.body(5)
    assert body is not None
    transaction.put("ad_document", "5", DOCUMENT_BODY, built.world.body(6) or b"")
    transaction.commit()
    stored, derived = built.build(recompute=False), built.build()
    assert built.served(stored.base_version)["5"] == built.world.body(6)
    assert built.served(derived.base_version)["5"] == body
    assert (stored.differing, derived.differing, derived.sample_differing) == (0, 1, ["5"])


def test_writers_go_on_and_what_they_write_is_not_in_the_base(built: Built) -> None:
    """All ranges are read at one timestamp, whatever is committed before the first task opens it and between tasks."""
    built.fill(ADS)
    before = built.expected(ADS)

    def disturb(_: object) -> None:
        built.world.put_many(
            [("pin", f"p{n}", {**PIN, "id": f"p{n}", "title": "Changed meanwhile"}) for n in range(1, ADS + 1, 3)]
        )
        built.world.delete("ad", ADS)

    report = built.build(engine=InlineEngine(), range_rows=100, hooks=Hooks(read=disturb, begun=disturb))
    assert built.served(report.base_version) == before
    assert built.expected(ADS) != before


def test_a_critical_field_that_keeps_documents_out_refuses_the_base(built: Built) -> None:
    """Documents without it are in no base, so it is they that are counted; field, source and documents are named."""
    built.fill(ADS)
    for ad in range(1, 41):
        built.world.put("pin", f"p{ad}", **{**PIN, "id": f"p{ad}", **WORDLESS})
    with pytest.raises(
        BaseRefused, match=r"not published, the old one stays.*field 'embedding' .*40 documents"
    ) as refused:
        built.build()
    assert "for example not 1, 10, 11, 12, 13" in str(refused.value)
    assert refused.value.report["kept_out"] == 40
    assert refused.value.report["samples"]["embedding"] == ["1", "10", "11", "12", "13"]
    assert built.store.current() is None
    assert [p for p in built.home.base.iterdir() if p.is_dir()] == [], "a refused base leaves nothing"
    assert built.build(limits=GateLimits(max_lacking=0.1)).documents == ADS - 40
    forced = built.build(force=True)
    assert (forced.documents, len(forced.faults)) == (ADS - 40, 1)


def test_fewer_documents_than_before_refuse_the_base(built: Built) -> None:
    """Half of them gone is likelier a fault than right; `force` and other limits publish it all the same."""
    built.fill(ADS)
    first = built.build()
    for ad in range(1, 250):
        built.world.delete("ad", ad)
    with pytest.raises(BaseRefused, match=rf"171 documents, but base {first.base_version} has 420 \(-59.3%\)"):
        built.build()
    assert built.store.current() == first.base_version
    forced = built.build(force=True)
    assert (forced.documents, forced.volume_change) == (171, -0.592857)
    assert built.store.current() == forced.base_version


def test_a_row_that_does_not_parse_costs_its_own_document_at_most(built: Built) -> None:
    """It is left out, as in the pipeline, counted and named; many of them refuse the base."""
    built.fill(ADS, settle=True)
    before = built.expected(ADS)
    damage = built.world.repo.begin(Origin("test"))
    damage.put("ad", "11", AD_GROUP_CELL, CUT)
    damage.commit()
    report = built.build()
    assert built.served(report.base_version) == {ad: body for ad, body in before.items() if ad != "11"}
    assert report.failures == {"unreadable:does_not_parse": 1}
    assert report.samples["unreadable:does_not_parse"] == ["11"]
    damage = built.world.repo.begin(Origin("test"))
    for ad in ("12", "13"):
        damage.put("ad", ad, AD_GROUP_CELL, CUT)
    damage.commit()
    with pytest.raises(BaseRefused, match=r"3 of 420 documents cannot be read \(11, 12, 13\)"):
        built.build()


def test_a_handler_that_raises_is_counted_and_its_previous_outputs_stay(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the pipeline, one broken handler makes no document worse than it was; but such a release is refused, with
    the handler and documents to look at, unless more are allowed to fail."""
    built.fill(50, settle=True)
    before = built.expected(50)
    (title,) = (h for h in built.world.registry.handlers.values() if "ad_document.title" in h.declaration.writes)

    def broken(inputs: Inputs, context: HandlerContext) -> Mapping[str, Any]:
        if int(context.row) % 2:
            raise RuntimeError("odd ones are too much for me")
        return title.function(inputs, context)

    registry = with_handlers(replace(title, function=broken))
    monkeypatch.setattr(_base_tasks, "load_registry", lambda _catalog: registry)
    said = rf"handler '{title.name}' came to nothing on 25 of 50 rows \(handler_failed; for example 1, 11, 13, 15, 17\)"
    with pytest.raises(BaseRefused, match=said):
        built.build(engine=InlineEngine(), limits=GateLimits(max_failing=0.49))
    report = built.build(engine=InlineEngine(), limits=GateLimits(max_failing=0.5))
    assert report.failures == {f"{title.name}:handler_failed": 25}
    assert built.served(report.base_version) == before


def test_rows_on_which_a_handler_raises_are_failed_items_of_the_run(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run's record has handler and documents, and `--on-error stop` ends it at the first."""
    built.fill(20, settle=True)
    (title,) = (h for h in built.world.registry.handlers.values() if "ad_document.title" in h.declaration.writes)

    def broken(inputs: Inputs, context: HandlerContext) -> Mapping[str, Any]:
        if context.row in ("7", "9"):
            raise RuntimeError("these are too much for me")
        return title.function(inputs, context)

    registry = with_handlers(replace(title, function=broken))
    monkeypatch.setattr(_base_tasks, "load_registry", lambda _catalog: registry)
    request = RunRequest(workflow="base-index", parameters={"max_failing": 0.1})
    with closing(AdsDb.open(built.home.ads_db)) as ads_db:
        ads_db.ensure_capture(built.world.catalog)
        opened = Opened(built.home, built.world.catalog, built.world.repo, built.log, ads_db)
        record = execute(opened, request)
        [failed] = record.failures
        assert (failed.reason, failed.count, failed.examples) == (f"{title.name}:handler_failed", 2, ("7", "9"))
        with pytest.raises(TooManyFailures, match="document 7"):
            execute(opened, request.model_copy(update={"policy": Policy(on_error="stop")}))


def test_a_person_who_cancels_is_heard_while_files_are_read(built: Built) -> None:
    """Between two files of a base that is verified, and not only after the last."""
    built.fill(5)
    built.build()
    opened = Opened(built.home, built.world.catalog, built.world.repo, built.log)
    stop = Stop()
    stop.set()
    with pytest.raises(RunStopped):
        execute(opened, RunRequest(workflow="verify-base"), stop=stop)
    done = execute(opened, RunRequest(workflow="verify-base"))
    assert done.progress is not None and done.progress.done == done.progress.total == done.counts["bytes"]


def test_a_pool_process_that_is_killed_ends_the_build_and_leaves_nothing(built: Built) -> None:
    """The error says so; the next build is none the worse."""
    built.fill(ADS)
    pool = LocalEngine(2)

    def kill(tally: object) -> None:
        for child in multiprocessing.active_children():
            child.kill()

    with pytest.raises(EngineFailed, match="a process of the pool was killed"):
        built.build(engine=pool, range_rows=20, hooks=Hooks(read=kill))
    assert [p for p in built.home.base.iterdir() if p.is_dir()] == []
    assert built.build(engine=pool, range_rows=100).documents == ADS
    pool.close()


def test_verify_names_every_damaged_file_and_rollback_takes_only_whole_bases(built: Built) -> None:
    """One flipped byte, one byte too few, one missing file; the base before is put back in service."""
    built.fill(30)
    first, second = built.build(shards=2), built.build(shards=2)
    assert built.store.verify().to_json() | {"seconds": 0} == {
        "version": second.base_version, "files": len(files_of(built.home.base / second.base_version)) + 2,
        "bytes": second.bytes, "documents": 30, "shards": 2, "seconds": 0,
    }  # fmt: skip
    shard = built.home.base / second.base_version / "shard-001"
    flipped = bytearray((shard / "forward.body.blob").read_bytes())
    flipped[5] ^= 1
    (shard / "forward.body.blob").write_bytes(flipped)
    (shard / "versions").write_bytes((shard / "versions").read_bytes()[:-1])
    (shard / "terms.blob").unlink()
    with pytest.raises(ObjectDamaged) as damaged:
        built.store.verify()
    for said in ("shard-001/forward.body.blob: checksum differs", "shard-001/versions: has ", "terms.blob: is missing"):
        assert said in str(damaged.value)
    assert "shard-000" not in str(damaged.value)
    assert built.store.rollback() == first.base_version == current_base(built.home.base)
    with pytest.raises(SegmentMissing):
        built.store.rollback()
    assert built.store.verify().version == first.base_version


def test_only_the_newest_bases_are_kept(built: Built) -> None:
    """`keep` counts the new one; the report names those that went."""
    built.fill(10)
    versions = [built.build(keep=2).base_version for _ in range(3)]
    assert [b.version for b in built.store.bases()] == versions[1:]
    assert built.build(keep=1).removed == versions[1:]


def test_an_empty_repository_makes_an_empty_base(built: Built) -> None:
    """No documents, no fault; serving begins with it."""
    report = built.build()
    assert (report.documents, report.shards, report.rows) == (0, 1, 0)
    assert open_local_index(built.home, built.world.catalog, built.log).documents() == 0


def test_two_builds_of_one_home_do_not_meet(built: Built) -> None:
    """The second is refused; what the first has built so far stays."""
    built.fill(10)

    def second(tally: object) -> None:
        with pytest.raises(BaseRefused, match="another process builds"):
            built.build()

    assert built.build(engine=InlineEngine(), hooks=Hooks(read=second)).documents == 10


def test_an_engine_of_another_name_is_refused() -> None:
    """The sentence has the names that there are."""
    with pytest.raises(EngineFailed, match="no engine 'hadoop'; there are local, inline and spark"):
        open_engine("hadoop")


def test_a_job_travels_as_a_pickle_and_small(built: Built) -> None:
    """Tasks of a pool and of Spark carry the whole job, so that no process has to look for it."""
    assert len(pickle.dumps(built.world.catalog)) < 200_000
    assert pickle.loads(pickle.dumps(built.world.catalog)).fingerprint == built.world.catalog.fingerprint
