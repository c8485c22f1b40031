from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Lane(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LANE_UNSPECIFIED: _ClassVar[Lane]
    LANE_HIGH: _ClassVar[Lane]
    LANE_MEDIUM: _ClassVar[Lane]
    LANE_LOW: _ClassVar[Lane]
LANE_UNSPECIFIED: Lane
LANE_HIGH: Lane
LANE_MEDIUM: Lane
LANE_LOW: Lane

class Hop(_message.Message):
    __slots__ = ("stage", "entered_us", "left_us")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    ENTERED_US_FIELD_NUMBER: _ClassVar[int]
    LEFT_US_FIELD_NUMBER: _ClassVar[int]
    stage: str
    entered_us: int
    left_us: int
    def __init__(self, stage: _Optional[str] = ..., entered_us: _Optional[int] = ..., left_us: _Optional[int] = ...) -> None: ...

class Header(_message.Message):
    __slots__ = ("trace_id", "lane", "origin_us", "hops")
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_US_FIELD_NUMBER: _ClassVar[int]
    HOPS_FIELD_NUMBER: _ClassVar[int]
    trace_id: str
    lane: Lane
    origin_us: int
    hops: _containers.RepeatedCompositeFieldContainer[Hop]
    def __init__(self, trace_id: _Optional[str] = ..., lane: _Optional[_Union[Lane, str]] = ..., origin_us: _Optional[int] = ..., hops: _Optional[_Iterable[_Union[Hop, _Mapping]]] = ...) -> None: ...

class Change(_message.Message):
    __slots__ = ("header", "source_table", "key", "position")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    SOURCE_TABLE_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    header: Header
    source_table: str
    key: str
    position: int
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., source_table: _Optional[str] = ..., key: _Optional[str] = ..., position: _Optional[int] = ...) -> None: ...

class Column(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: bytes
    def __init__(self, name: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...

class EntityUpdate(_message.Message):
    __slots__ = ("header", "table", "row", "source_version", "source", "deleted", "columns")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    ROW_FIELD_NUMBER: _ClassVar[int]
    SOURCE_VERSION_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    DELETED_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    header: Header
    table: str
    row: str
    source_version: int
    source: str
    deleted: bool
    columns: _containers.RepeatedCompositeFieldContainer[Column]
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., table: _Optional[str] = ..., row: _Optional[str] = ..., source_version: _Optional[int] = ..., source: _Optional[str] = ..., deleted: _Optional[bool] = ..., columns: _Optional[_Iterable[_Union[Column, _Mapping]]] = ...) -> None: ...

class FanOut(_message.Message):
    __slots__ = ("root", "cursor", "chunks_done")
    ROOT_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_DONE_FIELD_NUMBER: _ClassVar[int]
    root: str
    cursor: str
    chunks_done: int
    def __init__(self, root: _Optional[str] = ..., cursor: _Optional[str] = ..., chunks_done: _Optional[int] = ...) -> None: ...

class Notification(_message.Message):
    __slots__ = ("header", "table", "row", "columns", "commit_ts", "writer", "fan_out", "refresh", "republish")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    ROW_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    COMMIT_TS_FIELD_NUMBER: _ClassVar[int]
    WRITER_FIELD_NUMBER: _ClassVar[int]
    FAN_OUT_FIELD_NUMBER: _ClassVar[int]
    REFRESH_FIELD_NUMBER: _ClassVar[int]
    REPUBLISH_FIELD_NUMBER: _ClassVar[int]
    header: Header
    table: str
    row: str
    columns: _containers.RepeatedScalarFieldContainer[str]
    commit_ts: int
    writer: str
    fan_out: FanOut
    refresh: bool
    republish: bool
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., table: _Optional[str] = ..., row: _Optional[str] = ..., columns: _Optional[_Iterable[str]] = ..., commit_ts: _Optional[int] = ..., writer: _Optional[str] = ..., fan_out: _Optional[_Union[FanOut, _Mapping]] = ..., refresh: _Optional[bool] = ..., republish: _Optional[bool] = ...) -> None: ...

class DocumentDelta(_message.Message):
    __slots__ = ("header", "document_id", "version", "deleted", "body")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DELETED_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    header: Header
    document_id: str
    version: int
    deleted: bool
    body: bytes
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., document_id: _Optional[str] = ..., version: _Optional[int] = ..., deleted: _Optional[bool] = ..., body: _Optional[bytes] = ...) -> None: ...

