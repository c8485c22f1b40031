"""Objects in a directory and on a real S3 server: the same behaviour, whole or not at all, patient and plain-spoken."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from batch_workflows import objects as objects_module
from batch_workflows._objects_errors import BadAddress, ObjectMissing, ObjectsDenied, ObjectsUnavailable
from batch_workflows.objects import PART_BYTES, Address, Objects
from compose import ServerInfo, Stack
from tests.batch_workflows.s3_support import account, new_bucket, s3
from tests.stack_support import up_or_skip
from tests.storage_repo.tso_wire import wire_to
from tests.support import ROOT

__all__ = ["account", "s3"]

MULTIPART = 2 * PART_BYTES + 12_345


@pytest.fixture(params=["directory", "s3"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    """Objects below an empty address of each kind."""
    if request.param == "directory":
        return Objects(tmp_path / "objects")
    return Objects(request.getfixturevalue("s3"))


def test_an_object_is_read_as_it_was_written_last(objects: Objects) -> None:
    """Names with directories, empty contents, replacing, listing by prefix, removing."""
    assert (objects.names(), objects.directories(), objects.has("a")) == ({}, [], False)
    objects.write("a", b"1")
    objects.write("deep/er/b", b"")
    objects.write("deep/c", b"old")
    objects.write("deep/c", b"newer", durable=False)
    assert objects.names() == {"a": 1, "deep/c": 5, "deep/er/b": 0}
    assert objects.names("deep/er") == {"deep/er/b": 0}
    assert objects.directories() == ["deep"]
    assert (objects.read("deep/c"), objects.read("deep/er/b")) == (b"newer", b"")
    assert b"".join(objects.chunks("deep/c")) == b"newer"
    assert objects.below("deep").read("c") == b"newer"
    assert objects.has("deep/c")
    objects.delete("a")
    objects.delete("a")
    assert objects.remove("deep") == 2
    assert objects.remove("deep") == 0
    assert objects.names() == {}
    for read in (objects.read, lambda name: list(objects.chunks(name)), lambda name: objects.get(name, Path("x"))):
        with pytest.raises(ObjectMissing, match=r"gone: not found"):
            read("gone")


def test_a_large_file_goes_up_and_comes_down_in_parts(objects: Objects, tmp_path: Path) -> None:
    """What comes down is what went up; on S3 the object was made of several parts."""
    file = tmp_path / "large"
    file.write_bytes(os.urandom(1 << 20) * (MULTIPART // (1 << 20)) + b"tail")
    objects.put(file, "x/large")
    objects.get("x/large", tmp_path / "down" / "large")
    assert (tmp_path / "down" / "large").read_bytes() == file.read_bytes()
    assert b"".join(objects.chunks("x/large")) == file.read_bytes()
    if objects.local is None:
        tag = str(objects._fs.info(f"{objects.address.path}/x/large")["ETag"])
        assert tag.strip('"').endswith("-3"), f"{tag} is not that of an object of three parts"


def test_nothing_of_an_interrupted_upload_is_visible(s3: Address, tmp_path: Path) -> None:
    """An uploader is killed while parts are on their way: no object; its parts are found and freed, others' stay."""
    objects, others = Objects(s3), Objects(Address("s3", f"{s3.path}-not", s3.endpoint))
    file = tmp_path / "huge"
    with file.open("wb") as handle:
        handle.truncate(24 * PART_BYTES)
    started = []
    try:
        for place in (objects, others):
            code = (
                "from pathlib import Path; from batch_workflows.objects import Objects; "
                f"Objects({str(place.address)!r}).put(Path({str(file)!r}), 'v1/huge')"
            )
            started.append(subprocess.Popen([sys.executable, "-c", code], cwd=ROOT))
        bucket, deadline = s3.path.partition("/")[0], time.monotonic() + 120
        while len(objects._fs.list_multipart_uploads(bucket)) < 2:
            assert time.monotonic() < deadline, "no upload began"
            assert all(process.poll() is None for process in started), "an upload was too quick to be interrupted"
            time.sleep(0.01)
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert (objects.names(), others.names()) == ({}, {})
    assert objects.abort_uploads() == 1
    (left,) = objects._fs.list_multipart_uploads(bucket)
    assert left["Key"].startswith("bases/ads-not/")
    assert others.abort_uploads("v1") == 1


