"""Everything that happens to a serving index, in any order, against a dictionary of documents."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from manas import Index, publish, rollback
from manas import _folder as folder_module
from manas._fold import FoldOrder, fold
from manas._folder import FoldLimits
from manas._follower import Follower
from manas._serving_settings import ServingSettings
from messaging.embedded import open_embedded_log
from messaging.home import Home
from messaging.metrics import StageMetrics
from messaging.topics import DELTAS, ensure_topics
from tests.manas.support import (
    AT,
    CATALOG,
    VALUES,
    budget,
    check_answer,
    delta,
    document,
    embedding,
    log_records,
    tombstone,
    write_segment,
)

BROWSE = {**dict.fromkeys(VALUES, "*"), "at": AT}
LIMITS = FoldLimits(documents=3, most_documents=10_000)


class Inline:
    """Folds in this process, which saves half a second for a new one: when released, or when somebody waits for it."""

    released = False

    def __init__(self, order: FoldOrder, words: Path) -> None:
        self._order = order
        self._done = False

    def poll(self) -> int | None:
        """Fold if that is released."""
        return self.wait() if Inline.released or self._done else None

    def wait(self, timeout_s: float | None = None) -> int:
        """Fold."""
        if not self._done:
            fold(self._order)
            self._done = True
        return 0

    def kill(self) -> None:
        """Never fold."""
        self._done = True


@pytest.fixture(autouse=True)
def _inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "start_process", Inline)
    monkeypatch.setattr("manas._loading._CHECK_BASE_SECONDS", 0.0)


class Serving(RuleBasedStateMachine):
    """Deltas, deletions, repeats, budgets, folding, builds, swaps, rollbacks, and servers that die anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self._directory = tempfile.TemporaryDirectory()
        self._home = Home.open(Path(self._directory.name) / "home")
        self._log = open_embedded_log(self._home.log, self._home.wake)
        ensure_topics(self._log)
        self._clock = 0
        self._sent: list[Any] = []
        self._docs: dict[str, dict[str, Any]] = {}
        self._budgets: dict[str, dict[str, int]] = {}
        self._bases: list[str] = []
        self._follower: Follower | None = None
        Inline.released = False
        self._start()

    def teardown(self) -> None:
        """Remove the files."""
        self._die()
        self._log.close()
        self._directory.cleanup()

    @initialize()
    def fund(self) -> None:
        """Start with one funded campaign."""
        self.spend(1, 0)

    @rule(
        ads=st.lists(st.integers(1, 9), min_size=1, max_size=5),
        campaign=st.integers(1, 3),
        bid=st.integers(0, 3),
        seed=st.integers(0, 3),
    )
    def upsert(self, ads: list[int], campaign: int, bid: int, seed: int) -> None:
        """Publish documents."""
        for ad_id in ads:
            self._upsert(ad_id, campaign, bid, seed)

    def _upsert(self, ad_id: int, campaign: int, bid: int, seed: int) -> None:
        self._clock += 1
        doc = document(
            ad_id, campaign_id=campaign, bid_account_micros=bid, embedding=embedding(seed), terms=[f"w{bid}"]
        )
        self._docs[str(ad_id)] = doc
        self._send(delta(doc, self._clock))

    @rule(ad_id=st.integers(1, 9))
    def delete(self, ad_id: int) -> None:
        """Delete a document, known or not."""
        self._clock += 1
        self._docs.pop(str(ad_id), None)
        self._send(tombstone(ad_id, self._clock))

    @precondition(lambda self: self._sent)
    @rule(data=st.data())
    def redeliver(self, data: st.DataObject) -> None:
        """Deliver an old delta once more."""
        self._log.publish(log_records(data.draw(st.sampled_from(self._sent))))

    @rule(campaign=st.integers(1, 3), spent=st.integers(0, 1))
    def spend(self, campaign: int, spent: int) -> None:
        """Change a campaign's budget."""
        self._clock += 1
        state = {"daily_micros": 1, "spent_today_micros": spent}
        self._budgets[str(campaign)] = state
        self._log.publish(log_records(budget(campaign, self._clock, **state)))

    @precondition(lambda self: self._index.view.frozen is not None)
    @rule()
    def fold(self) -> None:
        """Let the folding that has begun come to its end."""
        Inline.released = True
        frozen = self._index.view.frozen
        while self._index.view.frozen is frozen:
            self._server.step()
        Inline.released = False

    @rule()
    def build(self) -> None:
        """Publish a base of the documents as they are."""
        self._clock += 1
        built = write_segment(
            Path(self._directory.name),
            self._docs.values(),
            version=self._clock,
            snapshot_ts=self._clock,
            positions=self._log.end_offsets(DELTAS),
        )
        self._bases.append(publish(self._home.base, built))

    @precondition(lambda self: self._bases)
    @rule(data=st.data())
    def roll(self, data: st.DataObject) -> None:
        """Roll back, or forward again, to any base."""
        rollback(self._home.base, data.draw(st.sampled_from(self._bases)))

    @rule()
    def restart(self) -> None:
        """The server dies wherever it is, and another one starts."""
        self._die()
        self._start()

    @invariant()
    def answers_as_the_dictionary(self) -> None:
        """Once the server has read everything, folded or not, search, get and counts follow the dictionary."""
        self._settle()
        check_answer(self._index, self._docs, self._budgets, BROWSE, 0)
        check_answer(self._index, self._docs, self._budgets, {**BROWSE, "text": "w1 w2"}, 2)
        if "1" in self._docs:
            check_answer(self._index, self._docs, self._budgets, {**BROWSE, "similar_to": 1}, 3)
        assert self._index.documents() == len(self._docs)
        for served in self._index.get([str(i) for i in range(1, 10)]):
            expected = self._docs.get(served.document_id)
            assert served.found is (expected is not None)
            assert served.body == (delta(expected, 1).body if expected else b"")
        assert self._index.stats()["problem"] == ""

    @property
    def _server(self) -> Follower:
        assert self._follower is not None
        return self._follower

    def _send(self, message: Any) -> None:
        self._sent.append(message)
        self._log.publish(log_records(message))

    def _settle(self) -> None:
        self._server.catch_up()
        version = self._bases and (self._home.base / "CURRENT").read_text().strip()
        while self._index.base_version != (version or ""):
            self._server.step()

    def _start(self) -> None:
        self._index = Index(CATALOG)
        metrics = StageMetrics(self._home.metrics, "manas")
        self._follower = Follower(
            self._home.base, self._log, self._index, metrics, settings=ServingSettings(fold=LIMITS)
        )
        self._follower.start()

    def _die(self) -> None:
        """Leave everything as it is but for the lock, which the kernel takes from the dead."""
        loader = self._server._loader
        if loader._loading is not None:
            loader._loading.join()
        loader.close()


TestServing = Serving.TestCase
TestServing.settings = settings(
    max_examples=20, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
