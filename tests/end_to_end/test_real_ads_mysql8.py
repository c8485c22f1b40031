"""The real ads from Oracle's MySQL: loaded, followed by GTIDs, indexed and found as from the embedded database."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from compose import ServerInfo
from tests.end_to_end.command import adsindex, documents, until_idle
from tests.end_to_end.oracle import RealAds
from tests.end_to_end.test_real_ads import check_answers, load
from tests.gateway.mysql_support import Ads

CHANGES = (
    "UPDATE ads SET name = CONCAT(name, '!') WHERE id % 2 = 0",
    "UPDATE ad_groups SET bid_micros = bid_micros + 1",
)


def test_documents_and_answers_are_those_of_the_embedded_database(
    oracle_mysql_server: ServerInfo, data: Path, tmp_path: Path
) -> None:
    """The snapshot of the loaded ads, and changes that come by the binlog, make the same documents byte for byte."""
    real = RealAds(data)
    followed, embedded = tmp_path / "mysql8", tmp_path / "embedded"
    with closing(Ads(oracle_mysql_server.url)) as ads:
        until_idle(followed, "--ads-db", ads.url, "--sample", "0")
        for home in (followed, embedded):
            load(home, real)
            until_idle(home)
        for statement in CHANGES:
            ads.run(statement)
            adsindex("sql", statement.replace("CONCAT(name, '!')", "name || '!'"), home=embedded)
        reports = [until_idle(home) for home in (followed, embedded)]
        assert [report["documents"] for report in reports] == [len(real.ads)] * 2
        assert reports[0]["dead_lettered"] == {}
        assert documents(followed) == documents(embedded)
        check_answers(
            followed, tmp_path, real, {ad["ad_id"]: (ad["age"], ad["gender"], ad["interest"]) for ad in real.ads}
        )
