# Two commands for a newcomer: `make demo` and `make test`. Both set up everything they need and do nothing twice.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# What a process imports is compiled to bytecode once, and not again by each of the hundreds that follow.
unexport PYTHONDONTWRITEBYTECODE

PROTOS := $(shell find protos -name '*.proto')
DEMO_VENV := .venv/.demo-up-to-date
VENV := .venv/.up-to-date
TRITON_VENV := .venv-triton/.up-to-date
TRITON_SERVER := .venv-triton/.server-up-to-date
SYSTEM := build/.system-packages-up-to-date
TRAINING := .venv-triton/.training-up-to-date
PIP := .venv/bin/python -m pip install --quiet --no-compile
DOORS_VENV := .venv-doors/.up-to-date
STUBS := services/client/tiercel/common/v1/common_pb2.py
DECISION := build/numba/.decision-up-to-date
SIMULATOR := build/numba/.simulator-up-to-date
KERNELS := $(DECISION) $(SIMULATOR)
# An environment that lacks pip was left by an interrupt: it is made once more.
environment = $(1)/bin/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv $(1)

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.PHONY: setup
setup: $(VENV) $(TRITON_VENV) $(TRAINING) $(STUBS) ## make both environments (services, Triton)

.PHONY: demo
demo: ## serve calm -> burst -> recovery on this machine, and open a report
	@$(MAKE) --no-print-directory --jobs=2 demo-setup
	@.venv/bin/tiercel demo

# The tools of `make setup` are left out. The simulator takes longest to compile, so it stands first; Triton is unpacked
# beside the packages that it is compiled with.
.PHONY: demo-setup
demo-setup: $(DEMO_VENV) $(TRITON_SERVER) $(SIMULATOR) $(DECISION) $(TRITON_VENV) $(STUBS)

LANES ?= 2
.PHONY: test
test: setup checkers $(DOORS_VENV) $(KERNELS) ## run every test: unit, integration on real Redis and Triton, end to end
	.venv/bin/python -m pytest -n $(LANES)

DOOR_TESTS := $(wildcard tests/integration/test_doors.py tests/integration/test_kserve*.py tests/integration/test_openai*.py \
	tests/integration/test_envoy*.py) tests/e2e/test_examples.py
.PHONY: test-doors
test-doors: setup $(DOORS_VENV) $(KERNELS) ## every door, asked by clients that are not ours (tritonclient, perf_analyzer, curl, aiperf, ...; the last brings 900 MB)
	.venv/bin/python -m pytest $(DOOR_TESTS)
	.venv/bin/python -m services.bench.aiperf --json build/aiperf.json

# Not part of `make test`: what aiperf brings is 900 MB.
.PHONY: aiperf
aiperf: setup $(KERNELS) ## ask the OpenAI-shaped door by NVIDIA's aiperf (installs it, 900 MB); writes its table in docs/doors.md
	.venv/bin/python -m services.bench.aiperf --json docs/results/aiperf.json
	.venv/bin/python -m services.bench.page

FUZZ_S ?= 600
FUZZ_ROUNDS ?= 20
FUZZ_COUNT ?= 20000
FUZZ_GUIDED_S ?= 1800
FUZZ_PARTS_S ?= 3600
.PHONY: fuzz
fuzz: setup $(KERNELS) ## wrong calls, wrong answers, wrong files, property tests with fresh draws (about 2 hours; FUZZ_COUNT=2000: 20 minutes)
	.venv/bin/python -m tests.fuzzing.rpcs --count $(FUZZ_COUNT) --seconds $(FUZZ_PARTS_S)
	.venv/bin/python -m tests.fuzzing.http --count $(FUZZ_COUNT) --seconds $(FUZZ_PARTS_S)
	.venv/bin/python -m tests.fuzzing.streams --count $(FUZZ_COUNT) --seconds $(FUZZ_PARTS_S)
	.venv/bin/python -m tests.fuzzing.files --count $(FUZZ_COUNT) --seconds $(FUZZ_PARTS_S)
	.venv/bin/python -m tests.fuzz --seconds $(FUZZ_S) --rounds $(FUZZ_ROUNDS)

.PHONY: fuzz-guided
fuzz-guided: setup ## wrong files led by coverage, 30 minutes (FUZZ_GUIDED_S seconds); installs atheris
	.venv/bin/python -m pip install --quiet --constraint requirements/constraints.txt --editable '.[fuzz]'
	.venv/bin/python -m tests.fuzzing.guided --seconds $(FUZZ_GUIDED_S)

N ?= 10
BUSY ?= 5
.PHONY: test-repeat
test-repeat: setup checkers $(DOORS_VENV) $(KERNELS) ## the whole suite N times, the last BUSY of them beside a busy core
	.venv/bin/python -m tests.repeat --runs $(N) --busy $(BUSY) --lanes $(LANES)

TIMES ?= 5
.PHONY: faults
faults: setup $(KERNELS) ## every fault of docs/reliability.md TIMES times, in half an hour at most; writes that page
	.venv/bin/python -m tests.faults --times $(TIMES) --record

.PHONY: tutorial
tutorial: setup $(KERNELS) ## run docs/tutorial.md line by line, with a short training (some minutes)
	.venv/bin/python -m tests.tutorial

