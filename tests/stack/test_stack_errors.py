"""What the stack says when it cannot: missing programs, taken ports, servers that do not start."""

from __future__ import annotations

import os
import shutil
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from compose import PortTaken, ServerFailed, ServerMissing, Stack, StackError
from compose import install as installer
from compose import mysql as mysql_module
from compose import mysql8 as mysql8_module
from compose.install import install
from compose.jars import TEMPLATES, fetch_jars, find_java, jars_folder
from compose.process import free_port, is_free
from tests.stack_support import QUICK, temporary_stack, up_or_skip

SMALL_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>t</groupId><artifactId>t</artifactId><version>1</version><packaging>pom</packaging><dependencies>
<dependency><groupId>org.slf4j</groupId><artifactId>slf4j-api</artifactId><version>1.7.36</version></dependency>
</dependencies></project>"""
"""One jar, which Kafka needs too: it is in Maven's own cache already."""


@pytest.fixture
def no_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which nothing is installed: an empty PATH and an empty cache."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.delenv("ADSINDEX_STACK_INSTALL", raising=False)
    monkeypatch.setattr(mysql_module, "_SBIN", str(programs))
    return programs


def program(folder: Path, name: str, script: str) -> None:
    """Put a shell script on the PATH of `no_programs`."""
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


def needs(*programs: str) -> None:
    """Skip where a real program is missing; in CI `up_or_skip` of the other tests fails for the same reason."""
    for name in programs:
        if shutil.which(name) is None:
            pytest.skip(f"no {name}")


def test_without_java_the_error_names_the_package(no_programs: Path, tmp_path: Path) -> None:
    """The sentence has the command that mends it, and nothing was made."""
    with pytest.raises(ServerMissing, match=r"Java 17 .*apt-get install .* default-jre-headless"):
        Stack(tmp_path / "stack").up(["kafka"])
    assert not (tmp_path / "stack").exists()


def test_a_wrong_java_home_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another Java than the one that the user named is not taken silently."""
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(ServerMissing, match=r"JAVA_HOME is .* no bin/java"):
        find_java()


def test_without_maven_the_error_names_the_package(no_programs: Path) -> None:
    """Maven is needed only while the jars are not in the cache."""
    with pytest.raises(ServerMissing, match=r"Maven .*apt-get install .* maven"):
        fetch_jars(TEMPLATES / "kafka.pom.xml")


def test_without_mariadb_the_error_names_the_packages(no_programs: Path, tmp_path: Path) -> None:
    """The sentence has the command that mends it."""
    with pytest.raises(ServerMissing, match=r"mariadbd was not found.*apt-get install .* mariadb-server"):
        Stack(tmp_path / "stack").up(["mysql"])


def test_mysql8_is_for_one_kind_of_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere the error says what to use instead; without a library it names the package; nothing is made."""
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(ServerMissing, match=r"Linux on aarch64; use MariaDB .*--ads-db"):
        Stack(tmp_path / "stack").up(["mysql8"])
    program(tmp_path, "mysqld", "echo 'error while loading shared libraries: libaio.so.1: cannot open' >&2; exit 127")
    with pytest.raises(ServerMissing, match=r"libaio\.so\.1: cannot open; install it: .*install .* libaio1$") as caught:
        mysql8_module._check_runs(tmp_path / "mysqld")
    assert "libaio1" in caught.value.packages
    program(tmp_path, "mysqld", "echo 'Illegal instruction' >&2; exit 132")
    with pytest.raises(ServerFailed, match="does not run on this machine: Illegal instruction"):
        mysql8_module._check_runs(tmp_path / "mysqld")
    assert not (tmp_path / "stack").exists()


