"""The diagnosis names the first cause, for every way in which a healthy campaign can be broken."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from catalog import LaneName
from catalog.documents import decode_document, encode_document
from catalog.model import DOCUMENT_BODY, RUN
from catalog.values import encode
from debug_ui import BadInput, UnknownEntity
from debug_ui.diagnosis import STEPS, Diagnosis, diagnose_ad, diagnose_campaign
from manas import ManasUnavailable
from messaging import OutRecord
from messaging.headers import new_header, now_us
from messaging.proto import adsindex_pb2 as pb
from messaging.switches import set_switch
from messaging.topics import BUDGETS, DELTAS, NOTIFICATIONS
from storage_repo import Origin
from tests.debug_ui.pipeline import Pipeline


def diagnosed(pipeline: Pipeline) -> Diagnosis:
    """Diagnose campaign 1 and check what holds of every diagnosis."""
    diagnosis = diagnose_campaign(pipeline.backends, "1")
    assert json.loads(json.dumps(diagnosis.to_json()))["cause"] == diagnosis.cause
    assert [s.name for s in diagnosis.steps] + list(diagnosis.not_reached) == list(STEPS)
    assert all(s.ok is not False for s in diagnosis.steps[:-1])
    if diagnosis.cause is not None:
        last = diagnosis.steps[-1]
        assert last.ok is False and last.evidence and last.meaning and last.fix
    return diagnosis


def test_healthy_campaign_passes_every_step(pipeline: Pipeline) -> None:
    """A campaign that nothing is wrong with is healthy, with evidence for all eleven steps."""
    diagnosis = diagnosed(pipeline)
    assert diagnosis.healthy and diagnosis.cause is None
    assert len(diagnosis.steps) == 11 and all(s.ok and s.evidence for s in diagnosis.steps)


BY_SQL = [
    ("advertiser", "UPDATE advertisers SET status = 'PAUSED' WHERE id = 1", "PAUSED"),
    ("advertiser", "UPDATE advertisers SET billing_status = 'PAYMENT_FAILED' WHERE id = 1", "PAYMENT_FAILED"),
    ("advertiser", "UPDATE campaigns SET advertiser_id = 77 WHERE id = 1", "advertiser 77 does not exist"),
    ("campaign", "UPDATE campaigns SET status = 'PAUSED' WHERE id = 1", "PAUSED"),
    ("campaign", "UPDATE campaigns SET starts_at = '2999-01-01 00:00:00' WHERE id = 1", "starts only at 2999"),
    ("campaign", "UPDATE campaigns SET ends_at = '2020-01-01 00:00:00' WHERE id = 1", "ended at 2020"),
    ("campaign", "DELETE FROM campaigns WHERE id = 1", "not in the ads DB"),
    ("budget", "DELETE FROM budgets WHERE campaign_id = 1", "no budget"),
    ("budget", "UPDATE budgets SET spent_today_micros = 50000000 WHERE campaign_id = 1", "daily budget is used up"),
    (
        "budget",
        "UPDATE budgets SET lifetime_micros = 9, spent_total_micros = 9 WHERE campaign_id = 1",
        "lifetime budget is used up",
    ),
    ("ad_groups", "UPDATE ad_groups SET status = 'PAUSED' WHERE campaign_id = 1", "ad group 10 is PAUSED"),
    ("ad_groups", "UPDATE ad_groups SET bid_micros = NULL WHERE campaign_id = 1", "no bid"),
    ("ad_groups", "UPDATE ad_groups SET ends_at = '2020-01-01 00:00:00' WHERE campaign_id = 1", "ended at 2020"),
    ("ad_groups", "DELETE FROM ad_groups WHERE campaign_id = 1", "no ad groups"),
    ("ads", "UPDATE ads SET status = 'PAUSED' WHERE ad_group_id = 10", "PAUSED"),
    ("ads", "UPDATE ads SET review_status = 'REJECTED' WHERE ad_group_id = 10", "REJECTED"),
    ("ads", "UPDATE pins SET title = ' ' WHERE id IN ('pin-100', 'pin-101')", "no title"),
    ("ads", "UPDATE pins SET status = 'REMOVED' WHERE id IN ('pin-100', 'pin-101')", "REMOVED"),
    ("ads", "UPDATE images SET status = 'REMOVED' WHERE id IN ('img-100', 'img-101')", "image img-100 is REMOVED"),
    ("ads", "UPDATE ads SET pin_id = 'nowhere' WHERE ad_group_id = 10", "does not exist"),
    ("ads", "DELETE FROM ads WHERE ad_group_id = 10", "no ads"),
]


@pytest.mark.parametrize(("cause", "statement", "said"), BY_SQL, ids=[f"{c}-{i}" for i, (c, _, _) in enumerate(BY_SQL)])
def test_cause_in_the_ads_db(pipeline: Pipeline, cause: str, statement: str, said: str) -> None:
    """What the advertiser has set is the cause named, before the pipeline has taken the change in as well as after."""
    pipeline.sql(statement)
    in_flight = diagnosed(pipeline)
    pipeline.run()
    settled = diagnosed(pipeline)
    assert in_flight.cause == settled.cause == cause
    assert said in in_flight.summary and said in settled.summary


REPAIRED = [
    "UPDATE advertisers SET status = 'PAUSED' WHERE id = 1",
    "UPDATE campaigns SET status = 'PAUSED' WHERE id = 1",
    "UPDATE campaigns SET ends_at = '2020-01-01 00:00:00' WHERE id = 1",
    "UPDATE budgets SET spent_today_micros = 50000000 WHERE campaign_id = 1",
    "DELETE FROM budgets WHERE campaign_id = 1",
    "UPDATE ad_groups SET status = 'PAUSED' WHERE campaign_id = 1",
    "UPDATE ad_groups SET bid_micros = NULL WHERE campaign_id = 1",
    "UPDATE ads SET review_status = 'REJECTED' WHERE ad_group_id = 10",
    "UPDATE images SET status = 'REMOVED' WHERE id IN ('img-100', 'img-101')",
]


@pytest.mark.parametrize("statement", REPAIRED)
def test_proposed_statement_repairs(pipeline: Pipeline, statement: str) -> None:
    """Running the SQL that the diagnosis proposes makes the campaign healthy again."""
    pipeline.sql(statement)
    pipeline.run()
    fixes = diagnosed(pipeline).steps[-1].fix
    for fix in fixes:
        pipeline.sql(fix.partition('./adsindex sql "')[2].removesuffix('"'))
    pipeline.run()
    assert diagnosed(pipeline).healthy


@pytest.mark.parametrize(
    ("stopped_after", "waits_in"),
    [((), "ads DB change feed"), (("gateway",), "updates.high")],
    ids=["gateway stopped", "updater stopped"],
)
def test_change_that_has_not_reached_the_repo(
    pipeline: Pipeline, stopped_after: tuple[str, ...], waits_in: str
) -> None:
    """While Gateway or Updater is down, the cause is the Repo, with both values and where the change waits."""
    pipeline.sql("UPDATE ad_groups SET bid_micros = 3000000 WHERE id = 10")
    for stage in stopped_after:
        pipeline.run(stage)
    diagnosis = diagnosed(pipeline)
    assert diagnosis.cause == "repo"
    values = {e.what: e.value for e in diagnosis.steps[-1].evidence}
    assert values["ad_groups.bid_micros"] == 3000000 and values["ad_group.bid_micros"] == 1000000
    assert values[f"waiting in {waits_in}"] == 1


def test_dead_lettered_update(pipeline: Pipeline) -> None:
    """A value that the catalogue refuses is named with its dead letter, and what to set right."""
    pipeline.sql("UPDATE campaigns SET objective = 'x' || zeroblob(200000) WHERE id = 1")
    pipeline.run()
    diagnosis = diagnosed(pipeline)
    assert diagnosis.cause == "repo"
    assert any(e.what.startswith("dead letter") for e in diagnosis.steps[-1].evidence)
    assert "UPDATE campaigns SET objective" in diagnosis.steps[-1].fix[0]


@pytest.mark.parametrize(
    ("statement", "cause"),
    [
        ("UPDATE campaigns SET starts_at = 'soon' WHERE id = 1", "repo"),
        ("UPDATE budgets SET spent_today_micros = 'much' WHERE campaign_id = 1", "eligible"),
        ("UPDATE ad_groups SET bid_micros = 'high' WHERE id = 10", "ad_groups"),
        ("UPDATE pins SET title = x'fffe' WHERE id IN ('pin-100', 'pin-101')", "repo"),
    ],
)
def test_values_that_are_not_what_they_should_be(pipeline: Pipeline, statement: str, cause: str) -> None:
    """Text where a time or a number belongs breaks no diagnosis; it is a cause like any other."""
    pipeline.sql(statement)
    pipeline.run()
    assert diagnosed(pipeline).cause == cause


def test_dropped_update(pipeline: Pipeline) -> None:
    """An update that vanished on the way is the cause, and the proposed statement sends it again."""
    pipeline.sql("UPDATE ad_groups SET bid_micros = 3000000 WHERE id = 10")
    pipeline.gateway()
    pipeline._done("updater", pipeline._take("updater", ["updates.high"]), [])
    pipeline.run()
    diagnosis = diagnosed(pipeline)
    assert diagnosis.cause == "repo"
    pipeline.sql(diagnosis.steps[-1].fix[0].partition('sql "')[2].removesuffix('"'))
    pipeline.run()
    assert diagnosed(pipeline).healthy


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ('{"age": "everyone"}', "'age' must be a list"),
        ('{"age": ["30-34"], "exclude": {"age": ["30-34"]}}', "both accepts and excludes"),
        ("{", "not JSON"),
    ],
)
def test_poison_targeting_spec(pipeline: Pipeline, spec: str, said: str) -> None:
    """A targeting spec that the handler refuses is the cause, in the handler's words."""
    pipeline.sql(f"UPDATE targeting_specs SET spec = '{spec}' WHERE ad_group_id = 10")
    pipeline.run()
    diagnosis = diagnosed(pipeline)
    assert diagnosis.cause == "document"
    assert said in diagnosis.summary
    assert "UPDATE targeting_specs" in diagnosis.steps[-1].fix[0]


