"""A real Gateway process for the tests that kill it: python gateway_worker.py HOME [ADS_DB_URL]."""

from __future__ import annotations

import sys
from pathlib import Path

from gateway import stage
from messaging import open_embedded_log
from messaging.home import Home
from tests.gateway.gateway_support import context_of

if __name__ == "__main__":
    home = Home.open(Path(sys.argv[1]))
    with open_embedded_log(home.log, home.wake) as log:
        context = context_of(home, log, lambda port: print("ready", port, flush=True))
        if len(sys.argv) > 2:
            context.settings["ads_db"] = sys.argv[2]
        stage.run(context)
