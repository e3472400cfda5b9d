"""Locked environments for ML repos: translated, locked once per declaration, built once per lock, shared by all projects."""

from reconciler.environments.model import DependencyReport, Environment, Lock
from reconciler.environments.store import EnvironmentStore

__all__ = ["DependencyReport", "Environment", "EnvironmentStore", "Lock"]