SOAK_S ?= 3600
.PHONY: soak
soak: setup $(KERNELS) ## crowds of connections (3 min), then a mesh at 60 % load for SOAK_S seconds; writes docs/soak.md
	.venv/bin/python -m tests.soak --seconds $(SOAK_S) --record

.PHONY: lint
lint: setup ## ruff, mypy --strict, import rules, protos
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	cd protos && ../.venv/bin/buf lint
	cd protos && ../.venv/bin/buf format --diff --exit-code
	.ci/buf-breaking

.PHONY: format
format: setup ## format Python and protos
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .
	cd protos && ../.venv/bin/buf format --write

.PHONY: wheel
wheel: setup ## build the wheels of the client and of the mesh into dist/, with their bills of materials
	.venv/bin/python -m build --wheel --outdir dist services/client
	.venv/bin/python -m build --wheel --outdir dist .
	.venv/bin/python .ci/sbom requirements/constraints.txt dist/tiercel.cdx.json
	.venv/bin/python .ci/sbom requirements/triton-constraints.txt dist/tiercel-triton.cdx.json

.PHONY: clean
clean: ## remove what was built (environments stay)
	rm -rf build dist services/client/tiercel/*/ .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

# What only the distribution can give is installed where we may, else named in one line.
$(SYSTEM): .ci/system-packages
	@.ci/system-packages required "$(PYTHON)"
	@mkdir -p $(@D)
	@touch $(SYSTEM)

# Nothing is compiled to bytecode in advance: most of what is installed is never imported.
$(DEMO_VENV): pyproject.toml services/client/pyproject.toml requirements/constraints.txt | $(SYSTEM)
	@echo "setting up .venv (services, trainer)"
	@$(call environment,.venv)
	@$(PIP) --constraint requirements/constraints.txt \
		--editable services/client --editable '.[trainer,embedded]'
	@touch $(DEMO_VENV) $(STUBS)

$(VENV): $(DEMO_VENV)
	@echo "adding to .venv what tests and checks need"
	@$(PIP) --constraint requirements/constraints.txt 'tiercel[security,dev]'
	@touch $(VENV)

$(TRITON_SERVER): requirements/triton.txt requirements/triton-constraints.txt | $(SYSTEM)
	@echo "setting up .venv-triton (Triton Inference Server and its Python stubs)"
	@$(call environment,.venv-triton)
	@.venv-triton/bin/python -m pip install --quiet --no-compile --no-deps \
		--constraint requirements/triton-constraints.txt nvidia-pytriton
	@touch $(TRITON_SERVER)

# torch lies in .venv already, and Triton's stubs take it from there. They write no bytecode, so what they import is
# compiled here, once.
$(TRITON_VENV): $(TRITON_SERVER) .ci/share-packages $(DEMO_VENV)
	@.venv/bin/python .ci/share-packages torch .venv-triton requirements/triton-constraints.txt
	@.venv-triton/bin/python -m pip install --quiet --no-compile \
		--constraint requirements/triton-constraints.txt --requirement requirements/triton.txt
	@PYTHONPATH=deploy/triton/common .venv-triton/bin/python -c 'import reference_engine'
	@touch $(TRITON_VENV)

$(TRAINING): requirements/triton-training.txt $(TRITON_VENV)
	@.venv-triton/bin/python -m pip install --quiet --no-compile \
		--constraint requirements/triton-constraints.txt --requirement requirements/triton-training.txt
	@touch $(TRAINING)

$(DOORS_VENV): requirements/doors.txt | $(SYSTEM)
	@.ci/system-packages doors "$(PYTHON)"
	@echo "setting up .venv-doors (outside clients)"
	@$(call environment,.venv-doors)
	@.venv-doors/bin/python -m pip install --quiet --no-deps --requirement requirements/doors.txt
	@touch $(DOORS_VENV)

$(STUBS): $(PROTOS) services/client/hatch_build.py $(DEMO_VENV)
	@.venv/bin/python services/client/hatch_build.py >/dev/null 2>&1 || $(PIP) --no-deps --editable services/client
	@touch $(STUBS)

# Once for each version of the sources, so that no run of the demo and no test waits for the compiler. The code is kept in
# build/numba under a name per version (router/compiled.py); TIERCEL_NUMBA_CACHE names another place.
ROUTER_KERNELS := $(wildcard router/*.py router/*/*.py)
$(DECISION): $(DEMO_VENV) $(ROUTER_KERNELS) | $(STUBS)
	@echo "compiling the router's decision (half a minute of a core)"
	@mkdir -p $(@D)
	@.venv/bin/python -m services.router_inference.machine_code >/dev/null
	@touch $(DECISION)

$(SIMULATOR): $(DEMO_VENV) $(ROUTER_KERNELS) $(wildcard trainer/simulation/*.py) | $(STUBS)
	@echo "compiling the simulator (a minute of a core)"
	@mkdir -p $(@D)
	@.venv/bin/tiercel train --profile profiles/reference.toml --quality quality/reference.toml --devices 1 \
		--deadline-s 0.2 --rounds 1 --no-answer --json --out $(@D)/compiled.safetensors >/dev/null
	@touch $(SIMULATOR)

.PHONY: checkers
checkers:
	@.ci/system-packages checkers "$(PYTHON)"
