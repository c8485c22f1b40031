"""Which backends a home uses, and that every command finds the same ones."""

from __future__ import annotations

import json
import secrets
import socket
from contextlib import closing
from pathlib import Path

import pymysql
import pytest
from sqlalchemy.engine import make_url

from cli.main import app
from cli.runtime import CommandError, open_log, peer_id
from cli.settings import EMBEDDED, Settings, SettingsError, choose, settings_file, stage_settings
from compose import ServerInfo
from messaging import UnknownTopic
from messaging.home import Home
from messaging.topics import CHANGE_FEED, GATEWAY_GROUP
from storage_repo.hbase.wal import WalProxySettings
from tests.end_to_end.command import adsindex, as_json

HBASE = "hbase://hbase:9090?thrift2=9095&zookeeper=zk:2181"
MYSQL = "mysql+pymysql://ads:secret@db:3306/ads"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Return a new home."""
    return Home.open(tmp_path / "home")


def test_everything_is_embedded_at_first(home: Home) -> None:
    """A home where nothing was chosen uses the embedded set, and no file is written for that."""
    assert Settings.load(home) == Settings(ads_db=EMBEDDED, log=EMBEDDED)
    assert stage_settings(home) == {}
    choose(home, ads_db=None, log=None)
    assert not settings_file(home).exists()


def test_choice_is_remembered_and_private(home: Home) -> None:
    """What was chosen stays, one setting at a time; the file is for its owner only and people see no password."""
    choose(home, ads_db=MYSQL)
    choose(home, log="kafka://broker:9092/prefix")
    assert Settings.load(home) == Settings(ads_db=MYSQL, log="kafka://broker:9092/prefix")
    assert stage_settings(home) == {"ads_db": MYSQL}
    assert settings_file(home).stat().st_mode & 0o077 == 0
    assert Settings.load(home).public()["ads_db"] == "mysql+pymysql://ads@db:3306/ads"
    choose(home, ads_db=EMBEDDED)
    assert Settings.load(home).ads_db == EMBEDDED


@pytest.mark.parametrize(
    ("chosen", "why"),
    [
        ({"log": "broker:9092"}, "kafka://"),
        ({"log": "kafka://broker"}, "no port"),
        ({"ads_db": "postgresql://h/db"}, r"mysql\+pymysql"),
        ({"ads_db": "mysql+pymysql://host:3306"}, "name of a database"),
        ({"repo": "hbase://host:9090"}, "does not say where Thrift2 and ZooKeeper are"),
        ({"repo": "hbase://host:9090?thrift2=9095&zookeeper=host:2181&salt=3"}, "unknown options salt"),
        ({"walproxy": ":7000"}, "write HOST or HOST:PORT"),
        ({"walproxy": "host:http"}, "write HOST or HOST:PORT"),
        ({"binlog_position": "offset"}, "gtid or by file"),
    ],
)
def test_half_set_value_is_refused(home: Home, chosen: dict[str, str], why: str) -> None:
    """A value that cannot work is refused with a sentence, and nothing is remembered."""
    with pytest.raises(SettingsError, match=why):
        choose(home, **chosen)
    assert not settings_file(home).exists()


def test_how_a_binlog_is_followed_is_told_to_stages(home: Home) -> None:
    """By GTIDs unless chosen otherwise, and then every stage of the home is told."""
    choose(home, ads_db=MYSQL, binlog_position="file")
    assert stage_settings(home) == {"ads_db": MYSQL, "binlog_position": "file"}
    choose(home, binlog_position="gtid")
    assert stage_settings(home) == {"ads_db": MYSQL}


def test_ads_db_that_cannot_be_used_is_not_remembered(home: Home) -> None:
    """`up` with a URL where nothing answers fails in a sentence that promises nothing, and changes nothing."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    url = f"mysql+pymysql://ads:secret@127.0.0.1:{port}/ads"
    done = adsindex("up", "--until-idle", "--sample", "0", "--ads-db", url, home=home.root, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "check that the server runs" in done.stderr
    assert "tried again" not in done.stderr
    assert not settings_file(home).exists()


def test_ads_db_by_file_is_remembered_once_it_is_found_good(home: Home, mysql_server: ServerInfo) -> None:
    """`up --ads-db … --binlog-position file` refuses a server's wrong schema, then follows by file and offset."""
    name = f"ads_{secrets.token_hex(6)}"
    admin = make_url(mysql_server.admin_url)
    url = make_url(mysql_server.url).set(database=name).render_as_string(hide_password=False)
    words = ("up", "--until-idle", "--sample", "0", "--json", "--ads-db", url, "--binlog-position", "file")
    with closing(
        pymysql.connect(
            host=admin.host or "", port=admin.port or 0, user=admin.username or "", password=admin.password or ""
        )
    ) as connection:
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name}")
            cursor.execute(f"CREATE TABLE {name}.other (id INT)")
        done = adsindex(*words, home=home.root, check=False)
        assert done.returncode == 1
        assert "does not exist" in done.stderr
        assert not settings_file(home).exists()
        with connection.cursor() as cursor:
            cursor.execute(f"DROP TABLE {name}.other")
        adsindex(*words, home=home.root)
        assert stage_settings(home) == {"ads_db": url, "binlog_position": "file"}
        with closing(open_log(home)) as log:
            stored = json.loads(log.committed_metadata(GATEWAY_GROUP, CHANGE_FEED)[0])
        assert stored["file"]
        assert stored["gtid"] == ""
        with connection.cursor() as cursor:
            cursor.execute(f"DROP DATABASE {name}")


