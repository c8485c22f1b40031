"""The gate of a base index on the Gateway: changes of the ads DB that nobody reads, though the Repo looks idle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batch_workflows import BaseRefused, _base_gateway
from batch_workflows.base_store import BaseStore
from messaging import Position
from messaging.topics import CHANGE_FEED, GATEWAY_GROUP
from tests.batch_workflows.run_support import run
from tests.batch_workflows.sync_support import filled
from tests.debug_ui.pipeline import Pipeline

UNREAD = 2


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    """An idle pipeline with three campaigns, and some changes of the ads DB that no Gateway reads."""
    opened = filled(tmp_path / "home", 3)
    opened.sql("UPDATE ads SET name = 'unseen' WHERE id IN (100, 101)")
    yield opened
    opened.close()


def build(pipeline: Pipeline, **parameters: Any) -> Any:
    """Build a base of the stored documents."""
    return run(pipeline.backends, "base-index", stored=True, max_still_s=0.3, **parameters).counts


def test_a_gateway_that_is_down_is_named_and_the_base_refused(pipeline: Pipeline) -> None:
    """All that the Updater was given is stored, so nothing else tells; the old base stays, --force publishes."""
    with pytest.raises(BaseRefused, match=f"the Gateway stands still, with {UNREAD} changes of the ads DB") as refused:
        build(pipeline)
    assert len(refused.value.report["faults"]) == 1
    assert not BaseStore.of(pipeline.backends.home).bases()
    forced = build(pipeline, force=True)
    assert forced["base_version"] and "the Gateway stands still" in forced["faults"][0]


def test_a_gateway_that_has_read_all_or_is_at_work_refuses_nothing(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever moves is not down, however much it has before it; and who stands still because all is read neither."""
    first = pipeline.log.committed(GATEWAY_GROUP, CHANGE_FEED)[0]
    waits: list[float] = []

    def one_more(seconds: float) -> None:
        waits.append(seconds)
        pipeline.log.set_committed([Position(GATEWAY_GROUP, CHANGE_FEED, 0, first + 1)])

    monkeypatch.setattr(_base_gateway, "_sleep", one_more)
    assert build(pipeline)["faults"] == []
    assert len(waits) == 1
    pipeline.log.set_committed([Position(GATEWAY_GROUP, CHANGE_FEED, 0, first)])
    pipeline.run("gateway")
    assert build(pipeline)["faults"] == []
    assert len(waits) == 1


def test_the_ads_db_going_on_is_no_sign_of_the_gateway(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ads DB at work moves the end of its feed, not the Gateway; without the limit nobody asks."""
    monkeypatch.setattr(
        _base_gateway, "_sleep", lambda _: pipeline.sql("UPDATE ads SET name = name || '!' WHERE id = 200")
    )
    with pytest.raises(BaseRefused, match="the Gateway stands still"):
        build(pipeline)
    assert run(pipeline.backends, "base-index", stored=True, max_still_s=0).counts["faults"] == []