class BudgetState(_message.Message):
    __slots__ = ("header", "campaign_id", "version", "deleted", "daily_micros", "lifetime_micros", "spent_today_micros", "spent_total_micros", "currency", "frequency_cap_day", "frequency_cap_week", "frequency_cap_total")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CAMPAIGN_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DELETED_FIELD_NUMBER: _ClassVar[int]
    DAILY_MICROS_FIELD_NUMBER: _ClassVar[int]
    LIFETIME_MICROS_FIELD_NUMBER: _ClassVar[int]
    SPENT_TODAY_MICROS_FIELD_NUMBER: _ClassVar[int]
    SPENT_TOTAL_MICROS_FIELD_NUMBER: _ClassVar[int]
    CURRENCY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_CAP_DAY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_CAP_WEEK_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_CAP_TOTAL_FIELD_NUMBER: _ClassVar[int]
    header: Header
    campaign_id: str
    version: int
    deleted: bool
    daily_micros: int
    lifetime_micros: int
    spent_today_micros: int
    spent_total_micros: int
    currency: str
    frequency_cap_day: int
    frequency_cap_week: int
    frequency_cap_total: int
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., campaign_id: _Optional[str] = ..., version: _Optional[int] = ..., deleted: _Optional[bool] = ..., daily_micros: _Optional[int] = ..., lifetime_micros: _Optional[int] = ..., spent_today_micros: _Optional[int] = ..., spent_total_micros: _Optional[int] = ..., currency: _Optional[str] = ..., frequency_cap_day: _Optional[int] = ..., frequency_cap_week: _Optional[int] = ..., frequency_cap_total: _Optional[int] = ...) -> None: ...

class DeadLetter(_message.Message):
    __slots__ = ("header", "stage", "handler", "reason", "error", "detail", "topic", "partition", "offset", "payload", "payload_type", "at_us", "table", "row")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    HANDLER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_TYPE_FIELD_NUMBER: _ClassVar[int]
    AT_US_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    ROW_FIELD_NUMBER: _ClassVar[int]
    header: Header
    stage: str
    handler: str
    reason: str
    error: str
    detail: str
    topic: str
    partition: int
    offset: int
    payload: bytes
    payload_type: str
    at_us: int
    table: str
    row: str
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., stage: _Optional[str] = ..., handler: _Optional[str] = ..., reason: _Optional[str] = ..., error: _Optional[str] = ..., detail: _Optional[str] = ..., topic: _Optional[str] = ..., partition: _Optional[int] = ..., offset: _Optional[int] = ..., payload: _Optional[bytes] = ..., payload_type: _Optional[str] = ..., at_us: _Optional[int] = ..., table: _Optional[str] = ..., row: _Optional[str] = ...) -> None: ...

class SwitchSetting(_message.Message):
    __slots__ = ("name", "value", "who", "why", "at_us")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    AT_US_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: str
    who: str
    why: str
    at_us: int
    def __init__(self, name: _Optional[str] = ..., value: _Optional[str] = ..., who: _Optional[str] = ..., why: _Optional[str] = ..., at_us: _Optional[int] = ...) -> None: ...

class Drop(_message.Message):
    __slots__ = ("stage", "reason", "lane", "at_us", "count", "entities", "oldest_origin_us", "detail")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    AT_US_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    ENTITIES_FIELD_NUMBER: _ClassVar[int]
    OLDEST_ORIGIN_US_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    stage: str
    reason: str
    lane: Lane
    at_us: int
    count: int
    entities: _containers.RepeatedScalarFieldContainer[str]
    oldest_origin_us: int
    detail: str
    def __init__(self, stage: _Optional[str] = ..., reason: _Optional[str] = ..., lane: _Optional[_Union[Lane, str]] = ..., at_us: _Optional[int] = ..., count: _Optional[int] = ..., entities: _Optional[_Iterable[str]] = ..., oldest_origin_us: _Optional[int] = ..., detail: _Optional[str] = ...) -> None: ...

