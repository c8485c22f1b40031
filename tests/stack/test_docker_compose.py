"""The docker compose file, as far as it can be checked without Docker: pins, health checks, loopback, references."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path
from string import Template
from typing import Any

import pytest
import typer
import yaml
from typer.main import get_command

from cli.main import app
from cli.settings import Settings
from compose.hbase import HBaseJvm, HBaseServer, Thrift2Server, ThriftServer
from compose.jars import TEMPLATES
from compose.omid import CONFLICT_MAP_SIZE, LEASE_MS, OmidServer
from compose.omid import TABLES as OMID_TABLES
from storage_repo.hbase import HbaseAddress
from tests.support import ROOT

COMPOSE = ROOT / "compose"
FILE = COMPOSE / "docker-compose.yml"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(FILE.read_text())["services"]
DOCKERFILES = sorted((COMPOSE / "docker").glob("*.Dockerfile"))
PINNED = re.compile(r"[\w./-]+:(?=[\w.-]*\d)[\w.-]*\d[\w.-]*")
"""A name and a tag with a digit in it: `latest`, `slim` and no tag at all move."""


def test_the_whole_stack_is_there() -> None:
    """Every server that the service can use, and the service itself."""
    assert set(SERVICES) == {
        "mysql", "kafka", "hbase", "hbase-thrift", "hbase-thrift2", "omid", "s3", "prometheus", "adsindex",
    }  # fmt: skip


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned(name: str) -> None:
    """No tag that means something else tomorrow."""
    assert PINNED.fullmatch(SERVICES[name]["image"])


@pytest.mark.parametrize("image", ["mysql", "mysql:latest", "a/b:slim", "a/b:"])
def test_moving_tags_are_seen(image: str) -> None:
    """The check above can fail."""
    assert not PINNED.fullmatch(image)


@pytest.mark.parametrize("name", SERVICES)
def test_services_have_a_health_check_and_come_back(name: str) -> None:
    """Each says when it is ready and how long that may take, and is started again after a crash."""
    check = SERVICES[name]["healthcheck"]
    assert check["test"][0] == "CMD"
    assert {"interval", "timeout", "retries", "start_period"} <= set(check)
    assert SERVICES[name]["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_on_loopback(name: str) -> None:
    """Published ports name 127.0.0.1; in the host's network the program itself must bind it."""
    service = SERVICES[name]
    for port in service.get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port)
    if service.get("network_mode") == "host":
        assert "ports" not in service
        assert name == "adsindex" or "--web.listen-address=127.0.0.1:9091" in service["command"]


def test_ports_are_used_once() -> None:
    """Two services cannot have the same port of the host; those in its network count too."""
    ports = [port.split(":")[1] for service in SERVICES.values() for port in service.get("ports", [])]
    ports += ["9091", SERVICES["adsindex"]["environment"]["ADSINDEX_PORT"]]
    assert len(ports) == len(set(ports))


def test_what_a_service_waits_for_exists_and_is_healthy_first() -> None:
    """Dependencies and shared networks name services of this file."""
    for service in SERVICES.values():
        for other, how in service.get("depends_on", {}).items():
            assert other in SERVICES
            assert how == {"condition": "service_healthy"}
        if (mode := service.get("network_mode", "host")) != "host":
            assert mode.removeprefix("service:") in service["depends_on"]


def test_files_and_volumes_that_are_mounted_exist() -> None:
    """A typing error in a path would make Docker mount an empty directory."""
    volumes = set(yaml.safe_load(FILE.read_text())["volumes"])
    used = set()
    for service in SERVICES.values():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            if source.startswith("."):
                assert (COMPOSE / source).is_file()
            else:
                used.add(source)
        if build := service.get("build"):
            assert (COMPOSE / build["context"] / build["dockerfile"]).is_file()
    assert used == volumes


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda file: file.name)
def test_dockerfiles_are_pinned_and_copy_what_is_there(dockerfile: Path) -> None:
    """Base images have versions; every copied file exists; nothing runs as root."""
    text = dockerfile.read_text()
    for image in re.findall(r"^FROM (\S+)", text, re.MULTILINE):
        assert PINNED.fullmatch(image)
    contexts = [
        (COMPOSE / service["build"]["context"])
        for service in SERVICES.values()
        if service.get("build", {}).get("dockerfile", "").endswith(dockerfile.name)
    ]
    assert contexts
    for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE):
        *sources, _ = [word for word in line.split() if not word.startswith("--")]
        for source in sources:
            assert (contexts[0] / source).exists()
    assert re.search(r"^USER (?!root)", text, re.MULTILINE)


