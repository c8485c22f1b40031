"""Questions and orders to the brokers that are no records: topics, offsets, positions, groups."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from kafka import KafkaAdminClient, errors
from kafka.admin import ConfigResource, ConfigResourceType, MemberToRemove
from kafka.protocol.consumer import OffsetSpec
from kafka.structs import OffsetAndMetadata, TopicPartition

from messaging._exceptions import LogError, LogUnavailable, UnknownTopic
from messaging._limits import check_name, check_position
from messaging.api import Position
from messaging.kafka_settings import KafkaSettings

T = TypeVar("T")

_RETRY_S = 0.1
_NOT_YET = (errors.RetriableError, errors.UnknownBrokerIdError)
"""Passing: a broker that restarts, a leader or coordinator that moves."""
_HELD = (errors.UnknownMemberIdError, errors.IllegalGenerationError, errors.RebalanceInProgressError)


class Admin:
    """One administrative connection, with the topics known so far. Safe for threads."""

    def __init__(self, settings: KafkaSettings, prefix: str) -> None:
        """Connect. Raises LogUnavailable."""
        self._settings, self._prefix = settings, prefix
        self._lock = threading.Lock()
        self._topics: dict[str, int] = {}
        try:
            self._client = KafkaAdminClient(**settings.client("adsindex-admin"))
        except errors.KafkaError as error:
            raise LogUnavailable(f"no Kafka broker answers at {settings.place}: {error}") from error

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def ask(self, what: str, question: Callable[[], T]) -> T:
        """Run a request, again while the failure may pass; LogUnavailable after publish_timeout_ms."""
        deadline = time.monotonic() + self._settings.publish_timeout_ms / 1000
        while True:
            try:
                return question()
            except _NOT_YET as error:
                if time.monotonic() >= deadline:
                    raise LogUnavailable(f"cannot {what} at {self._settings.place}: {error}") from error
                time.sleep(_RETRY_S)
            except errors.KafkaError as error:
                raise LogError(f"cannot {what} at {self._settings.place}: {error}") from error

    # ---- topics ----

    def partitions(self, topic: str) -> int:
        """Return the number of partitions of a topic. Raises UnknownTopic."""
        if count := self._topics.get(topic):
            return count
        found = self.topics()
        if count := found.get(topic):
            return count
        raise UnknownTopic(
            f"there is no topic {topic!r} at {self._settings.place} (it has {', '.join(sorted(found)) or 'none'}); "
            "create the topics by `./adsindex topics apply`"
        )

    def check_partition(self, topic: str, partition: int) -> TopicPartition:
        """Return Kafka's name of a partition. Raises UnknownTopic when there is none."""
        count = self.partitions(topic)
        if not 0 <= partition < count:
            raise UnknownTopic(f"{topic} has partitions 0 to {count - 1}, there is no {partition}")
        return TopicPartition(self._prefix + topic, partition)

    def all_partitions(self, topic: str) -> list[TopicPartition]:
        """Return Kafka's names of all partitions of a topic. Raises UnknownTopic."""
        return [TopicPartition(self._prefix + topic, partition) for partition in range(self.partitions(topic))]

    def topics(self) -> dict[str, int]:
        """Return topic -> partitions of all topics with our prefix, leaving out Kafka's own."""
        described = self.ask("list topics", self._client.describe_topics)
        found = {
            topic["name"][len(self._prefix) :]: len(topic["partitions"])
            for topic in described
            if topic["name"].startswith(self._prefix) and not topic["name"].startswith("__") and topic["partitions"]
        }
        with self._lock:
            self._topics.update(found)
        return dict(sorted(found.items()))

    def create(self, topic: str, partitions: int, settings: Mapping[str, str]) -> None:
        """Create a topic and wait until every partition has a leader. It is no error when it exists."""
        check_name("topic", topic)
        wanted = {
            self._prefix + topic: {
                "num_partitions": partitions,
                "replication_factor": self._settings.replication,
                "configs": dict(settings),
            }
        }

        def create() -> None:
            try:
                self._client.create_topics(wanted, wait_for_metadata=True)
            except errors.TopicAlreadyExistsError:
                self._client.wait_for_topics(list(wanted))

        self.ask(f"create topic {topic}", create)

    def settings_of(self, topics: Iterable[str], names: Sequence[str]) -> dict[str, dict[str, str]]:
        """Return topic -> setting -> value, for the settings named."""
        resources = [ConfigResource(ConfigResourceType.TOPIC, self._prefix + topic, list(names)) for topic in topics]
        found = self.ask("read topic settings", lambda: self._client.describe_configs(resources, config_filter="all"))
        return {
            topic[len(self._prefix) :]: {name: values[name]["value"] for name in names if name in values}
            for topic, values in found.get("topic", {}).items()
        }

    def broker_setting(self, name: str) -> str:
        """Return a setting of a broker."""

        def question() -> str:
            node = self._client.describe_cluster()["brokers"][0]
            broker = str(node.get("broker_id", node.get("node_id")))
            resource = ConfigResource(ConfigResourceType.BROKER, broker, [name])
            found = self._client.describe_configs([resource], config_filter="all")
            return str(found["broker"][broker][name]["value"])

        return self.ask(f"read the broker's {name}", question)

    def change_settings(self, topic: str, settings: Mapping[str, str]) -> None:
        """Change settings of a topic."""
        resource = ConfigResource(ConfigResourceType.TOPIC, self._prefix + topic, dict(settings))
        self.ask(f"change settings of {topic}", lambda: self._client.alter_configs([resource]))

    # ---- offsets ----

    def bounds(self, partitions: Sequence[TopicPartition], spec: OffsetSpec) -> dict[TopicPartition, int]:
        """Return the oldest or next offset of partitions."""
        if not partitions:
            return {}
        found = self.ask(
            "look up offsets", lambda: self._client.list_partition_offsets(dict.fromkeys(partitions, spec))
        )
        return {partition: found[partition].offset for partition in partitions}

    def delete_before(self, partition: TopicPartition, offset: int) -> None:
        """Forget the records of a partition below an offset."""
        self.ask(f"trim {partition.topic}", lambda: self._client.delete_records({partition: offset}))

    def bytes_on_disk(self) -> int:
        """Return the size of our topics' files on all brokers."""
        found = self.ask("look up sizes", self._client.describe_log_dirs)
        return _sum_sizes(found, self._prefix)

    # ---- positions ----

    def positions(self, group: str, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, OffsetAndMetadata]:
        """Return the stored positions of a group; a partition without one is missing."""
        name = self.group_name(group)
        found = self.ask(
            f"read positions of {group}", lambda: self._client.list_group_offsets({name: list(partitions)})
        )
        return {partition: stored for partition, stored in found[name].items() if stored.offset >= 0}

    def store(self, positions: Sequence[Position]) -> None:
        """Store positions of groups without members. Raises LogError for a group that has members elsewhere."""
        by_group: dict[str, dict[TopicPartition, OffsetAndMetadata]] = defaultdict(dict)
        for position in positions:
            partition = TopicPartition(self._prefix + position.topic, position.partition)
            by_group[position.group][partition] = OffsetAndMetadata(position.offset, position.metadata, -1)
        for group, offsets in by_group.items():

            def order(group: str = group, offsets: dict[TopicPartition, OffsetAndMetadata] = offsets) -> None:
                for code in self._client.alter_group_offsets(self.group_name(group), offsets).values():
                    if code is not errors.NoError:
                        raise code()

            try:
                self.ask(f"store positions of {group}", order)
            except LogError as error:
                if isinstance(error.__cause__, _HELD):
                    raise LogError(
                        f"group {group} has members in another process, and only they can store its positions; "
                        "stop the stage first"
                    ) from error
                raise

    def check(self, positions: Sequence[Position]) -> None:
        """Raise UnknownTopic or LogError for positions that cannot be stored."""
        for position in positions:
            check_position(position)
            self.group_name(position.group)
            self.check_partition(position.topic, position.partition)

    def group_name(self, group: str) -> str:
        """Return Kafka's name of a group."""
        return self._prefix + check_name("group", group)

    def leave(self, group: str, member: str) -> None:
        """Take a named member out of its group: Kafka keeps its place until the session ends. Tried once."""
        self._client.remove_group_members(self.group_name(group), [MemberToRemove(group_instance_id=member)])

    def groups(self) -> list[tuple[str, str]]:
        """Return (group, topic) pairs that have a stored position."""
        listed = self.ask("list groups", self._client.list_groups)
        names = [group["group_id"] for group in listed if group["group_id"].startswith(self._prefix)]
        if not names:
            return []
        found = self.ask("read positions", lambda: self._client.list_group_offsets(dict.fromkeys(names)))
        return sorted(
            {
                (group[len(self._prefix) :], partition.topic[len(self._prefix) :])
                for group, offsets in found.items()
                for partition, stored in offsets.items()
                if stored.offset >= 0
            }
        )


def _sum_sizes(found: Any, prefix: str) -> int:
    """Add up partition sizes anywhere below a DescribeLogDirs answer."""
    if isinstance(found, Mapping):
        if "partitions" in found and not str(found.get("topic", found.get("name", prefix))).startswith(prefix):
            return 0
        return sum(int(value) if key == "partition_size" else _sum_sizes(value, prefix) for key, value in found.items())
    return sum(_sum_sizes(item, prefix) for item in found) if isinstance(found, list) else 0
