# make setup | run | server | check | format | docs | test | test-long | test-clients | test-real | bench | bench-cloud
#      bench-edge | bench-network | bench-thresholds | bench-scaling | bench-humaneval | bench-split | ablation | evaluate | train | clean
PROMPT ?= What is AI?
# The pair of models: make run CONFIG=config/presets/qwen2.5-coder.yaml SET="models.root=models/real edge.server.port=9000"
CONFIG ?=
SET    ?=
PYTHON ?= python3
VENV   := .venv
CLIENTS := .venv-clients
PY     := $(VENV)/bin/python
GPU    := $(shell nvidia-smi -L 2>/dev/null | head -n 1)
NEEDS  := $(if $(GPU),requirements.txt,requirements-cpu.txt)
PAIR    = $(if $(CONFIG),--config $(CONFIG)) $(foreach one,$(SET),--set $(one))
INSTALL := $(PY) -m pip install --disable-pip-version-check

.PHONY: setup run server check format docs test test-long test-clients test-real
.PHONY: bench bench-cloud bench-edge bench-network bench-thresholds bench-scaling bench-humaneval bench-split ablation llama-server evaluate train clean

setup: $(VENV)/.ready models/demo-split/manifest.json

$(VENV)/.ready: $(NEEDS) requirements-dev.txt
	@echo "== 1/3 virtual environment in $(VENV)"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "== 2/3 packages of $(NEEDS); compiling llama.cpp takes about 3 minutes on 2 cores"
	$(INSTALL) $(if $(GPU),,--no-deps) -r $(NEEDS)
	@echo "== 3/3 tools for tests and checks"
	$(INSTALL) --no-deps -r requirements-dev.txt
	@touch $@

# The demo cloud model cut in pieces, for mode split: seconds.
SPLIT_OF := models/demo-cloud-exits.safetensors $(wildcard models/demo-cloud/*)

models/demo-split/manifest.json: $(SPLIT_OF) | $(VENV)/.ready
	$(PY) -m models.partition --model models/demo-cloud --exits-file $< --quantize f32 --output $(@D)

run: setup
	@$(PY) main.py --mode demo $(PAIR) --prompt "$(PROMPT)"

server: setup
	@$(PY) main.py --mode server $(PAIR)

check: setup
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports --no-logo
	$(PY) -m vulture
	$(PY) -m pytest tests/test_house.py

# The folder map of the README and docs/CONFIG.md.
docs: setup
	$(PY) -m docs.generate

format: setup
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

test: setup
	$(PY) -m pytest -n 2 --no-loadscope-reorder --durations 10

test-long: setup
	$(PY) -m pytest -m long --timeout 1800

# Pairs of real models, from EDGECLOUD_REAL or ~/.cache/edgecloud/real; about 20 minutes on 2 cores.
test-real: setup
	$(PY) -m pytest -m real --timeout 1800

test-clients: setup $(CLIENTS)/.ready
	$(PY) -m pytest -m clients

$(CLIENTS)/.ready: requirements-clients.txt
	@test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --disable-pip-version-check -r requirements-clients.txt
	@touch $@

# ARGS of these programs, for example ARGS="--prompts 4 --tokens 32".
bench: setup
	$(PY) -m benchmarks.lossless_speed $(PAIR) $(ARGS)

bench-cloud: setup
	$(PY) -m benchmarks.verify_cost $(PAIR)
	$(PY) -m benchmarks.uplink $(PAIR)
	$(PY) -m benchmarks.continuous_speed $(PAIR)
	$(PY) -m benchmarks.serve_throughput $(PAIR)

bench-edge: setup
	$(PY) -m benchmarks.edge_speed $(PAIR)
	$(PY) -m benchmarks.edge_cache $(PAIR)
	$(PY) -m benchmarks.cloud_loss $(PAIR)

# 15 minutes of a sweep of hours; ARGS="--resume --minutes 60" goes on with it.
bench-network: setup
	$(PY) -m experiments.network_sweep $(PAIR) $(ARGS)

# About 8 minutes each on 2 cores; ARGS="--strategies max_prob,ensemble", ARGS="--clients 1,8" are less.
bench-thresholds: setup
	$(PY) -m experiments.threshold_sweep $(PAIR) $(ARGS)

bench-scaling: setup
	$(PY) -m experiments.scaling $(PAIR) $(ARGS)

# DATA=HumanEval.jsonl.gz CONFIG=PRESET, of a real pair: the demo pair knows no Python. Hours on 2 cores;
# ARGS="--minutes 30", then ARGS="--resume".
bench-humaneval: setup
	$(PY) -m experiments.humaneval $(if $(DATA),--data $(DATA)) $(PAIR) $(ARGS)

# The layer split: exact, how much it sends, how long it takes, what answers are worth; about 15 minutes on 2 cores.
bench-split: setup
	$(PY) -m experiments.exactness $(PAIR)
	$(PY) -m experiments.communication $(PAIR)
	$(PY) -m experiments.inference_time $(PAIR)
	$(PY) -m experiments.accuracy $(PAIR)

# About 8 minutes on 2 cores; ARGS="--only no_confidence,edge_only --questions 20" is less.
ablation: setup
	$(PY) ablation_experiments.py $(PAIR) $(ARGS)

# The peer of bench-edge, from the sources of the llama-cpp-python that is installed; about 5 minutes on 2 cores.
CACHE := $(HOME)/.cache/edgecloud
LLAMA  = $(shell sed -n 's/^llama-cpp-python==//p' $(NEEDS))

llama-server: $(CACHE)/llama-server

$(CACHE)/llama-server: | setup
	mkdir -p $(CACHE)
	$(PY) -m pip download --disable-pip-version-check --no-binary :all: --no-deps -d $(CACHE) llama-cpp-python==$(LLAMA)
	tar -xzf $(CACHE)/llama_cpp_python-$(LLAMA).tar.gz -C $(CACHE)
	cmake -S $(CACHE)/llama_cpp_python-$(LLAMA)/vendor/llama.cpp -B $(CACHE)/llama-server-$(LLAMA) \
		-DCMAKE_BUILD_TYPE=Release -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
		-DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF
	cmake --build $(CACHE)/llama-server-$(LLAMA) --target llama-server --parallel
	ln -sf llama-server-$(LLAMA)/bin/llama-server $@

evaluate: setup
	$(PY) -m models.evaluate

train: setup
	$(PY) -m models.train
	$(PY) -m models.train.export
	$(PY) -m models.exits --model models/demo-cloud --exits 2,4 --rate 0.001 --output models/demo-cloud-exits.safetensors
	$(PY) -m models.evaluate
	$(PY) -m models.exits.evaluation

clean:
	rm -rf $(VENV) $(CLIENTS) logs models/checkpoints models/demo-split models/*.training .mypy_cache .ruff_cache .pytest_cache
