"""`adsindex topics` on a real broker."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cli.main import app
from compose import ServerInfo
from messaging import _kafka_topics
from messaging.topics import PARTITIONS


def test_what_only_the_broker_s_owner_can_mend_does_not_fail_apply(
    kafka_server: ServerInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that forgets positions too early is a warning of `apply`, which a container starts with, and a
    difference for `check`; a topic that nobody can mend stays a failure."""

    def topics(command: str, *options: str) -> Result:
        return CliRunner().invoke(app, ["topics", command, "--home", str(tmp_path), *options])

    url = f"{kafka_server.url}/t{uuid.uuid4().hex[:10]}-"
    kept = 10**9
    monkeypatch.setattr(_kafka_topics, "KEPT_POSITIONS_MINUTES", kept)
    applied = topics("apply", "--log", url)
    assert applied.exit_code == 0, applied.output
    assert "warning: (broker): offsets.retention.minutes is" in applied.output
    again = json.loads(topics("apply", "--json").output)
    assert again["ok"]
    assert [(f["topic"], f["what"], f["wanted"]) for f in again["findings"]] == [
        ("(broker)", "offsets.retention.minutes", f"{kept} or more")
    ]
    assert topics("check").exit_code == 1
    monkeypatch.setitem(PARTITIONS, "switches", 2)
    refused = topics("apply")
    assert refused.exit_code == 1
    assert "1 differences are left" in refused.output