def test_the_broker_is_the_one_without_docker() -> None:
    """Both ways run the same Kafka, with the same refusal to make topics by accident."""
    pom = (TEMPLATES / "kafka.pom.xml").read_text()
    [version] = re.findall(r"<kafka.version>(.+)</kafka.version>", pom)
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{version}"
    settings = dict(
        line.split("=", 1) for line in (TEMPLATES / "server.properties").read_text().splitlines() if line[:1].isalpha()
    )
    environment = SERVICES["kafka"]["environment"]
    for key in (
        "auto.create.topics.enable",
        "offsets.topic.replication.factor",
        "offsets.retention.minutes",  # without it `topics apply`, which the service begins with, has something to say
        "group.initial.rebalance.delay.ms",
    ):
        assert environment[f"KAFKA_{key.upper().replace('.', '_')}"] == settings[key]


def test_the_database_is_set_up_as_without_docker() -> None:
    """Row binlog, full image, full metadata, and the same accounts and database."""
    without = (TEMPLATES / "my.cnf").read_text()
    options = dict(re.findall(r"^([a-z][\w-]+)=(.+)$", without, re.MULTILINE))
    given = dict(option.removeprefix("--").split("=", 1) for option in SERVICES["mysql"]["command"] if "=" in option)
    for key in ("binlog_format", "binlog_row_image", "binlog_row_metadata", "binlog_checksum"):
        assert given[key.replace("_", "-")] == options[key]
    sql = (COMPOSE / "docker" / "mysql.sql").read_text()
    for right in ("SELECT", "RELOAD", "SHOW DATABASES", "REPLICATION SLAVE", "REPLICATION CLIENT"):
        assert right in sql
    assert SERVICES["adsindex"]["environment"]["ADSINDEX_ADS_DB"].endswith("adsindex:adsindex@127.0.0.1:3306/ads")


def test_hbase_publishes_the_ports_that_its_configuration_has() -> None:
    """The region server tells clients its own port, so the published one must be the same."""
    values = properties(COMPOSE / "docker" / "hbase-site.xml")
    published = {port.split(":")[1] for port in SERVICES["hbase"]["ports"]}
    assert {values["hbase.zookeeper.property.clientPort"], values["hbase.master.port"]} <= published
    assert values["hbase.regionserver.port"] in published
    omid = (COMPOSE / "docker" / "omid-server-configuration.yml").read_text()
    [port] = re.findall(r"^port: (\d+)$", omid, re.MULTILINE)
    assert port in published
    assert port in SERVICES["omid"]["healthcheck"]["test"]


def properties(file: Path) -> dict[str, str]:
    """Return the settings of an hbase-site.xml."""
    return {str(entry.findtext("name")): str(entry.findtext("value")) for entry in ET.parse(file).getroot()}


def test_hbase_and_omid_are_those_without_docker() -> None:
    """Both ways run the same jars, give the WAL proxy the same service, and find the TSO through ZooKeeper."""
    docker = COMPOSE / "docker"
    assert (docker / "hbase.pom.xml").read_bytes() == (TEMPLATES / "hbase.pom.xml").read_bytes()
    site = (TEMPLATES / "hbase-site.xml").read_text().replace("@MORE@", "")
    without = {str(e.findtext("name")): str(e.findtext("value")) for e in ET.fromstring(site.encode())}
    given = properties(docker / "hbase-site.xml")
    same = [
        name for name in without if name.startswith(("replication.", "hbase.serial.", "hbase.thrift.", "hbase.env"))
    ]
    assert len(same) >= 9
    assert {name: given.get(name) for name in same} == {name: without[name] for name in same}

    def tso(file: Path) -> dict[str, str]:
        lines = [line.strip() for line in file.read_text().splitlines()]
        return dict(line.split(": ", 1) for line in lines if not line.startswith("#"))

    own = {"port", "conflictMapSize", "leasePeriodInMs", "zkCluster"}
    docker_tso, tso_without = (tso(folder / "omid-server-configuration.yml") for folder in (docker, TEMPLATES))
    assert {k: v for k, v in docker_tso.items() if k not in own} == {
        k: v for k, v in tso_without.items() if k not in own
    }
    assert docker_tso["leasePeriodInMs"] == str(LEASE_MS)
    assert docker_tso["conflictMapSize"] == str(CONFLICT_MAP_SIZE)


def test_the_service_reaches_hbase_and_hbase_reaches_it() -> None:
    """The Repo's address has the published ports; the WAL proxy is at a name that both networks know."""
    address = HbaseAddress.parse(SERVICES["adsindex"]["environment"]["ADSINDEX_REPO"])
    published = {port.split(":")[1] for port in SERVICES["hbase"]["ports"]}
    assert {str(address.thrift1[1]), str(address.thrift2[1]), address.zookeeper.split(":")[1]} <= published
    host = SERVICES["adsindex"]["environment"]["ADSINDEX_WALPROXY"]
    for service in ("adsindex", "hbase"):
        assert SERVICES[service]["extra_hosts"] == [f"{host}:host-gateway"]
    assert {"hbase-thrift", "hbase-thrift2", "omid"} <= set(SERVICES["adsindex"]["depends_on"])


