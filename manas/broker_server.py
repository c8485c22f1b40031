"""The broker stage: the service of Manas in front of servers that each have one shard."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import structlog

from manas._relay import Relay
from manas._remote import Address, RemoteShard
from manas._rounds import Round, Shards
from manas._service import THREADS, Service, State
from manas._serving_settings import BrokerSettings
from manas.broker import Broker
from manas.shards import Shard
from messaging.proto import adsindex_pb2 as pb
from messaging.proto import adsindex_pb2_grpc as rpc
from messaging.rpc import start_server
from messaging.stage import StageContext

_LOOK_SECONDS = 0.1
"""Until a shard that was started again is asked again."""
_START_SECONDS = 30.0
"""For all shards to come up; after that the broker answers from those that are there, and says who is missing."""
_WORST_FIRST = ("refused", "starting", "incomplete", "serving")

_log = structlog.get_logger()


def run(context: StageContext, find: Callable[[int], Address | None]) -> None:
    """Answer requests from all shards until `context.stop` is set; `find` says where a shard's server is now.

    Searches are refused until all shards have been found once, or some after half a minute. Afterwards a shard that is
    gone makes answers partial, and is asked again once it is back. Keeps nothing: after a crash, start again.
    Raises InvalidSetting.
    """
    settings = BrokerSettings.parse(context.settings)
    count = settings.shards
    shards = [
        RemoteShard(Shard(n, count), context.catalog, partial(find, n), settings.deadline_s) for n in range(count)
    ]
    state, relay = State("looking for the shards"), Relay(shards)
    health, asked = Shards(shards, 1), settings.deadline_s
    with Broker(context.catalog, shards, timeout_s=asked, concurrent=THREADS) as broker:
        service = Service(broker, relay, state, lambda: _health(health, state, asked))
        server, port = start_server(
            lambda s: rpc.add_ManasServicer_to_server(service, s), port=settings.port, threads=THREADS
        )
        try:
            began = time.monotonic()
            while not context.stop.is_set():
                away = _look(shards, context)
                if state.starting and (not away or (len(away) < count and time.monotonic() - began > _START_SECONDS)):
                    state.starting = ""
                    context.ready(port)
                elif state.starting:
                    state.starting = f"looking for shards {', '.join(away)}"
                context.beat()
                context.stop.wait(_LOOK_SECONDS)
        finally:
            relay.close()
            server.stop(grace=1.0).wait()
            health.close()
            for shard in shards:
                shard.close()
            context.metrics.flush(force=True)


def _look(shards: Sequence[RemoteShard], context: StageContext) -> list[str]:
    """Find servers that were started again; return the names of shards that have none."""
    away = []
    for shard in shards:
        known = shard.connected
        if not shard.look():
            away.append(str(shard))
            if known:
                context.metrics.count("shard_lost")
                _log.warning("manas.shard_lost", shard=str(shard))
    context.metrics.gauge("shards_missing", len(away))
    return away


def _health(shards: Shards[RemoteShard], state: State, timeout_s: float) -> pb.HealthReply:
    """Return the worst that a shard says, and what each of them says is wrong."""
    round_ = Round(time.monotonic() + timeout_s)
    found = shards.ask(lambda _, shard: shard.health(), round_)
    problems = [f"shard {name}: {why}" for name, why in shards.named(round_.missing).items()]
    problems += [f"shard {one['shard']}: {one['problem']}" for _, one in sorted(found.items()) if one["problem"]]
    statuses = {one["status"] for one in found.values()} | ({"incomplete"} if round_.missing else set())
    if len(found) < len(shards) or statuses != {"refused"}:  # one that refuses makes answers partial, no more
        statuses = {"incomplete" if status in ("refused", "starting") else status for status in statuses}
    worst = next((status for status in _WORST_FIRST if status in statuses), "refused")
    bases = sorted({one["base_version"] for one in found.values()})
    checked = {one["verification"] for one in found.values()}
    verification = next((v for v in ("corrupt", "verifying", "verified") if v in checked), "")
    return pb.HealthReply(
        status="starting" if state.starting else worst,
        problem="; ".join(([state.starting] if state.starting else []) + problems),
        base_version=", ".join(bases),
        shard=f"all/{len(shards)}",
        verification=verification,
    )