class ChangeBatch(_message.Message):
    __slots__ = ("changes", "dry_run")
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    changes: _containers.RepeatedCompositeFieldContainer[Change]
    dry_run: bool
    def __init__(self, changes: _Optional[_Iterable[_Union[Change, _Mapping]]] = ..., dry_run: _Optional[bool] = ...) -> None: ...

class UpdateBatch(_message.Message):
    __slots__ = ("updates", "dry_run")
    UPDATES_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    updates: _containers.RepeatedCompositeFieldContainer[EntityUpdate]
    dry_run: bool
    def __init__(self, updates: _Optional[_Iterable[_Union[EntityUpdate, _Mapping]]] = ..., dry_run: _Optional[bool] = ...) -> None: ...

class NotificationBatch(_message.Message):
    __slots__ = ("notifications", "dry_run")
    NOTIFICATIONS_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    notifications: _containers.RepeatedCompositeFieldContainer[Notification]
    dry_run: bool
    def __init__(self, notifications: _Optional[_Iterable[_Union[Notification, _Mapping]]] = ..., dry_run: _Optional[bool] = ...) -> None: ...

class MaterializeReply(_message.Message):
    __slots__ = ("updates", "budgets", "dead_letters")
    UPDATES_FIELD_NUMBER: _ClassVar[int]
    BUDGETS_FIELD_NUMBER: _ClassVar[int]
    DEAD_LETTERS_FIELD_NUMBER: _ClassVar[int]
    updates: _containers.RepeatedCompositeFieldContainer[EntityUpdate]
    budgets: _containers.RepeatedCompositeFieldContainer[BudgetState]
    dead_letters: _containers.RepeatedCompositeFieldContainer[DeadLetter]
    def __init__(self, updates: _Optional[_Iterable[_Union[EntityUpdate, _Mapping]]] = ..., budgets: _Optional[_Iterable[_Union[BudgetState, _Mapping]]] = ..., dead_letters: _Optional[_Iterable[_Union[DeadLetter, _Mapping]]] = ...) -> None: ...

class UpdateResult(_message.Message):
    __slots__ = ("table", "row", "outcome", "commit_ts", "error")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    ROW_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    COMMIT_TS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    table: str
    row: str
    outcome: str
    commit_ts: int
    error: str
    def __init__(self, table: _Optional[str] = ..., row: _Optional[str] = ..., outcome: _Optional[str] = ..., commit_ts: _Optional[int] = ..., error: _Optional[str] = ...) -> None: ...

class ApplyReply(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[UpdateResult]
    def __init__(self, results: _Optional[_Iterable[_Union[UpdateResult, _Mapping]]] = ...) -> None: ...

class ProcessReply(_message.Message):
    __slots__ = ("documents", "dead_letters", "rows_written")
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    DEAD_LETTERS_FIELD_NUMBER: _ClassVar[int]
    ROWS_WRITTEN_FIELD_NUMBER: _ClassVar[int]
    documents: _containers.RepeatedCompositeFieldContainer[DocumentDelta]
    dead_letters: _containers.RepeatedCompositeFieldContainer[DeadLetter]
    rows_written: int
    def __init__(self, documents: _Optional[_Iterable[_Union[DocumentDelta, _Mapping]]] = ..., dead_letters: _Optional[_Iterable[_Union[DeadLetter, _Mapping]]] = ..., rows_written: _Optional[int] = ...) -> None: ...

class SearchRequest(_message.Message):
    __slots__ = ("request_json", "k", "explain", "explain_ad_id", "skip_total", "timeout_s", "common", "columns")
    REQUEST_JSON_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_AD_ID_FIELD_NUMBER: _ClassVar[int]
    SKIP_TOTAL_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    COMMON_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    request_json: str
    k: int
    explain: bool
    explain_ad_id: str
    skip_total: bool
    timeout_s: float
    common: Common
    columns: bool
    def __init__(self, request_json: _Optional[str] = ..., k: _Optional[int] = ..., explain: _Optional[bool] = ..., explain_ad_id: _Optional[str] = ..., skip_total: _Optional[bool] = ..., timeout_s: _Optional[float] = ..., common: _Optional[_Union[Common, _Mapping]] = ..., columns: _Optional[bool] = ...) -> None: ...

class Common(_message.Message):
    __slots__ = ("has_documents", "documents", "frequencies", "vector", "candidates", "light_scores")
    class FrequenciesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    HAS_DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    FREQUENCIES_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    LIGHT_SCORES_FIELD_NUMBER: _ClassVar[int]
    has_documents: bool
    documents: int
    frequencies: _containers.ScalarMap[str, int]
    vector: bytes
    candidates: bool
    light_scores: bool
    def __init__(self, has_documents: _Optional[bool] = ..., documents: _Optional[int] = ..., frequencies: _Optional[_Mapping[str, int]] = ..., vector: _Optional[bytes] = ..., candidates: _Optional[bool] = ..., light_scores: _Optional[bool] = ...) -> None: ...

class Hit(_message.Message):
    __slots__ = ("ad_id", "score", "groups")
    AD_ID_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    ad_id: str
    score: float
    groups: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, ad_id: _Optional[str] = ..., score: _Optional[float] = ..., groups: _Optional[_Iterable[str]] = ...) -> None: ...

