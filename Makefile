# make setup | run | server | check | check-vllm | format | docs | test | test-long | test-clients | test-console | test-deploy | test-ray | test-real | fuzz | test-faults | soak | lock | sbom
#      bench | bench-cloud | bench-edge | bench-ray | bench-network | bench-peers | bench-thresholds | bench-routing | bench-scaling | bench-humaneval | bench-split | ablation | evaluate | train | clean
PROMPT ?= What is AI?
# The pair of models: make run CONFIG=config/presets/qwen2.5-coder.yaml SET="models.root=models/real edge.server.port=9000"
CONFIG ?=
SET    ?=
PYTHON ?= python3
VENV   := .venv
CLIENTS := .venv-clients
TOOLS  := .venv-tools
CACHE  := $(HOME)/.cache/edgecloud
PY     := $(VENV)/bin/python
GPU    := $(shell nvidia-smi -L 2>/dev/null | head -n 1)
NEEDS  := $(if $(GPU),requirements.txt,requirements-cpu.txt)
PAIR    = $(if $(CONFIG),--config $(CONFIG)) $(foreach one,$(SET),--set $(one))
INSTALL := $(PY) -m pip install --disable-pip-version-check
# Every package must have a hash that is written down in requirements/; make setup LOCKED=0 installs without.
LOCKED ?= 1
HASHED := --no-deps --require-hashes
LOCK   := requirements/$(if $(GPU),gpu,cpu).lock
UNHASHED := { echo "error: the packages above are not those of requirements/*.lock; for another platform: make setup LOCKED=0, without hashes"; exit 1; }
# Runs a part of the set-up and says how long it took: its name, the command.
timed = (began=$$(date +%s); $(2) && echo "== $(1): $$(($$(date +%s) - began)) s")

.PHONY: setup run server check check-vllm format docs test test-long test-clients test-console test-deploy test-ray chromium screenshots test-real test-faults fuzz soak lock sbom
.PHONY: bench bench-cloud bench-edge bench-ray bench-network bench-peers bench-thresholds bench-routing bench-scaling bench-humaneval bench-split ablation llama-server evaluate train clean

# llama.cpp is compiled without AMX: GCC before 12.4 and 13.3 leaves out the set-up of its tiles (GCC bug 114098), which ends the edge with SIGILL.
ifneq ($(shell grep -sw amx_int8 /proc/cpuinfo),)
$(VENV)/.ready $(VENV)/.llama $(CACHE)/llama-server: export CFLAGS += -U__AMX_INT8__
$(VENV)/.ready $(VENV)/.llama $(CACHE)/llama-server: export CXXFLAGS += -U__AMX_INT8__
endif

# pip keeps what it has compiled and asks neither for which processor nor with which options: so each kind has a cache of its own.
BUILT_FOR = $(shell (grep -m 1 -Ew 'flags|Features' /proc/cpuinfo; cc --version; echo '$(CMAKE_ARGS) $(CFLAGS) $(CXXFLAGS)') 2> /dev/null | cksum | cut -d ' ' -f 1)
BUILD_CACHE = --cache-dir $(CACHE)/pip-$(BUILT_FOR)

setup: $(VENV)/.ready models/demo-split/manifest.json

ifeq ($(LOCKED),0)
$(VENV)/.ready: $(NEEDS) requirements-dev.txt
	@echo "== LOCKED=0: no package is compared with a hash"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(INSTALL) $(BUILD_CACHE) $(if $(GPU),,--no-deps) -r $(NEEDS)
	$(INSTALL) --no-deps -r requirements-dev.txt
	@touch $@
else
# llama.cpp has no ready wheel on the package index: it is compiled while the other packages are fetched.
$(VENV)/.ready: $(LOCK) requirements/torch-cpu.lock requirements/dev.lock
	@echo "== setting up $(VENV), once: llama.cpp is compiled, beside a download of about 1 GB; 4 to 8 minutes on 2 cores"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(call timed,both together,$(MAKE) --no-print-directory -j 2 $(VENV)/.llama $(VENV)/.packages)
	@touch $@

COMPILED := ^llama-cpp-python==/,/[^\\]$$/

$(VENV)/.llama: $(LOCK)
	@sed -n '/$(COMPILED)p' $< > $(VENV)/llama.lock
	@$(call timed,llama.cpp,$(INSTALL) -q $(BUILD_CACHE) $(HASHED) -r $(VENV)/llama.lock) || $(UNHASHED)
	@touch $@

$(VENV)/.packages: $(LOCK) requirements/torch-cpu.lock requirements/dev.lock
	$(if $(GPU),,@$(INSTALL) -q $(HASHED) -r requirements/torch-cpu.lock 2> /dev/null || echo "no CPU build of PyTorch here: its ordinary one, or the one that is installed")
	@sed '/$(COMPILED)d' $< > $(VENV)/packages.lock
	@$(call timed,packages,$(INSTALL) -q $(HASHED) -r $(VENV)/packages.lock) || $(UNHASHED)
	@$(call timed,tools for tests and checks,$(INSTALL) -q $(HASHED) -r requirements/dev.lock) || $(UNHASHED)
	@touch $@