def test_what_a_killed_writer_left_in_a_directory_is_no_object(tmp_path: Path) -> None:
    """Files are written beside and renamed; what lies beside is not listed and is freed."""
    objects = Objects(tmp_path)
    objects.write("v/whole", b"1")
    (tmp_path / "v" / ".part-of-a-killed-writer").write_bytes(b"half")
    assert objects.names() == {"v/whole": 1}
    assert objects.abort_uploads() == 1
    assert [p.name for p in (tmp_path / "v").iterdir()] == ["whole"]


def test_a_server_that_does_not_answer_for_a_while_is_waited_for(
    own_stack: Stack, account: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped and continued, it costs time only; stopped for longer than patience lasts, the error says what to do."""
    server = up_or_skip(own_stack, ["s3"])["s3"]
    address = new_bucket(server)
    Objects(address).write("before", b"1")
    os.kill(server.pid, signal.SIGSTOP)
    try:
        with pytest.raises(ObjectsUnavailable, match=r"s3://.*reading before: no answer for \d+ s \(.*endpoint"):
            Objects(address, patience_s=1.0).read("before")
        file = tmp_path / "large"
        with file.open("wb") as handle:
            handle.truncate(MULTIPART)
        monkeypatch.setattr(objects_module, "SLOWEST_BYTES_PER_SECOND", 64 << 20)
        with pytest.raises(ObjectsUnavailable, match="writing never: no answer for"):
            Objects(address, patience_s=1.0).write("never", b"1")
        with pytest.raises(ObjectsUnavailable, match="writing never: no answer for"):
            Objects(address, patience_s=1.0).put(file, "never")
        waking = threading.Timer(2.0, os.kill, (server.pid, signal.SIGCONT))
        waking.start()
        Objects(address, patience_s=30.0).write("meanwhile", b"2")
        waking.join()
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert Objects(address).names() == {"before": 1, "meanwhile": 1}
    own_stack.kill("s3")
    with pytest.raises(ObjectsUnavailable, match="writing after: no answer for"):
        Objects(address, patience_s=1.0).write("after", b"3")


def test_a_request_that_is_lost_is_sent_again(s3_server: ServerInfo, account: None) -> None:
    """A connection on which nothing arrives costs a part of the patience, not all of it."""
    address = new_bucket(s3_server)
    port = urlsplit(s3_server.url).port
    assert port is not None
    with wire_to(port) as wire:
        objects = Objects(replace(address, endpoint=f"http://127.0.0.1:{wire.port}"), patience_s=9.0)
        objects.write("a", b"1")
        wire.freeze_next()
        assert objects.read("a") == b"1"


def test_missing_credentials_and_bucket_are_said_at_once(
    s3_server: ServerInfo, account: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither is retried: waiting would not help."""
    started = time.monotonic()
    nowhere = Objects(f"s3://no-such-bucket-{os.getpid()}/x?endpoint={s3_server.url}")
    with pytest.raises(ObjectMissing, match="bucket"):
        nowhere.write("a", b"1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    with pytest.raises(ObjectsDenied, match="AWS_ACCESS_KEY_ID"):
        Objects(f"s3://any/x?endpoint={s3_server.url}").read("a")
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ftp://host/x", "an address is a directory, or s3://"),
        ("s3:///prefix", "name a bucket"),
        ("s3://key:secret@bucket/x", "no credentials"),
        ("s3://bucket/x?region=eu", "region is unknown"),
        ("s3://bucket/x?patience_s=0", "patience_s must be whole seconds"),
        ("s3://bucket/x?patience_s=soon", "patience_s must be whole seconds"),
        ("s3://bucket/x?endpoint=host:9000", "endpoint must be http://"),
        ("file://host/x", "an address is a directory"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(text: str, said: str) -> None:
    """The sentence says what would do, and never repeats a secret."""
    with pytest.raises(BadAddress, match=said) as refused:
        Objects(text)
    assert "secret" not in str(refused.value)


def test_an_address_is_read_as_it_is_written(tmp_path: Path) -> None:
    """What `str` gives is what `parse` takes; a directory may be given as a path or a URL."""
    for text in (
        "s3://bucket", "s3://bucket/a/b", "s3://bucket/a?endpoint=http://127.0.0.1:9000", "s3://bucket/a?patience_s=5",
        "s3://bucket/a?endpoint=http://127.0.0.1:9000&patience_s=5", str(tmp_path),
    ):  # fmt: skip
        assert str(Address.parse(text)) == text
    assert Address.parse("s3://bucket/a?patience_s=5").below("b").patience_s == 5
    assert Address.parse(f"file://{tmp_path}") == Address.parse(str(tmp_path))
