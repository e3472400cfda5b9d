"""The stages of a project, one module each; `STAGES` is the order in which they run."""

from reconciler.plan import Stage
from reconciler.stages import build, deploy, gate, package, register, resolve, train, verify
from reconciler.stages.model import Declared, Outcome, StageFunction, Tools, Work

STAGES: dict[Stage, StageFunction] = {
    Stage.RESOLVE: resolve.run,
    Stage.BUILD: build.run,
    Stage.TRAIN: train.run,
    Stage.GATE: gate.run,
    Stage.REGISTER: register.run,
    Stage.PACKAGE: package.run,
    Stage.DEPLOY: deploy.run,
    Stage.VERIFY: verify.run,
}

__all__ = ["STAGES", "Declared", "Outcome", "StageFunction", "Tools", "Work"]
