"""`schemas/*.schema.json`, made from the models. Run: `python -m reconciler.spec.schemas [--check] [DIR]`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel

from reconciler.spec.build_plan import BuildPlan
from reconciler.spec.models import MockData, NodeDeclaration, ProjectSLA
from reconciler.spec.operator import OperatorConfig

MODELS: dict[str, type[BaseModel]] = {
    "sla": ProjectSLA,
    "mock_data": MockData,
    "flops": OperatorConfig,
    "build_plan": BuildPlan,
    "node": NodeDeclaration,
}


FLOWER_NAMES = [
    "Bulyan", "FedAdagrad", "FedAdam", "FedAvg", "FedAvgM", "FedMedian", "FedProx", "FedTrimmedAvg", "FedYogi",
    "Krum", "MultiKrum", "QFedAvg",
]  # fmt: skip


def schema(name: str) -> dict[str, Any]:
    """One JSON Schema (draft 2020-12). FLOps' `tensorflow` flavour and Flower's spellings of strategies are allowed."""
    made = MODELS[name].model_json_schema(by_alias=True, mode="validation")
    if name == "sla":
        made["$defs"]["Flavor"]["enum"].append("tensorflow")
        made["$defs"]["Strategy"]["properties"]["name"]["enum"] += FLOWER_NAMES
    for part in (made, *made.get("$defs", {}).values()):
        for key, inner in part.get("properties", {}).items():
            inner.setdefault("title", key)
            # Pydantic leaves a description out where it is that of the model behind it; editors then show nothing.
            behind = made["$defs"][inner["$ref"].rsplit("/", 1)[1]] if "$ref" in inner else {}
            inner.setdefault("description", behind.get("description", ""))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


def files() -> dict[str, bytes]:
    """All schemas by file name."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    return {f"{name}.schema.json": orjson.dumps(schema(name), option=options) for name in MODELS}


def main(arguments: list[str]) -> int:
    """Write the schemas, or compare them with `--check` (exit 1 when one is out of date)."""
    check = "--check" in arguments
    folder = Path(next((item for item in arguments if not item.startswith("-")), "schemas"))
    stale = [name for name, content in files().items() if not _same(folder / name, content)]
    if check:
        for name in stale:
            print(f"{folder / name} is out of date: run `python -m reconciler.spec.schemas`")
        return 1 if stale else 0
    folder.mkdir(exist_ok=True)
    for name, content in files().items():
        (folder / name).write_bytes(content)
    return 0


def _same(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
