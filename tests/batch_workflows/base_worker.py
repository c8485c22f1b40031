"""Builders as processes of their own, to be killed: HOME ADDRESS, then a seed per line of standard input.

Each is forked from this process, which has imported all and opened nothing. It answers with the builder's pid, and when
that has ended, with the version that it published, or "nothing".
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

import s3fs  # noqa: F401 - imported here once instead of in every builder
import structlog

from batch_workflows.base_index import BuildOptions, Hooks, build_base_index, open_embedded_repo
from batch_workflows.engines import InlineEngine, LocalEngine
from catalog import load_catalog
from messaging import open_embedded_log
from messaging.home import Home


def main() -> None:
    """Start a builder per line."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    for line in sys.stdin:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            os.write(writer, build(int(line)).encode())
            os._exit(0)
        os.close(writer)
        print(pid, flush=True)
        with os.fdopen(reader) as answer:
            published = answer.read()
        os.waitpid(pid, 0)
        print(published or "nothing", flush=True)


def build(seed: int) -> str:
    """Build one base, with pauses at which the process may be killed; the seed decides on the engine."""
    home, chance = Home.open(Path(sys.argv[1])), random.Random(seed)
    catalog = load_catalog()
    log, repo = open_embedded_log(home.log, home.wake), open_embedded_repo(home, catalog)
    engine = LocalEngine(2) if chance.random() < 0.3 else InlineEngine()
    report = build_base_index(
        home, catalog, repo, log,
        options=BuildOptions(address=sys.argv[2], shards=2, range_rows=50), engine=engine,
        hooks=Hooks(check=lambda: time.sleep(chance.random() * 0.03)),
    )  # fmt: skip
    engine.close()
    return report.base_version


if __name__ == "__main__":
    main()
