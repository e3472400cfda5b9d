"""Datasets by data tag: fetched once, verified, kept as Arrow files, dealt to learners as disjoint shards."""

from reconciler.federation.data.apart import CatalogApart
from reconciler.federation.data.catalog import DataCatalog, DatasetVersion, Described

__all__ = ["CatalogApart", "DataCatalog", "DatasetVersion", "Described"]