class SearchReply(_message.Message):
    __slots__ = ("hits", "total", "explain_json", "total_is_lower_bound", "partial", "missing_shards", "problem", "error", "page_token", "int_keys", "keys", "scores", "light_scores", "unavailable")
    class MissingShardsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    HITS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_JSON_FIELD_NUMBER: _ClassVar[int]
    TOTAL_IS_LOWER_BOUND_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    MISSING_SHARDS_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    INT_KEYS_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    LIGHT_SCORES_FIELD_NUMBER: _ClassVar[int]
    UNAVAILABLE_FIELD_NUMBER: _ClassVar[int]
    hits: _containers.RepeatedCompositeFieldContainer[Hit]
    total: int
    explain_json: str
    total_is_lower_bound: bool
    partial: bool
    missing_shards: _containers.ScalarMap[str, str]
    problem: str
    error: str
    page_token: str
    int_keys: _containers.RepeatedScalarFieldContainer[int]
    keys: _containers.RepeatedScalarFieldContainer[str]
    scores: _containers.RepeatedScalarFieldContainer[float]
    light_scores: _containers.RepeatedScalarFieldContainer[float]
    unavailable: bool
    def __init__(self, hits: _Optional[_Iterable[_Union[Hit, _Mapping]]] = ..., total: _Optional[int] = ..., explain_json: _Optional[str] = ..., total_is_lower_bound: _Optional[bool] = ..., partial: _Optional[bool] = ..., missing_shards: _Optional[_Mapping[str, str]] = ..., problem: _Optional[str] = ..., error: _Optional[str] = ..., page_token: _Optional[str] = ..., int_keys: _Optional[_Iterable[int]] = ..., keys: _Optional[_Iterable[str]] = ..., scores: _Optional[_Iterable[float]] = ..., light_scores: _Optional[_Iterable[float]] = ..., unavailable: _Optional[bool] = ...) -> None: ...

class SearchBatchRequest(_message.Message):
    __slots__ = ("requests", "timeout_s", "common")
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    COMMON_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[SearchRequest]
    timeout_s: float
    common: Common
    def __init__(self, requests: _Optional[_Iterable[_Union[SearchRequest, _Mapping]]] = ..., timeout_s: _Optional[float] = ..., common: _Optional[_Union[Common, _Mapping]] = ...) -> None: ...

class SearchBatchReply(_message.Message):
    __slots__ = ("replies",)
    REPLIES_FIELD_NUMBER: _ClassVar[int]
    replies: _containers.RepeatedCompositeFieldContainer[SearchReply]
    def __init__(self, replies: _Optional[_Iterable[_Union[SearchReply, _Mapping]]] = ...) -> None: ...

class StatisticsRequest(_message.Message):
    __slots__ = ("requests_json",)
    REQUESTS_JSON_FIELD_NUMBER: _ClassVar[int]
    requests_json: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, requests_json: _Optional[_Iterable[str]] = ...) -> None: ...

class StatisticsReply(_message.Message):
    __slots__ = ("documents", "frequencies")
    class FrequenciesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    FREQUENCIES_FIELD_NUMBER: _ClassVar[int]
    documents: int
    frequencies: _containers.ScalarMap[str, int]
    def __init__(self, documents: _Optional[int] = ..., frequencies: _Optional[_Mapping[str, int]] = ...) -> None: ...

class HealthRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HealthReply(_message.Message):
    __slots__ = ("status", "problem", "base_version", "shard", "verification")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    BASE_VERSION_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    VERIFICATION_FIELD_NUMBER: _ClassVar[int]
    status: str
    problem: str
    base_version: str
    shard: str
    verification: str
    def __init__(self, status: _Optional[str] = ..., problem: _Optional[str] = ..., base_version: _Optional[str] = ..., shard: _Optional[str] = ..., verification: _Optional[str] = ...) -> None: ...

class GetRequest(_message.Message):
    __slots__ = ("document_ids", "fields")
    DOCUMENT_IDS_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    document_ids: _containers.RepeatedScalarFieldContainer[str]
    fields: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, document_ids: _Optional[_Iterable[str]] = ..., fields: _Optional[_Iterable[str]] = ...) -> None: ...

class ServedDocument(_message.Message):
    __slots__ = ("document_id", "found", "deleted", "version", "layer", "body", "trace_id", "origin_us", "answerable_us", "hops")
    DOCUMENT_ID_FIELD_NUMBER: _ClassVar[int]
    FOUND_FIELD_NUMBER: _ClassVar[int]
    DELETED_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_US_FIELD_NUMBER: _ClassVar[int]
    ANSWERABLE_US_FIELD_NUMBER: _ClassVar[int]
    HOPS_FIELD_NUMBER: _ClassVar[int]
    document_id: str
    found: bool
    deleted: bool
    version: int
    layer: str
    body: bytes
    trace_id: str
    origin_us: int
    answerable_us: int
    hops: _containers.RepeatedCompositeFieldContainer[Hop]
    def __init__(self, document_id: _Optional[str] = ..., found: _Optional[bool] = ..., deleted: _Optional[bool] = ..., version: _Optional[int] = ..., layer: _Optional[str] = ..., body: _Optional[bytes] = ..., trace_id: _Optional[str] = ..., origin_us: _Optional[int] = ..., answerable_us: _Optional[int] = ..., hops: _Optional[_Iterable[_Union[Hop, _Mapping]]] = ...) -> None: ...

class GetReply(_message.Message):
    __slots__ = ("documents",)
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    documents: _containers.RepeatedCompositeFieldContainer[ServedDocument]
    def __init__(self, documents: _Optional[_Iterable[_Union[ServedDocument, _Mapping]]] = ...) -> None: ...

class StatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatsReply(_message.Message):
    __slots__ = ("stats_json",)
    STATS_JSON_FIELD_NUMBER: _ClassVar[int]
    stats_json: str
    def __init__(self, stats_json: _Optional[str] = ...) -> None: ...

class FollowRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Applied(_message.Message):
    __slots__ = ("document_id", "version", "deleted", "trace_id", "origin_us", "answerable_us")
    DOCUMENT_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DELETED_FIELD_NUMBER: _ClassVar[int]
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_US_FIELD_NUMBER: _ClassVar[int]
    ANSWERABLE_US_FIELD_NUMBER: _ClassVar[int]
    document_id: str
    version: int
    deleted: bool
    trace_id: str
    origin_us: int
    answerable_us: int
    def __init__(self, document_id: _Optional[str] = ..., version: _Optional[int] = ..., deleted: _Optional[bool] = ..., trace_id: _Optional[str] = ..., origin_us: _Optional[int] = ..., answerable_us: _Optional[int] = ...) -> None: ...

class BudgetRequest(_message.Message):
    __slots__ = ("campaign_id",)
    CAMPAIGN_ID_FIELD_NUMBER: _ClassVar[int]
    campaign_id: str
    def __init__(self, campaign_id: _Optional[str] = ...) -> None: ...

class WorkflowRequest(_message.Message):
    __slots__ = ("workflow", "parameters_json", "on_error", "max_failures", "who", "why", "resume")
    WORKFLOW_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_JSON_FIELD_NUMBER: _ClassVar[int]
    ON_ERROR_FIELD_NUMBER: _ClassVar[int]
    MAX_FAILURES_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    workflow: str
    parameters_json: str
    on_error: str
    max_failures: int
    who: str
    why: str
    resume: bool
    def __init__(self, workflow: _Optional[str] = ..., parameters_json: _Optional[str] = ..., on_error: _Optional[str] = ..., max_failures: _Optional[int] = ..., who: _Optional[str] = ..., why: _Optional[str] = ..., resume: _Optional[bool] = ...) -> None: ...

