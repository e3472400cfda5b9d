"""Git: the GitOps repo as blobs of one commit, and the ML repos that its SLAs name."""

from reconciler.source.git import GitRepo
from reconciler.source.ml_repo import MLRepoRevision, MLRepos
from reconciler.source.snapshot import ProjectFiles, Snapshot

__all__ = ["GitRepo", "MLRepoRevision", "MLRepos", "ProjectFiles", "Snapshot"]