@pytest.mark.parametrize("stopped_after", [("gateway", "updater"), ("gateway", "updater", "wal_proxy")])
def test_handlers_that_have_not_run(pipeline: Pipeline, stopped_after: tuple[str, ...]) -> None:
    """While WAL proxy or Argus is down, the cause is a document made from older inputs."""
    pipeline.sql("UPDATE ad_groups SET bid_micros = 3000000 WHERE id = 10")
    pipeline.run(*stopped_after)
    diagnosis = diagnosed(pipeline)
    assert diagnosis.cause == "document"
    assert "newer than the last run" in diagnosis.summary
    assert any(str(e.what).startswith("waiting in") and e.value for e in diagnosis.steps[-1].evidence)


def _publish_nothing(pipeline: Pipeline) -> None:
    """Run Argus as if it died for good between its commit and its publication."""
    from argus.core import ArgusCore
    from argus.stage import positions_after

    records = pipeline._take("argus", list(NOTIFICATIONS.values()))
    ArgusCore(pipeline.backends.repo, pipeline.registry, {"performance": pipeline.source}).process(records)
    pipeline.log.publish([], positions_after(records))


def test_document_that_was_not_published(pipeline: Pipeline) -> None:
    """A document that was committed but never published is the cause, with both versions."""
    pipeline.sql("UPDATE ad_groups SET bid_micros = 3000000 WHERE id = 10")
    pipeline.run("gateway", "updater", "wal_proxy")
    _publish_nothing(pipeline)
    pipeline.run("wal_proxy", "argus", "manas")
    diagnosis = diagnosed(pipeline)
    assert diagnosis.cause == "published"
    assert "refresh" in diagnosis.steps[-1].fix[-1]


