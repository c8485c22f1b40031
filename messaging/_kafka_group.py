"""Membership of a Kafka group: joined in the background, so that it does not depend on how anybody polls."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping

from kafka import errors
from kafka.consumer.subscription_state import SubscriptionState
from kafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from kafka.coordinator.consumer import ConsumerCoordinator
from kafka.future import Future
from kafka.structs import OffsetAndMetadata, TopicPartition

from messaging._exceptions import LogError, LogUnavailable
from messaging._kafka_wire import Wire
from messaging.kafka_settings import KafkaSettings

_HEARTBEATS = 4
"""Heartbeats per session time-out: three may be lost."""
_REBALANCE_MS = 300_000
"""A member that neither polls nor commits for this long is hung: the group goes on without it (Kafka's default)."""
_METADATA_MS = 5_000
_LOST = (
    errors.CommitFailedError,
    errors.UnknownMemberIdError,
    errors.IllegalGenerationError,
    errors.FencedInstanceIdError,
    errors.RebalanceInProgressError,
)


class Expelled(Exception):
    """The group goes on without this member: what it did not commit is others' now."""


class GroupMember:
    """One member of one group; use it from one thread, commit() from any.

    kafka-python's coordinator joins inside of its poll() only: a join that ends between two polls is thrown away and
    begun anew, and metadata that come during a join make it forget that it has to finish. A thread that polls two
    consumers in turn, each for a moment, may then wait for ever. So a join is a task of the connection's own thread
    here; share() begins it, and sees whether it is done.
    """

    def __init__(self, settings: KafkaSettings, wire: Wire, group: str, topics: Collection[str], member: str) -> None:
        """Prepare; nothing is sent before the first share(). `group` and `topics` are Kafka's names."""
        self._settings, self._wire, self._group = settings, wire, group
        self._topics, self._member = list(topics), member
        self._subscription = SubscriptionState("none")
        self._subscription.subscribe(topics=self._topics)
        self._coordinator: ConsumerCoordinator | None = None
        self._joining: Future | None = None
        self._joined_at = -math.inf

    @property
    def wants_to_share(self) -> bool:
        """The group shares anew, or has to: commit what was polled, then call share()."""
        group = self._coordinator
        return group is None or self._joining is not None or group.generation_if_stable() is None or group.need_rejoin()

    @property
    def in_group(self) -> bool:
        """Whether what was polled may still be committed."""
        group = self._coordinator
        return group is not None and self._joining is None and group.generation_if_stable() is not None

    @property
    def in_session(self) -> bool:
        """Whether the group cannot have missed us yet: it heard of us within session_timeout_ms by our clock. A process
        that was stopped for longer wakes up outside of it, before it can know what the group did meanwhile."""
        group = self._coordinator
        heard = self._joined_at if group is None else max(self._joined_at, group.heartbeat.last_receive)
        return time.monotonic() - heard < self._settings.session_timeout_ms / 1000

    def share(self, wait_s: float) -> int | None:
        """Take part in the group; return its generation if there is one and partitions may be read, None if not yet.

        Begins a join where one is due, which gives up all partitions, and waits up to `wait_s` for it. Raises
        KafkaError for what may pass, and LogError when the group refuses this member.
        """
        group = self._coordinator or self._open()
        try:
            if self._joining is None and self.wants_to_share:
                group.request_rejoin()  # and remember it until it is done, whatever metadata come meanwhile
                self._joining = self._wire.manager.call_soon(self._join)
            if self._joining is not None and not self._joined(self._joining, wait_s):
                return None
            if group.coordinator_unknown() and not group.ensure_coordinator_ready(timeout_ms=max(wait_s, 0.001) * 1000):
                return None
            group.poll_heartbeat()
        except errors.FencedInstanceIdError as error:
            raise LogError(
                f"another process is member {self._member} of group {self._group} now; every worker needs its own "
                "number"
            ) from error
        except errors.RetriableError:
            raise
        except errors.KafkaError as error:
            raise LogError(f"group {self._group} refuses this member: {error}") from error
        generation = group.generation_if_stable()
        return None if generation is None or group.need_rejoin() else int(generation.generation_id)

    def assigned(self) -> list[TopicPartition]:
        """Return the partitions that the group gave us."""
        return list(self._subscription.assigned_partitions())

    def commit(self, offsets: Mapping[TopicPartition, tuple[int, str]]) -> None:
        """Store positions with their metadata. Raises Expelled, and LogUnavailable after publish_timeout_ms."""
        group = self._coordinator
        if group is None:
            return
        stored = {place: OffsetAndMetadata(offset, metadata, -1) for place, (offset, metadata) in offsets.items()}
        try:
            group.commit_offsets_sync(stored, timeout_ms=self._settings.publish_timeout_ms)
        except _LOST as error:
            group.request_rejoin()
            raise Expelled(str(error)) from error
        except errors.KafkaError as error:
            raise LogUnavailable(
                f"cannot store positions of {self._group} at {self._settings.place}: {error}"
            ) from error

    def close(self) -> bool:
        """Leave the group; return whether this ever was in it. A named member is kept by the broker until it is taken
        out (`Admin.leave`) or its session ends. Raises KafkaError."""
        if self._coordinator is None:
            return False
        self._coordinator.close(autocommit=False, timeout_ms=2_000)
        return True

    def _open(self) -> ConsumerCoordinator:
        session = self._settings.session_timeout_ms
        self._coordinator = ConsumerCoordinator(
            self._wire.client,
            self._subscription,
            group_id=self._group,
            group_instance_id=self._member or None,
            assignors=[RoundRobinPartitionAssignor],
            enable_auto_commit=False,
            session_timeout_ms=session,
            heartbeat_interval_ms=session // _HEARTBEATS,
            max_poll_interval_ms=max(_REBALANCE_MS, session),
            request_timeout_ms=10_000,
            retry_backoff_ms=100,
            api_version=self._wire.manager.broker_version,
        )
        return self._coordinator

    async def _join(self) -> None:
        """Join, trying again for as long as it takes. Runs in the connection's thread."""
        group = self._coordinator
        assert group is not None
        # Without the topics' partitions the first to join would share out none, and all would have to join again.
        await self._wire.manager.wait_for(self._wire.manager.cluster.set_topics(self._topics), _METADATA_MS)
        await group.ensure_active_group_async()
        self._joined_at = time.monotonic()

    def _joined(self, joining: Future, wait_s: float) -> bool:
        try:
            self._wire.net.run(self._wire.manager.wait_for, joining, max(wait_s, 0.001) * 1000)
        except errors.KafkaTimeoutError:
            if not joining.is_done:
                return False
        except errors.KafkaError:
            if not joining.is_done:  # the connection is closed
                raise
        self._joining = None
        if joining.failed():
            raise joining.exception
        return True
