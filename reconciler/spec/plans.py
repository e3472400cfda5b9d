"""The build plans that count for one project: from the files of the repo and of its folder to models, under the policy."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from reconciler.errors import SpecError, SpecErrors
from reconciler.spec.build_plan import KINDS, BuildPlan, effective_plan
from reconciler.spec.loader import load_build_plan
from reconciler.spec.operator import ImagesConfig

SUFFIXES = ("yaml", "yml", "json")
PLANS = "build_plans"


def project_plans(
    repo: Mapping[str, bytes], project: Mapping[str, bytes], policy: ImagesConfig, *, path: str
) -> dict[str, BuildPlan]:
    """The plan of each kind of image.

    `repo` has the files of `build_plans/` by name, `project` those of the project's folder by path in it (`build_plans/…`), and
    `path` is that folder's path in the repo. Raises SpecErrors with all that is wrong in all of them.
    """
    errors: list[SpecError] = []
    made: dict[str, BuildPlan] = {}
    for kind in KINDS:
        try:
            found = _load(repo, "", PLANS, kind), _load(project, f"{PLANS}/", f"{path}/{PLANS}", kind)
            made[kind] = effective_plan(kind, *found, policy)
        except SpecErrors as refused:
            errors += refused.errors
        except SpecError as refused:
            errors.append(refused)
    if errors:
        raise SpecErrors(errors)
    return made


def _load(files: Mapping[str, bytes], prefix: str, folder: str, kind: str) -> BuildPlan | None:
    names = [f"{kind}.{suffix}" for suffix in SUFFIXES if f"{prefix}{kind}.{suffix}" in files]
    return _parsed(files[f"{prefix}{names[0]}"], f"{folder}/{names[0]}") if names else None


@lru_cache(maxsize=1024)
def _parsed(data: bytes, path: str) -> BuildPlan:
    """The plans of the repo are the same for all of its projects."""
    return load_build_plan(data, path)
