from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Request(_message.Message):
    __slots__ = ("timestamp", "commit", "handshake", "fence")
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    HANDSHAKE_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    timestamp: TimestampRequest
    commit: CommitRequest
    handshake: HandshakeRequest
    fence: FenceRequest
    def __init__(self, timestamp: _Optional[_Union[TimestampRequest, _Mapping]] = ..., commit: _Optional[_Union[CommitRequest, _Mapping]] = ..., handshake: _Optional[_Union[HandshakeRequest, _Mapping]] = ..., fence: _Optional[_Union[FenceRequest, _Mapping]] = ...) -> None: ...

class TimestampRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CommitRequest(_message.Message):
    __slots__ = ("start_ts", "is_retry", "cell_ids", "table_ids")
    START_TS_FIELD_NUMBER: _ClassVar[int]
    IS_RETRY_FIELD_NUMBER: _ClassVar[int]
    CELL_IDS_FIELD_NUMBER: _ClassVar[int]
    TABLE_IDS_FIELD_NUMBER: _ClassVar[int]
    start_ts: int
    is_retry: bool
    cell_ids: _containers.RepeatedScalarFieldContainer[int]
    table_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, start_ts: _Optional[int] = ..., is_retry: _Optional[bool] = ..., cell_ids: _Optional[_Iterable[int]] = ..., table_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Capabilities(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HandshakeRequest(_message.Message):
    __slots__ = ("capabilities",)
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    capabilities: Capabilities
    def __init__(self, capabilities: _Optional[_Union[Capabilities, _Mapping]] = ...) -> None: ...

class FenceRequest(_message.Message):
    __slots__ = ("table_id",)
    TABLE_ID_FIELD_NUMBER: _ClassVar[int]
    table_id: int
    def __init__(self, table_id: _Optional[int] = ...) -> None: ...

class Response(_message.Message):
    __slots__ = ("timestamp", "commit", "handshake", "fence")
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    HANDSHAKE_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    timestamp: TimestampResponse
    commit: CommitResponse
    handshake: HandshakeResponse
    fence: FenceResponse
    def __init__(self, timestamp: _Optional[_Union[TimestampResponse, _Mapping]] = ..., commit: _Optional[_Union[CommitResponse, _Mapping]] = ..., handshake: _Optional[_Union[HandshakeResponse, _Mapping]] = ..., fence: _Optional[_Union[FenceResponse, _Mapping]] = ...) -> None: ...

class TimestampResponse(_message.Message):
    __slots__ = ("start_ts",)
    START_TS_FIELD_NUMBER: _ClassVar[int]
    start_ts: int
    def __init__(self, start_ts: _Optional[int] = ...) -> None: ...

class CommitResponse(_message.Message):
    __slots__ = ("aborted", "start_ts", "commit_ts")
    ABORTED_FIELD_NUMBER: _ClassVar[int]
    START_TS_FIELD_NUMBER: _ClassVar[int]
    COMMIT_TS_FIELD_NUMBER: _ClassVar[int]
    aborted: bool
    start_ts: int
    commit_ts: int
    def __init__(self, aborted: _Optional[bool] = ..., start_ts: _Optional[int] = ..., commit_ts: _Optional[int] = ...) -> None: ...

class HandshakeResponse(_message.Message):
    __slots__ = ("client_compatible", "capabilities", "low_latency")
    CLIENT_COMPATIBLE_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    LOW_LATENCY_FIELD_NUMBER: _ClassVar[int]
    client_compatible: bool
    capabilities: Capabilities
    low_latency: bool
    def __init__(self, client_compatible: _Optional[bool] = ..., capabilities: _Optional[_Union[Capabilities, _Mapping]] = ..., low_latency: _Optional[bool] = ...) -> None: ...

class FenceResponse(_message.Message):
    __slots__ = ("table_id", "fence_ts")
    TABLE_ID_FIELD_NUMBER: _ClassVar[int]
    FENCE_TS_FIELD_NUMBER: _ClassVar[int]
    table_id: int
    fence_ts: int
    def __init__(self, table_id: _Optional[int] = ..., fence_ts: _Optional[int] = ...) -> None: ...
