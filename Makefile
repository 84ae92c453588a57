# make setup | run | server | test | test-long | check | bench | bench-cloud | train
PROMPT ?= What is AI?
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
GPU    := $(shell nvidia-smi -L 2>/dev/null | head -n 1)
NEEDS  := $(if $(GPU),requirements.txt,requirements-cpu.txt)
INSTALL := $(PY) -m pip install --disable-pip-version-check

.PHONY: setup run server test test-long check format bench bench-cloud evaluate train clean

setup: $(VENV)/.ready

$(VENV)/.ready: $(NEEDS) requirements-dev.txt
	@echo "== 1/3 virtual environment in $(VENV)"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "== 2/3 packages of $(NEEDS); compiling llama.cpp takes about 3 minutes on 2 cores"
	$(INSTALL) $(if $(GPU),,--no-deps) -r $(NEEDS)
	@echo "== 3/3 tools for tests and checks"
	$(INSTALL) --no-deps -r requirements-dev.txt
	@touch $@

run: setup
	@$(PY) main.py --mode demo --prompt "$(PROMPT)"

server: setup
	@$(PY) main.py --mode server

check: setup
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

format: setup
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

test: setup
	$(PY) -m pytest

test-long: setup
	$(PY) -m pytest -m long --timeout 1800

bench: setup
	$(PY) -m benchmarks.lossless_speed

bench-cloud: setup
	$(PY) -m benchmarks.verify_cost
	$(PY) -m benchmarks.uplink
	$(PY) -m benchmarks.continuous_speed
	$(PY) -m benchmarks.serve_throughput

evaluate: setup
	$(PY) -m models.evaluate

train: setup
	$(PY) -m models.train
	$(PY) -m models.export
	$(PY) -m models.evaluate

clean:
	rm -rf $(VENV) logs models/checkpoints .mypy_cache .ruff_cache .pytest_cache