def test_what_is_missing_is_installed_only_when_allowed(
    no_programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With permission apt-get gets exactly the packages that the error names; what stays missing is an error."""
    monkeypatch.setattr(installer.os, "geteuid", lambda: 0)
    called = tmp_path / "called"
    program(no_programs, "apt-get", f'echo "$@" >> {called}')
    stack = Stack(tmp_path / "stack")
    with pytest.raises(ServerMissing):
        stack.prepare(["mysql"])
    assert not called.exists()
    monkeypatch.setenv("ADSINDEX_STACK_INSTALL", "1")
    with pytest.raises(ServerMissing, match="mariadbd was not found"):
        stack.prepare(["mysql"])
    update, wanted = called.read_text().splitlines()
    assert update.endswith("update")
    assert wanted.endswith("install --no-install-recommends mariadb-server mariadb-client")


def test_a_failing_apt_get_shows_its_output(no_programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user sees apt's own words."""
    monkeypatch.setattr(installer.os, "geteuid", lambda: 0)
    program(no_programs, "apt-get", "echo 'E: Unable to fetch'; exit 100")
    with pytest.raises(ServerFailed, match=r"update failed \(exit 100\):\nE: Unable to fetch"):
        install(ServerMissing("no x", ("x",)))


def test_only_root_can_install(no_programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are told that they must be root, and apt-get is not called."""
    monkeypatch.setattr(installer.os, "geteuid", lambda: 1000)
    program(no_programs, "apt-get", "exit 1")
    with pytest.raises(ServerMissing, match=r"no x.*only root"):
        install(ServerMissing("no x", ("x",)))


def test_jars_are_fetched_once_by_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that need the same jars at the same time run Maven once; a new pom is another folder."""
    needs("mvn", "java")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pom = tmp_path / "small.pom.xml"
    pom.write_text(SMALL_POM)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(fetch_jars, [pom, pom])
    assert first == second
    assert [jar.name for jar in first] == ["slf4j-api-1.7.36.jar"]
    made = first[0].stat().st_mtime_ns
    monkeypatch.setenv("PATH", "")
    assert fetch_jars(pom)[0].stat().st_mtime_ns == made
    pom.write_text(SMALL_POM + "<!-- other -->")
    with pytest.raises(ServerMissing):
        fetch_jars(pom)


def test_a_failing_fetch_publishes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Maven's words are in the error, half-made folders (also of a killed fetch before) are gone."""
    needs("mvn", "java")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pom = tmp_path / "broken.pom.xml"
    pom.write_text("<project>")
    folder = jars_folder(pom)
    folder.with_name(f"{folder.name}.part-killed").mkdir(parents=True)
    with pytest.raises(ServerFailed, match=r"fetching jars with Maven failed(.|\n)*ERROR"):
        fetch_jars(pom)
    assert not [entry for entry in (tmp_path / "adsindex").iterdir() if entry.is_dir()]


def test_a_taken_port_is_an_error_that_says_who_has_it(tmp_path: Path) -> None:
    """Clients know the port of a server that ran before: it does not move elsewhere by itself."""
    with temporary_stack() as stack:
        server = up_or_skip(stack, ["mysql"])["mysql"]
        stack.down()
        with (
            socket.create_server(("127.0.0.1", server.port)),
            pytest.raises(PortTaken, match=rf"{server.port}, .* is used by process {os.getpid()} .* remove .*ports"),
        ):
            stack.up(["mysql"])
        (server.log_file.parent / "ports.json").unlink()
        assert stack.up(["mysql"])["mysql"].state == "ready"


@pytest.mark.parametrize(
    "name, option, failing, cause",
    [
        ("mysql", {"no_such_option": "1"}, "making MariaDB's system tables", "unknown variable 'no_such_option=1'"),
        ("kafka", {"log.dirs": "/proc/none"}, "formatting Kafka's storage", "/proc/none"),
        ("kafka", {"num.io.threads": "0"}, "formatting Kafka's storage", "num.io.threads"),
    ],
)
def test_a_server_that_does_not_start_shows_the_cause_and_leaves_nothing(
    name: str, option: dict[str, str], failing: str, cause: str
) -> None:
    """The complaint in the log is in the error, no process is left, and mending the cause is enough."""
    with temporary_stack({name: option}) as stack:
        with pytest.raises(ServerFailed) as failed:
            up_or_skip(stack, [name])
        assert str(failed.value).startswith(failing)
        assert cause in str(failed.value)
        assert stack.status()[name].pid == 0


def test_a_server_that_ends_while_starting_can_be_mended(own_stack: Stack) -> None:
    """A damaged data directory: the server's complaint is in the error; with the file back it starts."""
    server = up_or_skip(own_stack, ["mysql"])["mysql"]
    own_stack.down()
    control = server.log_file.parent / "data" / "aria_log_control"
    saved = control.read_bytes()
    control.write_bytes(b"damaged")
    with pytest.raises(ServerFailed, match=r"(?s)mysql ended while starting.*aria_log_control.*Aborting"):
        own_stack.up(["mysql"])
    failed = own_stack.status()["mysql"]
    assert (failed.state, failed.pid) == ("dead", 0)
    assert is_free(server.port)
    control.write_bytes(saved)
    assert own_stack.up(["mysql"])["mysql"].url == server.url


def test_a_port_taken_between_choice_and_start_is_chosen_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the first start nobody knows the port yet: answers of a MySQL that was quicker are not taken for ours."""
    with temporary_stack() as first, temporary_stack() as second:
        quicker = up_or_skip(first, ["mysql"])["mysql"]
        choices = iter([quicker.port, free_port()])
        monkeypatch.setattr("compose.process.free_port", lambda: next(choices))
        server = second.up(["mysql"])["mysql"]
        assert server.state == "ready"
        assert server.port != quicker.port


def test_unknown_names_and_unusable_directories_are_refused(tmp_path: Path) -> None:
    """A wrong name lists the right ones; a path that a configuration file would misread is not tried."""
    with pytest.raises(StackError, match="no server 'oracle'; there are mysql, kafka, mysql8, s3"):
        Stack(tmp_path).up(["oracle"])
    with pytest.raises(StackError, match="no server 'oracle'"):
        Stack(tmp_path, overrides={"oracle": {}})
    with pytest.raises(StackError, match="cannot hold a server: its path has ' ' ',', which mysql would misread"):
        up_or_skip(Stack(tmp_path / "a, b"), ["mysql"])


def test_a_deep_directory_with_unicode_is_fine(tmp_path: Path) -> None:
    """A home may be deeper than the 107 characters of a socket's path, and be called anything in any language."""
    stack = Stack(tmp_path / "Größeres" / ("d" * 100), overrides=QUICK)
    try:
        up_or_skip(stack, ["mysql", "kafka"])
        stack.restart("kafka")
        assert {server.state for server in stack.status(["mysql", "kafka"]).values()} == {"ready"}
    finally:
        stack.down()
