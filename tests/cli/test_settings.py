"""Which backends a home uses, and that every command finds the same ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.main import app
from cli.runtime import CommandError, open_log, peer_id
from cli.settings import EMBEDDED, Settings, SettingsError, choose, settings_file, stage_settings
from compose import ServerInfo
from messaging import UnknownTopic
from messaging.home import Home
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
    ],
)
def test_half_set_value_is_refused(home: Home, chosen: dict[str, str], why: str) -> None:
    """A value that cannot work is refused with a sentence, and nothing is remembered."""
    with pytest.raises(SettingsError, match=why):
        choose(home, **chosen)
    assert not settings_file(home).exists()


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


def test_another_log_under_a_base_index_is_refused(home: Home) -> None:
    """A base index counts positions of the log it was built beside, so the log cannot be changed under it."""
    (home.base / "CURRENT").write_text("1")
    with pytest.raises(SettingsError, match="base index"):
        choose(home, log="kafka://broker:9092")
    choose(home, ads_db=MYSQL)


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
