# Everything that a developer or CI runs. `make` alone says what there is.
# Works on a machine with Python 3.11 or later, git and make; `setup` makes the rest in .venv.

PYTHON := $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup check test demo bench bench-engine soak sync lock clean

help:
	@echo "make setup   install the locked dependencies into $(VENV)"
	@echo "make check   format, lint, types, layers, schemas, workflows"
	@echo "make test    all tests"
	@echo "make demo    the base case before your eyes: merge, serve, retrain, revert"
	@echo "make bench   the figures of the base case and of the loop"
	@echo "make soak    kills, idle hours, random histories and a million inputs; hours (see tests/soak/__main__.py)"
	@echo "make sync    write what is generated: schemas, example projects, error page"

setup: $(STAMP)

$(STAMP): requirements/dev.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed."; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "$(PYTHON) has no venv module; install it (Debian: python3-venv)."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@# uv alone comes through pip, checked by its hashes; uv installs the rest several times faster.
	@$(BIN)/python -c "import re; text = open('requirements/dev.txt').read(); \
	print(re.search(r'^uv==.*?(?=^\S)', text, re.M | re.S)[0])" > $(VENV)/uv.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/uv.txt
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip sync --quiet --require-hashes --compile-bytecode requirements/dev.txt
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m reconciler.spec.schemas --check
	$(BIN)/python -m reconciler.scaffold --check
	$(BIN)/python -m ci.errors_doc --check
	$(BIN)/python -m ci.keys_doc --check
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yaml reconciler/scaffold/templates/.github/workflows/*.yaml
	$(BIN)/zizmor --offline --quiet .github/workflows reconciler/scaffold/templates/.github/workflows

test: setup
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

demo: setup
	$(BIN)/python -m ci.demo

bench: setup
	$(BIN)/python -m bench.base_case
	$(BIN)/python -m bench.controller
	$(BIN)/python -m bench.push
	$(BIN)/python -m bench.memory
	$(BIN)/python -m bench.alternatives
	$(BIN)/python -m bench.federation
	$(BIN)/python -m bench.images

bench-engine: setup
	eval "$$(ci/engine.sh start)" && $(BIN)/python -m bench.buildkit && $(BIN)/python -m bench.containers; ci/engine.sh stop

# What takes hours: `nice` it. Each part is shorter by its variable; a part that fails does not keep the others from running.
soak: export FLOPS_SOAK := 1
soak: setup
	$(BIN)/python -m tests.soak

sync: setup
	$(BIN)/python -m reconciler.spec.schemas
	$(BIN)/python -m reconciler.scaffold
	$(BIN)/python -m ci.errors_doc
	$(BIN)/python -m ci.keys_doc

lock: setup
	$(BIN)/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header -q -o requirements/dev.txt
	$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header -q -c requirements/dev.txt -o requirements/runtime.txt

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis .import_linter_cache
