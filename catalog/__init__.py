"""Which tables, columns, fields, lanes and flows exist, and who derives what from what?"""

from catalog._exceptions import CatalogError, DependencyError, Fault, InvalidCatalog, InvalidValue
from catalog.graph import DependencyGraph, HandlerDeclaration, build_graph
from catalog.kinds import Destination, Family, LaneName, Message, Operation, ValueType
from catalog.loader import DEFAULT_CATALOG, load_catalog
from catalog.model import (
    Catalog,
    Column,
    Derivation,
    Dimension,
    Field,
    Layout,
    Reference,
    Serving,
    Source,
    Stream,
    Table,
)

__all__ = [
    "DEFAULT_CATALOG",
    "Catalog",
    "CatalogError",
    "Column",
    "DependencyError",
    "DependencyGraph",
    "Derivation",
    "Destination",
    "Dimension",
    "Family",
    "Fault",
    "Field",
    "HandlerDeclaration",
    "InvalidCatalog",
    "InvalidValue",
    "LaneName",
    "Layout",
    "Message",
    "Operation",
    "Reference",
    "Serving",
    "Source",
    "Stream",
    "Table",
    "ValueType",
    "build_graph",
    "load_catalog",
]
