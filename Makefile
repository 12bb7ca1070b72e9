# make demo: environment and quickstart | make test: everything | make check: format, lint, types, unit tests
# make embedding: a small sentence embedding for `python -m erhpc.fit embedding=DIR` and router=embedding
# make bench-load: how right the load generator is beside its peers (BENCH_ARGS="--clients erhpc --users 1,1000")
# make bench-twin: how far predicted step times are from published measurements
# make bench-gateway: what the gateway costs beside nginx and other routers (BENCH_ARGS="--gateways fast,nginx")
# python -m tests.bench.gateway.overload, .soak minutes=30 users=500: goodput under overload; leaks, lost requests
# make fuzz: 100,000 random requests to each relay of the gateway (ERHPC_FUZZ_SEED=1 for others)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export XDG_CACHE_HOME ?= $(HOME)/.cache

.PHONY: demo test check fix lock vllm-env embedding bench-load bench-gateway bench-twin fuzz clean

demo: $(VENV)/.runtime
	$(BIN)/python -m erhpc.launch +experiment=quickstart

test: $(VENV)/.dev embedding
	bash .ci/tests.sh $(PYTEST_ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/unit -q

fix: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench-load: $(VENV)/.dev
	$(BIN)/python -m tests.bench.load $(BENCH_ARGS)

bench-gateway: $(VENV)/.dev
	$(BIN)/python -m tests.bench.gateway $(BENCH_ARGS)

fuzz: $(VENV)/.dev
	ERHPC_FUZZ_REQUESTS=100000 $(BIN)/python -m pytest -q -s tests/integration/test_gateway_fuzz.py

bench-twin: $(VENV)/.dev
	$(BIN)/python -m tests.bench.twin $(BENCH_ARGS)

vllm-env:
	bash .ci/vllm_env.sh

embedding:
	bash .ci/embedding.sh

lock: $(VENV)/.dev
	$(BIN)/uv pip compile -q --no-header --no-emit-index-url --no-annotate pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile -q --no-header --no-emit-index-url --no-annotate --extra dev pyproject.toml -o requirements-dev.lock

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# Dependencies come from the lock file; the project itself is editable, so compute nodes import this checkout.
$(VENV)/.runtime: requirements.lock pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

# uv takes a tenth of the time, but knows nothing of pip's settings: where pip is told of a mirror, pip installs.
DEV := --no-deps -r requirements-dev.lock -e .
$(VENV)/.dev: requirements-dev.lock pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep ^uv== requirements-dev.lock)"
	$(BIN)/uv pip install --quiet --python $(BIN)/python $(DEV) || \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check $(DEV)
	touch $@ $(VENV)/.runtime

clean:
	rm -rf $(VENV) .cache