def test_delta_that_serving_has_not_applied(pipeline: Pipeline) -> None:
    """While Manas does not follow, the cause is serving, and the delta's place in the log is evidence."""
    pipeline.sql("UPDATE ad_groups SET bid_micros = 3000000 WHERE id = 10")
    pipeline.run("gateway", "updater", "wal_proxy", "argus")
    diagnosis = diagnosed(pipeline)
    assert diagnosis.cause == "serving"
    assert any(DELTAS in e.where for e in diagnosis.steps[-1].evidence)


def test_document_that_serving_withdrew(pipeline: Pipeline) -> None:
    """A deletion that went to serving behind the Repo's back is the cause."""
    for ad in ("100", "101"):
        version = pipeline.backends.repo.last_commit_ts() + 1_000_000
        delta = pb.DocumentDelta(
            header=new_header(LaneName.HIGH, now_us()), document_id=ad, version=version, deleted=True
        )
        pipeline.log.publish([OutRecord(DELTAS, ad, delta.SerializeToString())])
    pipeline.run()
    diagnosis = diagnosed(pipeline)
    assert diagnosis.cause == "serving"
    assert "withdrawn" in diagnosis.summary


def test_serving_that_does_not_answer(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is away is named as such."""

    def away(_: object) -> None:
        raise ManasUnavailable("connection refused")

    monkeypatch.setattr(pipeline.index, "get", away)
    diagnosis = diagnosed(pipeline)
    assert diagnosis.cause == "serving"
    assert "does not answer" in diagnosis.summary


def _replace_documents(pipeline: Pipeline, change: Callable[[dict[str, object]], None]) -> None:
    """Write changed documents of campaign 1 to the Repo and to serving, as another release of a handler would have."""
    for ad in ("100", "101"):
        transaction = pipeline.backends.repo.begin(Origin(stage="argus", code_version="another"))
        fields = decode_document(transaction.get("ad_document", ad)[DOCUMENT_BODY])
        change(fields)
        body = encode_document(fields)
        transaction.put("ad_document", ad, DOCUMENT_BODY, body)
        transaction.put("ad_document", ad, RUN, encode([transaction.ts, "another"]))
        version = transaction.commit()
        delta = pb.DocumentDelta(header=new_header(LaneName.HIGH, now_us()), document_id=ad, version=version, body=body)
        pipeline.log.publish([OutRecord(DELTAS, ad, delta.SerializeToString())])
    pipeline.run()


def test_contradictory_targeting(pipeline: Pipeline) -> None:
    """Targeting terms that include only what they exclude are named, value by value."""
    _replace_documents(pipeline, lambda fields: fields.update(targeting=[*fields["targeting"], "!age=30-34"]))  # type: ignore[misc]
    diagnosis = diagnosed(pipeline)
    assert diagnosis.cause == "eligible"
    assert "age: includes only 30-34, and excludes 30-34" in diagnosis.summary


def test_budget_that_serving_does_not_know(pipeline: Pipeline) -> None:
    """A budget state that serving holds against the ads DB makes the campaign eligible for nothing."""
    state = pb.BudgetState(campaign_id="1", version=1 << 40, daily_micros=5, spent_today_micros=5, currency="USD")
    pipeline.log.publish([OutRecord(BUDGETS, "1", state.SerializeToString())])
    pipeline.run()
    diagnosis = diagnosed(pipeline)
    assert diagnosis.cause == "eligible"
    assert "budget" in diagnosis.summary


def test_outbid_campaign(pipeline: Pipeline) -> None:
    """Among ten better bids the campaign loses, and the bid that it is told wins it a slot."""
    for i in range(4, 14):
        pipeline.sql(
            f"INSERT INTO ads (id, ad_group_id, pin_id) VALUES ({1000 + i}, 20, 'pin-200');"
            "UPDATE ad_groups SET bid_micros = 7000000 WHERE id = 20"
        )
    pipeline.run()
    diagnosis = diagnosed(pipeline)
    assert diagnosis.cause == "auction"
    values = {e.what: e.value for e in diagnosis.steps[-1].evidence}
    assert values["rank"] == 13 and values["bid_micros needed"] == 7000001
    pipeline.sql(diagnosis.steps[-1].fix[0].partition('sql "')[2].removesuffix('"'))
    pipeline.run()
    assert diagnosed(pipeline).healthy


def test_first_cause_comes_first(pipeline: Pipeline) -> None:
    """Of several faults the outermost is named, and the chain stops there."""
    pipeline.sql(
        "UPDATE ads SET status = 'PAUSED' WHERE ad_group_id = 10; DELETE FROM budgets WHERE campaign_id = 1;"
        "UPDATE campaigns SET status = 'PAUSED' WHERE id = 1"
    )
    diagnosis = diagnosed(pipeline)
    assert diagnosis.cause == "campaign" and len(diagnosis.steps) == 2


def test_faults_of_some_ads_are_notes(pipeline: Pipeline) -> None:
    """One ad that cannot serve leaves the campaign healthy, and is mentioned."""
    pipeline.sql("UPDATE ads SET review_status = 'PENDING' WHERE id = 100")
    pipeline.run()
    diagnosis = diagnosed(pipeline)
    assert diagnosis.healthy
    assert any("ad 100" in note and "PENDING" in note for note in diagnosis.notes)
    assert diagnose_ad(pipeline.backends, 100).cause == "ads"
    assert diagnose_ad(pipeline.backends, 101).healthy


def test_schedule_is_judged_at_the_given_moment(pipeline: Pipeline) -> None:
    """A campaign that ends next year is healthy now, and has ended at a later moment."""
    pipeline.sql("UPDATE campaigns SET ends_at = '2998-01-01 00:00:00' WHERE id = 1")
    pipeline.run()
    later = 32_503_680_000_000_000  # the year 3000
    assert diagnosed(pipeline).healthy
    assert diagnose_campaign(pipeline.backends, 1, at=later).cause == "campaign"


def test_unknown_campaign(pipeline: Pipeline) -> None:
    """A campaign that nobody knows, and text that is no id, are clear errors."""
    with pytest.raises(UnknownEntity, match="999"):
        diagnose_campaign(pipeline.backends, 999)
    with pytest.raises(BadInput, match="whole number"):
        diagnose_campaign(pipeline.backends, "1; DROP TABLE ads")


def test_a_paused_lane_is_named_with_its_switch(pipeline: Pipeline) -> None:
    """Where an update waits because somebody paused its lane, who and why are evidence, and the way out is the fix."""
    pipeline.sql("UPDATE ad_groups SET bid_micros = 3000000 WHERE id = 10")
    pipeline.run("gateway")
    set_switch(pipeline.log, "pause.high", "on", who="anna", why="storm")
    diagnosis = diagnosed(pipeline)
    assert diagnosis.cause == "repo"
    assert any(e.what == "switch pause.high" and "anna: storm" in e.where for e in diagnosis.steps[-1].evidence)
    assert "./adsindex switch set pause.high off" in diagnosis.steps[-1].fix[0]
    set_switch(pipeline.log, "pause.high", "off", who="anna", why="over")
    set_switch(pipeline.log, "publishing", "off", who="ben", why="move")
    pipeline.run("gateway", "updater", "wal_proxy")
    diagnosis = diagnosed(pipeline)
    assert diagnosis.cause == "document"
    assert any(e.what == "switch publishing" and "ben: move" in e.where for e in diagnosis.steps[-1].evidence)
    assert "./adsindex switch set publishing on" in diagnosis.steps[-1].fix[0]


def test_a_paused_handler_explains_a_stale_document(pipeline: Pipeline) -> None:
    """A document that still serves with what a paused handler wrote before says who paused it and why."""
    set_switch(pipeline.log, "pause_handler.bid", "on", who="anna", why="wrong rates")
    pipeline.sql("UPDATE ad_groups SET bid_micros = 3000000 WHERE id = 10")
    pipeline.run()
    diagnosis = diagnosed(pipeline)
    assert diagnosis.healthy
    assert any("bid" in note and "anna: wrong rates" in note for note in diagnosis.notes)
