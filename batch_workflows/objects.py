"""Objects: immutable files below one address, in a directory or on S3, by fsspec.

An object becomes visible whole or not at all: in a directory by a rename, on S3 by the one request that completes it.
A part of an upload that was interrupted is never visible; `abort_uploads` frees what it occupies.
Requests that fail because the store does not answer are repeated for `patience_s`; then ObjectsUnavailable says so.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import fsspec
import structlog

from batch_workflows._objects_errors import BadAddress, ObjectMissing, ObjectsDenied, ObjectsUnavailable

PATIENCE_SECONDS = 60.0
"""How long a store may not answer: longer than a failover or a restart, shorter than anybody wants to wait unasked."""
MAX_PATIENCE_SECONDS = 3_600
PART_BYTES = 16 << 20
"""Files of more than two parts go up and come down in parts, four at once: 64 MiB of memory."""
SLOWEST_BYTES_PER_SECOND = 256 << 10
"""A transfer slower than this for its whole length is as good as none."""
_PARTS_AT_ONCE = 4
_TRIES = 2
"""Of one request within s3fs, so that one lost part of a large file is no reason to send all of it again; `_patiently`
then asks again from the start."""
_CONNECT_SECONDS, _READ_SECONDS = 5.0, 20.0
_LOST = 1 / 3
"""Of the patience: a request without answer for so long is taken for lost, so that there is time to ask again."""
_PART_NAME = ".part-"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Address:
    """Where objects are. Credentials are never part of it: S3's come from the environment, as for all of its tools."""

    scheme: str
    path: str
    """Directory, or bucket/prefix."""
    endpoint: str = ""
    """Of an S3 server that is not Amazon's."""
    patience_s: float = PATIENCE_SECONDS
    """How long it may not answer."""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read `s3://BUCKET[/PREFIX][?endpoint=URL&patience_s=N]`, `file:///DIRECTORY` or a path. Raises BadAddress."""
        if "://" not in text:
            return cls("file", str(Path(text).expanduser().resolve()))
        parts = urlsplit(text)
        query = parse_qs(parts.query, keep_blank_values=True)
        if parts.scheme == "file" and not parts.netloc and parts.path and not query:
            return cls("file", str(Path(parts.path).resolve()))
        if parts.scheme != "s3":
            raise BadAddress(f"{text}: an address is a directory, or s3://BUCKET/PREFIX, if need be with ?endpoint=URL")
        if not parts.hostname or parts.username is not None or not re.fullmatch(r"[\w.-]+", parts.netloc):
            raise BadAddress(f"s3://{parts.path}: name a bucket and no credentials; those come from the environment")
        if unknown := query.keys() - {"endpoint", "patience_s"}:
            raise BadAddress(
                f"{text}: {', '.join(sorted(unknown))} is unknown; there are endpoint=URL and patience_s=N"
            )
        endpoint = query.get("endpoint", [""])[-1]
        if "endpoint" in query and urlsplit(endpoint).scheme not in ("http", "https"):
            raise BadAddress(f"{text}: endpoint must be http://HOST:PORT or https://HOST")
        patience = query.get("patience_s", [f"{PATIENCE_SECONDS:g}"])[-1]
        if not patience.isdecimal() or not 1 <= int(patience) <= MAX_PATIENCE_SECONDS:
            raise BadAddress(f"{text}: patience_s must be whole seconds, 1 to {MAX_PATIENCE_SECONDS}")
        return cls("s3", f"{parts.netloc}/{parts.path.strip('/')}".rstrip("/"), endpoint, float(patience))

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        if self.scheme == "file":
            return self.path
        options = {"endpoint": self.endpoint} if self.endpoint else {}
        if self.patience_s != PATIENCE_SECONDS:
            options["patience_s"] = f"{self.patience_s:g}"
        return f"s3://{self.path}" + "".join(
            f"{'&' if place else '?'}{name}={value}" for place, (name, value) in enumerate(options.items())
        )

    def below(self, name: str) -> Address:
        """Return the address of what is below."""
        return replace(self, path=f"{self.path}/{name}")


class Objects:
    """Objects below one address, by names with slashes. Opening it asks nothing yet; safe for threads."""

    def __init__(self, address: str | Path | Address, *, patience_s: float | None = None) -> None:
        """`patience_s`: instead of the address's. Raises BadAddress."""
        self.address = address if isinstance(address, Address) else Address.parse(str(address))
        self._patience_s = self.address.patience_s if patience_s is None else patience_s
        self.local = Path(self.address.path) if self.address.scheme == "file" else None
        """The directory, where it is one of this machine."""
        self._fs: Any = (
            _s3(self.address.endpoint, self._patience_s) if self.local is None else fsspec.filesystem("file")
        )

    def below(self, name: str) -> Objects:
        """Return the objects below a name."""
        return Objects(self.address.below(name), patience_s=self._patience_s)

    def names(self, prefix: str = "") -> dict[str, int]:
        """Return name -> bytes of every object whose path begins with the directory `prefix`, in order."""
        root = self._path(prefix) if prefix else self.address.path
        found: dict[str, Any] = self._patiently(
            f"listing {prefix or 'all'}", lambda: self._ask("find", root, detail=True), missing={}
        )
        skip = len(self.address.path) + 1
        return {path[skip:]: int(info["size"]) for path, info in sorted(found.items()) if _PART_NAME not in path}

    def directories(self) -> list[str]:
        """Return the names right below that have objects below them, in order."""
        found: list[dict[str, Any]] = self._patiently(
            "listing", lambda: self._ask("ls", self.address.path, detail=True), missing=[]
        )
        return sorted(info["name"].rstrip("/").rpartition("/")[2] for info in found if info["type"] == "directory")

    def has(self, name: str) -> bool:
        """Say whether there is an object of that name."""
        return bool(self._patiently(f"looking for {name}", lambda: self._ask("exists", self._path(name))))

    def read(self, name: str) -> bytes:
        """Return the contents of an object. Raises ObjectMissing."""
        data: bytes = self._patiently(f"reading {name}", lambda: self._ask("cat_file", self._path(name)))
        return data

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield the contents of an object in parts. Raises ObjectMissing."""
        size = int(self._patiently(f"reading {name}", lambda: self._ask("info", self._path(name)))["size"])
        for start in range(0, size, PART_BYTES):
            end = min(size, start + PART_BYTES)
            part = partial(self._ask, "cat_file", self._path(name), start=start, end=end)
            yield self._patiently(f"reading {name}", part)

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Make an object, or replace it, in one step; with `durable`, also a power cut leaves it when this returns."""
        if self.local is None:
            self._patiently(f"writing {name}", lambda: self._ask("pipe_file", self._path(name), data, size=len(data)))
            return
        with _beside(self.local / name, durable) as part, part.open("wb") as handle:
            handle.write(data)
            if durable:
                handle.flush()
                os.fsync(handle.fileno())

    def put(self, file: Path, name: str) -> None:
        """Bring a file up, in parts if it is large; it becomes visible when all of it is there."""
        if self.local is None:
            size = file.stat().st_size
            if (
                size <= PART_BYTES
            ):  # from memory: with a file botocore asks first whether it may send, a second at worst
                return self.write(name, file.read_bytes())
            self._patiently(
                f"writing {name}",
                lambda: self._ask("put_file", str(file), self._path(name), size=size, chunksize=PART_BYTES),
            )
            return
        with _beside(self.local / name, True) as part, file.open("rb") as source, part.open("wb") as handle:
            shutil.copyfileobj(source, handle, PART_BYTES)
            handle.flush()
            os.fsync(handle.fileno())

    def get(self, name: str, file: Path, size: int = 0) -> None:
        """Bring an object of about `size` bytes (0: as it says) down, in parts if it is large. Raises ObjectMissing.

        After any error a partial file may stay.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        if not size and self.local is None:
            size = int(self._patiently(f"reading {name}", lambda: self._ask("info", self._path(name)))["size"])
        self._patiently(f"reading {name}", lambda: self._ask("get_file", self._path(name), str(file), size=size))

    def delete(self, name: str) -> None:
        """Remove one object; none is fine."""
        self._patiently(f"removing {name}", lambda: self._ask("rm_file", self._path(name)), missing=None)

    def remove(self, prefix: str) -> int:
        """Remove every object below the directory `prefix`, and return how many; none is fine."""
        names = list(self.names(prefix))
        if self.local is not None:
            shutil.rmtree(self.local / prefix, ignore_errors=True)
        elif names:
            self._patiently(f"removing {prefix}", lambda: self._ask("rm", [self._path(name) for name in names]))
        return len(names)

    def abort_uploads(self, prefix: str = "", *, of: Callable[[str], bool] = lambda _name: True) -> int:
        """Free what interrupted uploads below a name occupy, and return how many; only for who alone uploads there.

        `of` says of a name, counted from that place, whether its uploads are the caller's.
        """
        if self.local is not None:
            place = self.local / prefix
            left = [p for p in place.rglob(f"{_PART_NAME}*") if p.is_file() and of(str(p.relative_to(place)))]
            for part in left:
                part.unlink(missing_ok=True)
            return len(left)
        bucket, _, root = self.address.path.partition("/")
        below = "/".join(part for part in (root, prefix) if part)
        uploads: list[dict[str, Any]] = self._patiently(
            "listing uploads", lambda: self._ask("list_multipart_uploads", bucket), missing=[]
        )
        start = f"{below}/" if below else ""
        mine = [u for u in uploads if u["Key"].startswith(start) and of(u["Key"].removeprefix(start))]
        for upload in mine:
            self._patiently(
                f"aborting the upload of {upload['Key']}",
                partial(self._ask, "abort_mpu", bucket, upload["Key"], upload["UploadId"]),
                missing=None,
            )
        return len(mine)

    def _path(self, name: str) -> str:
        return f"{self.address.path}/{name}"

    def _ask(self, method: str, *arguments: Any, size: int = 0, **options: Any) -> Any:
        """Call a method of the file system. One on S3 that takes too long for `size` bytes is cancelled: TimeoutError.

        The client's own time-outs do not count while it sends: a server that has stopped reading would be waited for
        without end.
        """
        if self.local is not None:
            return getattr(self._fs, method)(*arguments, **options)
        limit = max(_TRIES * _LOST * self._patience_s, 1.0) + size / SLOWEST_BYTES_PER_SECOND
        asked = asyncio.wait_for(getattr(self._fs, f"_{method}")(*arguments, **options), limit)
        return asyncio.run_coroutine_threadsafe(asked, self._fs.loop).result()

    def _patiently(self, what: str, act: Callable[[], T], **missing: T) -> T:
        """Act until the store has answered. Raises ObjectMissing (or returns `missing`), and other ObjectsErrors."""
        started, wait = time.monotonic(), 0.5
        while True:
            try:
                return act()
            except FileNotFoundError as error:
                if "missing" in missing:
                    return missing["missing"]
                raise ObjectMissing(f"{self.address}: {what}: not found ({error})") from error
            except PermissionError as error:
                raise ObjectsDenied(f"{self.address}: {what}: refused ({error}); {_ACCESS}") from error
            except Exception as error:
                if self.local is not None:
                    raise
                if (reason := _why_away(error)) is None:
                    raise
                if reason == _NO_CREDENTIALS:
                    raise ObjectsDenied(f"{self.address}: {what}: {error}; {_ACCESS}") from error
                if (waited := time.monotonic() - started) + wait > self._patience_s:
                    raise ObjectsUnavailable(
                        f"{self.address}: {what}: no answer for {waited:.0f} s ({reason}); see that the "
                        "server runs and the endpoint is right, then run it again"
                    ) from error
                structlog.get_logger().warning("objects.retry", address=str(self.address), what=what, error=reason)
                time.sleep(wait)
                wait = min(2 * wait, 8.0)


_ACCESS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE) to an account that may use it"
_NO_CREDENTIALS = "no credentials"


@contextmanager
def _beside(target: Path, durable: bool) -> Iterator[Path]:
    """Give a file beside the target that takes its place when the block ends well, and is gone otherwise."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{_PART_NAME}{uuid.uuid4().hex}")
    try:
        yield part
        part.replace(target)
    except OSError as error:
        if error.filename is None:  # of a write: the disk is full, for example
            error.filename = str(target)
        raise
    finally:
        part.unlink(missing_ok=True)
    if not durable:
        return
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _s3(endpoint: str, patience_s: float) -> Any:
    import s3fs  # takes a second to import, and only S3 needs it

    fs = s3fs.S3FileSystem(
        endpoint_url=endpoint or None,
        default_block_size=PART_BYTES,
        max_concurrency=_PARTS_AT_ONCE,
        use_listings_cache=False,  # other processes write there
        skip_instance_cache=True,
        config_kwargs={
            "connect_timeout": min(_CONNECT_SECONDS, _LOST * patience_s),
            "read_timeout": min(_READ_SECONDS, _LOST * patience_s),
            "retries": {"max_attempts": 1},
        },
    )
    fs.retries = _TRIES
    return fs


def _why_away(error: Exception) -> str | None:
    """Return why the store did not answer, None for an error that asking again will not mend."""
    import aiohttp
    from botocore import exceptions as boto

    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        return _NO_CREDENTIALS
    away = (boto.HTTPClientError, boto.ConnectionError, aiohttp.ClientError, TimeoutError, ConnectionError)
    if isinstance(error, away):
        return f"{type(error).__name__}: {error}"
    if isinstance(error, boto.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return str(error) if status >= 500 or status == 429 else None
    cause = error.__cause__
    return _why_away(cause) if isinstance(cause, Exception) else None
