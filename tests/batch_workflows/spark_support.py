"""Spark for tests: an optional extra of half a gigabyte, in an environment of its own (see tests/run.py)."""

from __future__ import annotations

import importlib.util
import shutil
import warnings

import pytest

from tests.support import IN_CI


def require_spark() -> None:
    """Skip loudly where pyspark or Java is missing; in CI, where both are to be there, fail."""
    if importlib.util.find_spec("pyspark") is not None and shutil.which("java") is not None:
        return
    text = "no Spark: it needs Java 17 and pyspark; ./adsindex test --spark installs pyspark and runs these tests"
    if IN_CI:
        pytest.fail(text)
    warnings.warn(text, stacklevel=2)
    pytest.skip(text)