class WorkflowRun(_message.Message):
    __slots__ = ("id", "workflow", "outcome", "started_us", "ended_us", "seconds", "done", "total", "unit", "rate", "eta_s", "who", "said", "record_json")
    ID_FIELD_NUMBER: _ClassVar[int]
    WORKFLOW_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    STARTED_US_FIELD_NUMBER: _ClassVar[int]
    ENDED_US_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    ETA_S_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    SAID_FIELD_NUMBER: _ClassVar[int]
    RECORD_JSON_FIELD_NUMBER: _ClassVar[int]
    id: str
    workflow: str
    outcome: str
    started_us: int
    ended_us: int
    seconds: float
    done: int
    total: int
    unit: str
    rate: float
    eta_s: float
    who: str
    said: str
    record_json: str
    def __init__(self, id: _Optional[str] = ..., workflow: _Optional[str] = ..., outcome: _Optional[str] = ..., started_us: _Optional[int] = ..., ended_us: _Optional[int] = ..., seconds: _Optional[float] = ..., done: _Optional[int] = ..., total: _Optional[int] = ..., unit: _Optional[str] = ..., rate: _Optional[float] = ..., eta_s: _Optional[float] = ..., who: _Optional[str] = ..., said: _Optional[str] = ..., record_json: _Optional[str] = ...) -> None: ...

class WorkflowRuns(_message.Message):
    __slots__ = ("runs",)
    RUNS_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[WorkflowRun]
    def __init__(self, runs: _Optional[_Iterable[_Union[WorkflowRun, _Mapping]]] = ...) -> None: ...

class WorkflowListRequest(_message.Message):
    __slots__ = ("workflow", "limit")
    WORKFLOW_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    workflow: str
    limit: int
    def __init__(self, workflow: _Optional[str] = ..., limit: _Optional[int] = ...) -> None: ...

class WorkflowKind(_message.Message):
    __slots__ = ("name", "summary", "parameters_schema_json", "resumable", "schedule_json", "next_due_us")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_SCHEMA_JSON_FIELD_NUMBER: _ClassVar[int]
    RESUMABLE_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_JSON_FIELD_NUMBER: _ClassVar[int]
    NEXT_DUE_US_FIELD_NUMBER: _ClassVar[int]
    name: str
    summary: str
    parameters_schema_json: str
    resumable: bool
    schedule_json: str
    next_due_us: int
    def __init__(self, name: _Optional[str] = ..., summary: _Optional[str] = ..., parameters_schema_json: _Optional[str] = ..., resumable: _Optional[bool] = ..., schedule_json: _Optional[str] = ..., next_due_us: _Optional[int] = ...) -> None: ...

class WorkflowKinds(_message.Message):
    __slots__ = ("workflows",)
    WORKFLOWS_FIELD_NUMBER: _ClassVar[int]
    workflows: _containers.RepeatedCompositeFieldContainer[WorkflowKind]
    def __init__(self, workflows: _Optional[_Iterable[_Union[WorkflowKind, _Mapping]]] = ...) -> None: ...

class WorkflowKindsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WorkflowRunName(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class WorkflowCancelRequest(_message.Message):
    __slots__ = ("id", "who", "why")
    ID_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    id: str
    who: str
    why: str
    def __init__(self, id: _Optional[str] = ..., who: _Optional[str] = ..., why: _Optional[str] = ...) -> None: ...

class WorkflowScheduleRequest(_message.Message):
    __slots__ = ("request", "every", "cron", "remove")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    EVERY_FIELD_NUMBER: _ClassVar[int]
    CRON_FIELD_NUMBER: _ClassVar[int]
    REMOVE_FIELD_NUMBER: _ClassVar[int]
    request: WorkflowRequest
    every: str
    cron: str
    remove: bool
    def __init__(self, request: _Optional[_Union[WorkflowRequest, _Mapping]] = ..., every: _Optional[str] = ..., cron: _Optional[str] = ..., remove: _Optional[bool] = ...) -> None: ...
