"""The stages of a project, one module each, of its stage's name.

A stage is imported when it first runs: what stages need – arrays, Arrow, Flower, bills of materials – is most of the memory that a
loop would hold which has nothing to do.
"""

from importlib import import_module

from reconciler.plan import Stage
from reconciler.stages.model import Declared, Outcome, StageFunction, Tools, Work


def function_of(stage: Stage) -> StageFunction:
    """What carries a stage out."""
    found: StageFunction = import_module(f"reconciler.stages.{stage}").run
    return found


__all__ = ["Declared", "Outcome", "StageFunction", "Tools", "Work", "function_of"]
