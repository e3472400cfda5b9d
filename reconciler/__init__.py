"""GitOps for federated learning: what is merged is what runs."""

__version__ = "0.1.0"