@pytest.mark.parametrize("version", ["", "2"])
def test_the_thrift_servers_are_published_where_they_listen(version: str) -> None:
    """Each has the main class of its version and its own port, which HBase's service publishes and the check asks."""
    service = SERVICES[f"hbase-thrift{version}"]
    assert service["command"][0] == f"org.apache.hadoop.hbase.thrift{version}.ThriftServer"
    port = service["command"][service["command"].index("-p") + 1]
    assert f"127.0.0.1:{port}:{port}" in SERVICES["hbase"]["ports"]
    assert service["healthcheck"]["test"][-1] == port


@pytest.mark.parametrize("script", ["run", "run-omid", "listens"])
def test_scripts_are_executable_and_parse(script: str) -> None:
    """A script with a syntax error, or without its mode, would be found only in the container."""
    file = COMPOSE / "docker" / script
    assert os.access(file, os.X_OK)
    assert subprocess.run(["/bin/bash", "-n", file], check=False).returncode == 0


def test_the_port_check_sees_a_listener_and_its_absence() -> None:
    """The health check of HBase and Omid: exit 0 only if all ports accept connections."""
    import socket

    listens = COMPOSE / "docker" / "listens"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        assert subprocess.run([listens, port], check=False).returncode == 0
        assert subprocess.run([listens, port, "1"], check=False).returncode == 1
    assert subprocess.run([listens, port], check=False).returncode == 1


def service_commands() -> list[list[str]]:
    """Return the words after `python -m cli.main` of each command of our image, as compose's environment makes them."""
    text = (COMPOSE / "docker" / "service.Dockerfile").read_text()
    [line] = re.findall(r"^CMD (.+)$", text, re.MULTILINE)
    shell = Template(json.loads(line)[2]).substitute(SERVICES["adsindex"]["environment"])
    words = [shlex.split(part) for part in shell.split("&&")]
    return [part[part.index("cli.main") + 1 :] for part in words]


def parsed(words: list[str]) -> dict[str, Any]:
    """Return what the command line understands of words, without doing it. Raises a usage error of Typer."""
    found: Any = get_command(app)
    while hasattr(found, "commands"):
        name, *words = words
        found = found.commands[name]
    parameters: dict[str, Any] = found.make_context(found.name, words).params
    return parameters


def test_the_service_s_commands_parse_and_name_backends_that_can_be() -> None:
    """Topics and tables are made, then the service is started: with options, values and URLs that are taken."""
    commands = service_commands()
    assert [" ".join(words[:2]) for words in commands] == ["topics apply", "repo apply", "up --sample"]
    topics, repo, up = map(parsed, commands)
    chosen = Settings(ads_db=up["ads_db"], log=up["log"], repo=up["repo"], walproxy=up["walproxy"])
    assert (topics["log"], repo["repo"]) == (chosen.log, chosen.repo)
    assert (up["sample"], str(up["port"])) == (0, SERVICES["adsindex"]["environment"]["ADSINDEX_PORT"])
    assert f"127.0.0.1:{up['port']}/health" in SERVICES["adsindex"]["healthcheck"]["test"][-1]


@pytest.mark.parametrize("words", [["up", "--until-busy"], ["up", "--port"], ["up", "--sample", "few"]])
def test_commands_that_nobody_takes_are_seen(words: list[str]) -> None:
    """The check above can fail: an unknown option, a value missing, one of the wrong kind."""
    with pytest.raises(typer.BadParameter.__mro__[1]):
        parsed(words)


@pytest.mark.parametrize(
    ("name", "server"), [("hbase", HBaseServer), ("hbase-thrift", ThriftServer), ("hbase-thrift2", Thrift2Server)]
)
def test_hbase_s_servers_are_started_as_without_docker(name: str, server: type[HBaseJvm], tmp_path: Path) -> None:
    """The same main classes and arguments; only the address is that of the container."""
    command = SERVICES[name]["command"]
    port = command[command.index("-p") + 1] if "-p" in command else ""
    without = [word.replace("127.0.0.1", "0.0.0.0") for word in server(tmp_path).main({"port": int(port or 0)})]
    assert command == without


def test_omid_s_tables_and_server_are_those_without_docker(tmp_path: Path) -> None:
    """The same tools with the same arguments, then the same server."""
    lines = re.findall(r"/opt/hbase/run (.+)$", (COMPOSE / "docker" / "run-omid").read_text(), re.MULTILINE)
    tool = "org.apache.omid.tools.hbase.OmidTableManager"
    without = [" ".join([tool, *arguments]) for arguments in OMID_TABLES]
    assert lines == [*without, " ".join(OmidServer(tmp_path).main({}))]