@pytest.mark.parametrize("text", ["{", '{"lg": "embedded"}', '{"log": 7}'])
def test_spoilt_file_is_refused(home: Home, text: str) -> None:
    """A settings file with an unknown name, a wrong type or no JSON stops every command and names the file."""
    settings_file(home).write_text(text)
    with pytest.raises(SettingsError, match=r"settings\.json"):
        Settings.load(home)
    done = adsindex("status", home=home.root, check=False)
    assert done.returncode == 1
    assert "settings.json" in done.stderr


def test_the_wal_proxy_is_told_where_hbase_reaches_it(home: Home) -> None:
    """A host alone takes a free port; without any the WAL proxy stays on loopback."""
    choose(home, repo=HBASE)
    assert stage_settings(home) == {}
    choose(home, walproxy="proxy.example:7000")
    assert stage_settings(home) == {
        "walproxy_host": "proxy.example", "walproxy_bind": "proxy.example", "walproxy_port": "7000",
    }  # fmt: skip
    choose(home, walproxy="proxy.example")
    assert WalProxySettings.of(stage_settings(home)).port == 0


def test_installations_on_one_hbase_are_told_apart() -> None:
    """The replication peer is named after the prefix of the tables, in letters that HBase allows."""
    assert peer_id(HBASE) == "adsindex"
    assert peer_id(f"{HBASE}&prefix=test-ns:") == "adsindex_test_ns_"


def test_another_repo_under_a_base_index_is_refused(home: Home) -> None:
    """A base index has the timestamps of the Repo it was built from."""
    (home.base / "CURRENT").write_text("1")
    with pytest.raises(SettingsError, match="another Repo"):
        choose(home, repo=HBASE)


def test_commands_for_hbase_say_when_a_home_has_none(home: Home) -> None:
    """`repo` and `walproxy` on an embedded Repo name the option that chooses another."""
    for words in (("repo", "check"), ("walproxy", "status")):
        with pytest.raises(CommandError, match="uses the embedded Repo"):
            app([*words, "--home", str(home.root)], standalone_mode=False)


def test_several_wal_proxies_are_for_hbase(home: Home) -> None:
    """An embedded Repo has one reader of its commits; `up` says so before anything is started."""
    done = adsindex("up", "--wal-proxies", "2", "--sample", "0", home=home.root, check=False)
    assert done.returncode == 1
    assert "are read by one WAL proxy" in done.stderr
    assert list(home.logs.glob("*.log")) == []


def test_another_log_under_a_base_index_is_refused(home: Home) -> None:
    """A base index counts positions of the log it was built beside, so the log cannot be changed under it."""
    (home.base / "CURRENT").write_text("1")
    with pytest.raises(SettingsError, match="base index"):
        choose(home, log="kafka://broker:9092")
    choose(home, ads_db=MYSQL)


def test_another_ads_db_under_a_store_that_has_rows_is_refused(home: Home) -> None:
    """Once a home has been up, its rows are of one ads DB: only a server with a database of that name may take over."""
    choose(home, ads_db=MYSQL)
    (home.root / "catalog.fingerprint").write_text("x")  # what `up` leaves
    choose(home, ads_db="mysql+pymysql://ads:other@replica:3307/ads")
    for other in ("mysql+pymysql://ads:secret@db:3306/ads_two", EMBEDDED):
        with pytest.raises(SettingsError, match=r"use a new home.*ads DB"):
            choose(home, ads_db=other)
    assert Settings.load(home).ads_db.endswith("replica:3307/ads")


def test_kafka_log_is_opened_once_its_topics_are_applied(home: Home, kafka_server: ServerInfo, tmp_path: Path) -> None:
    """`up --log` on a broker without topics fails naming the command; after `topics apply` every command finds it."""
    url = f"{kafka_server.url}/c{tmp_path.name.replace('_', '')}-"
    done = adsindex("up", "--until-idle", "--sample", "0", "--log", url, home=home.root, check=False)
    assert done.returncode == 1
    assert "topics apply" in done.stderr
    assert "Traceback" not in done.stderr
    with pytest.raises(UnknownTopic):
        open_log(home)
    checked = adsindex("topics", "check", "--json", home=home.root, check=False)
    assert checked.returncode == 1
    assert not json.loads(checked.stdout)["ok"]
    assert as_json("topics", "apply", home=home.root)["ok"]
    assert as_json("topics", "check", home=home.root) == {"ok": True, "findings": []}
    adsindex("switch", "set", "pause.low", "on", "--why", "test", "--who", "anna", home=home.root)
    status = as_json("status", home=home.root)
    (switch,) = [s for s in status["switches"] if s["name"] == "pause.low"]
    assert (switch["value"], switch["who"], switch["why"]) == ("on", "anna", "test")
    assert as_json("report", "drops", "--day", "today", home=home.root) == {"total": 0, "drops": []}
