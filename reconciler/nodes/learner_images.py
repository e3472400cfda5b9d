"""The image of a run on a node: put together here, from the lock and the code of the app bundle, and handed to the engine.

Nothing is pulled from anybody but the wheels that the lock names, checked by their hashes, and the base image if the owner named
one. Runs with the same lock share all layers but the last, which is the ML repo. A node keeps the images that it used last, since
an engine that loses the last image with a layer has to unpack it again.
"""

from __future__ import annotations

from collections.abc import Callable

from reconciler.digests import digest_of
from reconciler.errors import ImageError, TrainingError
from reconciler.images.assemble import ImageRequest
from reconciler.images.collect import collect
from reconciler.images.engine import into_engine, remove_from_engine
from reconciler.images.interpreter import host_platform
from reconciler.images.store import ImageStore
from reconciler.nodes.fab import LearnerSpec
from reconciler.nodes.host import Place, Tell
from reconciler.runtime_version import mlruntime_digest
from reconciler.runtimes.docker_engine import DockerEngine
from reconciler.spec.build_plan import DEFAULT_BASE, BuildPlan, plan_digest

REPOSITORY = "node/learner"
KEPT = 8


def plan_of(base_image: str) -> BuildPlan:
    """How images are made on a node. Raises TrainingError FL5610 for what is no image."""
    try:
        if base_image == DEFAULT_BASE:
            raise ValueError("that is what a reconciler's operator chose")
        return BuildPlan.model_validate({"kind": "learner", "base_image": base_image})
    except ValueError as error:
        raise TrainingError(
            "FL5610",
            f"{base_image[:100]!r} is not an image.",
            cure="Write scratch, docker-daemon:name:tag, oci:/folder:tag, or registry.example.com/name:tag with its host.",
        ) from error


class LearnerImages:
    """The images of one node. `owner` is in their names in the engine: several nodes may share one."""

    def __init__(self, engine: DockerEngine, store: ImageStore, plan: BuildPlan, owner: str) -> None:
        self._engine, self._store, self._plan, self._owner = engine, store, plan, owner

    def __call__(self, spec: LearnerSpec, place: Place, tell: Tell, cancelled: Callable[[], bool]) -> str:
        """The engine's id of a run's image. Raises TrainingError FL5612, ServingError."""
        client = self._engine.client  # before minutes are spent on an image that nobody can start
        name = f"{REPOSITORY}:{digest_of([place.bundle, plan_digest(self._plan), mlruntime_digest()])[:32]}"
        request = ImageRequest(
            plan=self._plan,
            lock=spec.lock,
            platforms=(host_platform(),),
            content=place.code,
            created=0,  # a bundle has no time, and its image is the same on every day
            version=spec.digest,
            title=f"{spec.project} learner",
            labels={"dev.flops.project": spec.project, "dev.flops.bundle": place.bundle},
            name=name,
        )
        try:
            self._store.build(request, tell=lambda line: tell("image", line), cancelled=cancelled)
            image = into_engine(
                client, self._store.layout, name, host_platform(), owner=self._owner, tell=lambda line: tell("image", line),
                cancelled=cancelled,
            )  # fmt: skip
            collect(self._store.layout, keep_last=KEPT, in_use=[name])
            remove_from_engine(client, self._owner, self._store.layout.tags(), dry_run=False)
        except ImageError as error:
            tell("image", str(error))
            # Where the owner has a base image is nobody else's business.
            cause = error.cause.replace(request.base, "(its --image)")
            cure = error.cure.replace(request.base, "--image")
            raise TrainingError(
                "FL5612", f"The node cannot make the learner's image: {cause}", cure=f"{cure} The base is its --image.",
                transient=error.transient,
            ) from error  # fmt: skip
        return image