endif

# requirements/*.lock from requirements*.txt: any platform that has wheels; gpu.lock and torch-cpu.lock: Linux, x86-64, Python 3.11.
TORCH = $(shell sed -n 's/^torch==//p' requirements-cpu.txt)+cpu
COMPILE = $(TOOLS)/bin/uv -q pip compile --generate-hashes --no-header --no-annotate --python-version 3.11

lock: $(TOOLS)/.ready
	for name in cpu edge otel ray cloud-image dev clients litellm aider console deploy tools; do \
		$(COMPILE) --universal --no-deps requirements-$$name.txt -o requirements/$$name.lock || exit 1; done
	$(COMPILE) --python-platform x86_64-manylinux_2_28 requirements.txt -o requirements/gpu.lock
	$(TOOLS)/bin/pip download -q --no-deps -d $(TOOLS)/torch torch==$(TORCH)
	{ echo 'torch==$(TORCH) \'; $(TOOLS)/bin/pip hash $(TOOLS)/torch/torch-$(TORCH)-*.whl | sed -n 's/^--hash/    --hash/p'; } \
		> requirements/torch-cpu.lock

# What is installed, with versions and licences, as a CycloneDX bill of materials.
sbom: setup $(TOOLS)/.ready
	$(TOOLS)/bin/cyclonedx-py environment --output-reproducible -o sbom.json $(PY)

$(TOOLS)/.ready: requirements/tools.lock
	@test -x $(TOOLS)/bin/python || $(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --disable-pip-version-check $(HASHED) -r $<
	@touch $@

# The demo cloud model cut in pieces, for mode split: seconds.
SPLIT_OF := models/demo-cloud-exits.safetensors $(wildcard models/demo-cloud/*)

models/demo-split/manifest.json: $(SPLIT_OF) | $(VENV)/.ready
	@$(call timed,a demo model split in two,$(PY) -m models.partition --model models/demo-cloud --exits-file $< --quantize f32 --output $(@D))

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

# Whether a release of vLLM has what this project uses of it: VERSION=0.33.0, or the newest. Downloads 400 MB, installs nothing.
check-vllm: setup
	@$(PY) -m cli.check_vllm $(VERSION)

# The folder map of the README, docs/CONFIG.md and docs/API.md.
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

# Random requests for so long (half of it for each server), and the more frames and files; what fails is kept in logs/fuzz.
MINUTES ?= 10
COUNT   ?= 20

fuzz: setup
	FUZZ_MINUTES=$(MINUTES) $(PY) -m pytest tests/fuzz --timeout 0

# Kills, stops, stalls and shortages at random moments under load, each COUNT times; a kill of the cloud takes a minute.
test-faults: setup
	FAULT_COUNT=$(COUNT) $(PY) -m pytest -m faults tests/faults

# Is memory flat, and does no answer stand still? A report with plots in logs/soak.
soak: setup
	$(PY) -m experiments.soak $(PAIR) --minutes $(MINUTES) --output logs/soak $(ARGS)

# Other projects' clients, unmodified: three environments, as they need different versions of the same packages, and Node's packages.
test-clients: setup $(CLIENTS)/clients/.ready $(CLIENTS)/litellm/.ready $(CLIENTS)/aider/.ready $(CLIENTS)/node/.ready
	$(PY) -m pytest -m clients --timeout 900

$(CLIENTS)/%/.ready: requirements/%.lock
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --disable-pip-version-check $(HASHED) -r $<
	@touch $@

# Node itself comes with requirements/clients.lock. No package runs a script of its own at its installation.
$(CLIENTS)/node/.ready: tests/clients/node/package-lock.json | $(CLIENTS)/clients/.ready
	mkdir -p $(@D)
	cp $(<D)/package.json $(<D)/package-lock.json $(@D)
	PATH="$(CURDIR)/$(CLIENTS)/clients/bin:$$PATH" npm ci --prefix $(@D) --ignore-scripts --no-audit --no-fund
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

# Two replicas on Ray beside one, routing by KV events beside random, and answers while replicas are killed, COUNT times: each kill takes a minute.
bench-ray: setup $(VENV)/.ray
	$(PY) -m benchmarks.replicas.throughput $(PAIR)
	$(PY) -m benchmarks.replicas.throughput $(PAIR) --step-ms 0
	$(PY) -m benchmarks.replicas.prefix_hits $(PAIR)
	$(PY) -m benchmarks.replicas.kills $(PAIR) --kills $(COUNT)

# 15 minutes of a sweep of hours; ARGS="--resume --minutes 60" goes on with it.
bench-network: setup
	$(PY) -m experiments.network_sweep $(PAIR) $(ARGS)

# What a user might run in place of an edge, and how many clients one cloud serves; about 25 minutes on 2 cores.
bench-peers: setup
	$(PY) -m experiments.network_sweep --ways peers --pinned --uplinks 20 --output logs/peers $(PAIR) $(ARGS)
	$(PY) -m experiments.capacity $(PAIR)

# About 8 minutes each on 2 cores; ARGS="--strategies max_prob,ensemble", ARGS="--clients 1,8" are less.
bench-thresholds: setup
	$(PY) -m experiments.threshold_sweep $(PAIR) $(ARGS)

bench-routing: setup
	$(PY) -m experiments.route_sweep $(PAIR) $(ARGS)

bench-scaling: setup
	$(PY) -m experiments.scaling $(PAIR) $(ARGS)

# DATA=HumanEval.jsonl.gz CONFIG=PRESET, of a real pair: the demo pair knows no Python. Hours on 2 cores;
# ARGS="--minutes 30", then ARGS="--resume".
bench-humaneval: setup
	$(PY) -m experiments.humaneval $(if $(DATA),--data $(DATA)) $(PAIR) $(ARGS)

# The layer split: exact, how much it sends, how long it takes, what answers are worth; about 15 minutes on 2 cores.
bench-split: setup
	$(PY) -m experiments.exactness $(PAIR)
	$(PY) -m experiments.communication_overhead $(PAIR)
	$(PY) -m experiments.inference_time $(PAIR)
	$(PY) -m experiments.accuracy_eval $(PAIR)

# About 8 minutes on 2 cores; ARGS="--only no_confidence,edge_only --questions 20" is less.
ablation: setup
	$(PY) ablation_experiments.py $(PAIR) $(ARGS)

# The peer of bench-edge, from the sources of the llama-cpp-python that is installed; about 5 minutes on 2 cores.
LLAMA  = $(shell sed -n 's/^llama-cpp-python==//p' $(NEEDS))

llama-server: $(CACHE)/llama-server

$(CACHE)/llama-server: | setup
	mkdir -p $(CACHE)
	$(PY) -m pip download --disable-pip-version-check --no-binary :all: --no-deps -d $(CACHE) llama-cpp-python==$(LLAMA)
	tar -xzf $(CACHE)/llama_cpp_python-$(LLAMA).tar.gz -C $(CACHE)
	cmake -S $(CACHE)/llama_cpp_python-$(LLAMA)/vendor/llama.cpp -B $(CACHE)/llama-server-$(LLAMA) \
		-DCMAKE_BUILD_TYPE=Release -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
		-DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF
	cmake --build $(CACHE)/llama-server-$(LLAMA) --target llama-server --parallel $(shell nproc)
	ln -sf llama-server-$(LLAMA)/bin/llama-server $@

# Linters and schemas on the files of deploy/, offline once they are installed: seconds.
test-deploy: setup $(VENV)/.deploy
	$(PY) -m pytest -m deploy tests/deploy

$(VENV)/.deploy: requirements/deploy.lock | $(VENV)/.ready
	$(INSTALL) $(HASHED) -r $<
	@touch $@

# Two replicas of the demo model on Ray: about 5 minutes on 2 cores.
test-ray: setup $(VENV)/.ray
	$(PY) -m pytest -m long tests/cloud/replicas --timeout 900

$(VENV)/.ray: requirements/ray.lock | $(VENV)/.ready
	$(INSTALL) $(HASHED) -r $<
	@touch $@

# The edge's web page in a headless Chromium: about two minutes; ARGS="-n 2" takes less. Without a browser the tests are skipped and say so.
test-console: setup $(VENV)/.console
	$(PY) -m pytest -m console tests/console --timeout 120 $(ARGS)

$(VENV)/.console: requirements/console.lock | $(VENV)/.ready
	$(INSTALL) $(HASHED) -r $<
	@touch $@

# The pictures of docs/images, from the demo pair; needs pngquant too, and the font Inter where they shall look the same.
screenshots: setup $(VENV)/.console chromium
	@command -v pngquant >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends pngquant < /dev/null
	$(PY) -m tests.console.screenshots

# How CI gets its browser: Debian's package, as root.
chromium:
	@command -v chromium >/dev/null || (apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends chromium < /dev/null)

evaluate: setup
	$(PY) -m models.evaluate

train: setup
	$(PY) -m models.train
	$(PY) -m models.train.export
	$(PY) -m models.exits --model models/demo-cloud --exits 2,4 --form head --rate 0.001 --output models/demo-cloud-exits.safetensors
	$(PY) -m models.evaluate
	$(PY) -m models.exits.evaluation

clean:
	rm -rf $(VENV) $(CLIENTS) $(TOOLS) sbom.json logs models/checkpoints models/demo-split models/*.training .mypy_cache .ruff_cache .pytest_cache
