"""Where services run: one protocol, several implementations."""

from reconciler.runtimes.model import Runtime, Service, ServiceSpec

__all__ = ["Runtime", "Service", "ServiceSpec"]
