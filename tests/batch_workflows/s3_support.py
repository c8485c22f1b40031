"""A bucket of its own on the shared S3 server, for one test."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from batch_workflows.objects import Address, Objects
from compose import ServerInfo

ACCOUNT = {
    "AWS_ACCESS_KEY_ID": "adsindex",
    "AWS_SECRET_ACCESS_KEY": "adsindex-on-loopback",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""The server takes any; the client insists on having one."""


def new_bucket(server: ServerInfo) -> Address:
    """Make a bucket and return an address below it."""
    bucket = f"b-{uuid.uuid4().hex[:12]}"
    address = Address.parse(f"s3://{bucket}/bases/ads?endpoint={server.url}")
    Objects(address)._fs.mkdir(bucket)
    return address


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials in the environment, as all of S3's tools expect them."""
    for name, value in ACCOUNT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def s3(s3_server: ServerInfo, account: None) -> Iterator[Address]:
    """An address on a real S3 server."""
    yield new_bucket(s3_server)
