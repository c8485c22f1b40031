"""The structs and the service of HBase's Thrift2 server, from the part of its interface file that is used here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import thriftpy2

_interface: Any = thriftpy2.load(
    str(Path(__file__).with_name("hbase2.thrift")), module_name="storage_repo.hbase.hbase2_thrift"
)

THBaseService: Any = _interface.THBaseService
TIOError: Any = _interface.TIOError
TColumn: Any = _interface.TColumn
TColumnFamilyDescriptor: Any = _interface.TColumnFamilyDescriptor
TColumnValue: Any = _interface.TColumnValue
TDelete: Any = _interface.TDelete
TDeleteType: Any = _interface.TDeleteType
TGet: Any = _interface.TGet
TNamespaceDescriptor: Any = _interface.TNamespaceDescriptor
TPut: Any = _interface.TPut
TScan: Any = _interface.TScan
TTableDescriptor: Any = _interface.TTableDescriptor
TTableName: Any = _interface.TTableName
TTimeRange: Any = _interface.TTimeRange
