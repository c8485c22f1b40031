"""Which tables, columns, fields, lanes and flows exist, and who derives what from what?"""

from catalog._exceptions import CatalogError, DependencyError, Fault, InvalidCatalog, InvalidValue
from catalog.graph import DependencyGraph, HandlerDeclaration, build_graph
from catalog.loader import DEFAULT_CATALOG, load_catalog
from catalog.model import (
    Catalog,
    Column,
    Destination,
    Dimension,
    Family,
    Field,
    LaneName,
    Reference,
    Serving,
    Source,
    Table,
    ValueType,
)

__all__ = [
    "DEFAULT_CATALOG",
    "Catalog",
    "CatalogError",
    "Column",
    "DependencyError",
    "DependencyGraph",
    "Destination",
    "Dimension",
    "Family",
    "Fault",
    "Field",
    "HandlerDeclaration",
    "InvalidCatalog",
    "InvalidValue",
    "LaneName",
    "Reference",
    "Serving",
    "Source",
    "Table",
    "ValueType",
    "build_graph",
    "load_catalog",
]
