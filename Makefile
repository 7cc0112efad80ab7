# `make up` and `make test` need nothing but Python 3.11 or newer: both install first.

VENV     := .venv
BIN      := $(VENV)/bin
PACKAGES := $(VENV)/.packages
KERNELS  := $(VENV)/.kernels

MODEL ?=
PORT  ?= 8000
ARGS  ?=

.DEFAULT_GOAL := help
.PHONY: help install up test test-services test-rest lint chaos bench-overhead bench-store bench-memory bench-scaling bench-engine bench-peers bench-calibrate bench-semi-pd bench-controller bench-beside-prompts install-gpu test-gpu bench-gpu bench-gpu-mesh demo-model clean

help: ## Show this list.
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | \
	  while IFS='|' read -r name text; do printf '  make %-15s %s\n' "$$name" "$$text"; done

install: $(KERNELS) ## Make .venv with the `tandem` command in it.

$(PACKAGES): pyproject.toml constraints.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || .ci/make-venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile \
	  --constraint constraints.txt --editable '.[gateway,worker,cli,plots,containers,dev]'
	@# What pip would do on one core, for all models of transformers too; like pip it goes on
	@# where a package has a file that is no Python of this version.
	@$(BIN)/python -m compileall -qq -j 0 -x 'transformers/models/|/tests?/|/testing/' $(VENV)/lib libs services || true
	@touch $@

$(KERNELS): $(PACKAGES) $(wildcard libs/engine/*.py)
	@echo "compiling the kernels"
	@$(BIN)/python -m engine.compile
	@touch $@

up: install ## Start a mesh: MODEL=directory or hub id, PORT=8000, ARGS="--decode 2".
	@$(BIN)/tandem up $(if $(MODEL),--model $(MODEL)) --port $(PORT) $(ARGS)

# Tests of services and of whole meshes wait more than they compute: they leave time for
# all others, which take as long.
SERVICES := $(addprefix tests/,chaos gateway kvstore mesh system tandem walkthrough worker)

test: $(PACKAGES) ## Lint, and run every test; ARGS="-k name" for some.
ifeq ($(strip $(ARGS)),)
	@$(MAKE) --no-print-directory --jobs 2 --keep-going --output-sync=target \
	  lint test-services test-rest
else
	@$(MAKE) --no-print-directory lint install
	$(BIN)/python -m pytest $(ARGS)
endif

test-services: install
	$(BIN)/python -m pytest $(SERVICES)

test-rest: install
	$(BIN)/python -m pytest $(addprefix --ignore=,$(SERVICES))

lint: $(PACKAGES) ## Style, formatting and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

chaos: install ## Only the tests that kill processes, 20 rounds of each.
	$(BIN)/python -m pytest -m chaos --rounds 20 $(ARGS)

bench-overhead: install ## What the mesh adds to each request and token.
	$(BIN)/python bench/overhead.py $(ARGS)

bench-store: install ## What the store's operations cost.
	$(BIN)/python bench/store.py $(ARGS)

bench-memory: install ## How full the KV blocks are before the first preemption.
	$(BIN)/python bench/memory.py $(ARGS)

bench-scaling: install ## How long streams pause while workers come and go.
	$(BIN)/python bench/scaling.py $(ARGS)

bench-engine: install ## What a step of the engine costs, beside the machine's floor.
	$(BIN)/python bench/steps.py $(ARGS)

bench-peers: install ## Tandem beside vLLM, llama.cpp, transformers serve and OpenVINO (in process).
	$(BIN)/python bench/compare.py $(ARGS)

bench-calibrate: install ## The simulator beside the real mesh on this machine.
	$(BIN)/python bench/calibrate.py $(ARGS)

bench-semi-pd: install ## The main figures of semi-PD's paper, simulated.
	$(BIN)/python bench/semi_pd.py $(ARGS)

bench-controller: install ## The controller on loads that change, simulated.
	$(BIN)/python bench/controller.py $(ARGS)

bench-beside-prompts: install ## Running streams while long prompts arrive, simulated on GPUs.
	$(BIN)/python bench/beside_prompts.py $(ARGS)

install-gpu: install ## What a GPU needs besides: NVIDIA's bindings.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[cuda]'

test-gpu: install-gpu ## On a GPU: kernels, sharing, splits, the engine, a mesh that is killed, figures.
	$(BIN)/python -m pytest tests/gpu tests/engine/test_triton_attention.py \
	  tests/engine/test_triton_rows.py tests/engine/test_triton_linear.py \
	  tests/engine/test_triton_skinny.py tests/engine/test_products.py \
	  tests/engine/test_fastest.py tests/engine/test_device_sampler.py \
	  tests/engine/test_cuda.py $(ARGS)
	$(BIN)/python -m pytest --device cuda tests/walkthrough tests/system/test_exactness.py \
	  tests/chaos/test_kill.py $(ARGS)
	$(BIN)/python -m pytest --device cuda --cuda-sharing ipc \
	  tests/chaos/test_kill.py -k "a_killed_decode or a_killed_store" $(ARGS)
	$(BIN)/python bench/gpu.py

bench-gpu: install-gpu ## What a step of the engine costs on a GPU, beside its floor.
	$(BIN)/python bench/gpu.py $(ARGS)

bench-gpu-mesh: install-gpu ## Running streams while long prompts arrive: semi beside fused, on a GPU.
	$(BIN)/python bench/gpu_mesh.py $(ARGS)

demo-model: install ## Train models/demo again: an hour on two cores; goes on if interrupted.
	$(BIN)/python tools/train_demo_model.py $(ARGS)

clean: ## Remove the environment, caches and run directories.
	rm -rf $(VENV) .tandem .mypy_cache .pytest_cache .ruff_cache dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
