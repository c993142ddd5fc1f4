# make help lists the targets.
PYTHON ?= python3
# Another one beside it: make test PYTHON=python3.13 VENV=.venv-3.13
VENV   ?= .venv
BIN    := $(VENV)/bin
# What the clients of `make test-clients` are installed into; tests/clients/test_clients.py knows both.
OTHERS := .venv-clients .venv-clients-infinity .venv-clients-litellm
INFINITY := .venv-infinity
NODE   := tests/clients/node_modules
PAGE   := tests/grafana/page/node_modules
LOCKER := .venv-lock
LOCK   := deploy/requirements.lock
BUILD_LOCK := deploy/build.lock

.DEFAULT_GOAL := help
.PHONY: help run test test-slow test-providers test-clients test-infinity test-cluster test-browser test-grafana test-deploy screenshots
.PHONY: readme dashboards dashboard-pictures check fmt lock audit bench added cost ledger-cost workers stores transfer coherence sizing memory pauses replica faults hostile limits clean

##@ Every day
help: ## list the targets
	@awk -F ':.*## ' '/^##@ / {printf "%s%s\n", blank, substr($$0, 5); blank = "\n"} /^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' \
	  $(MAKEFILE_LIST)

$(VENV)/python-ok:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; say which with: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "Python's venv module is needed (Debian and Ubuntu: apt install python3-venv)"; exit 1; }
	@touch $@

$(VENV)/run-ok: $(VENV)/python-ok pyproject.toml
	@echo "installing into $(VENV) ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/dev-ok: $(VENV)/python-ok pyproject.toml
	@echo "installing into $(VENV), with what the tests and checks need ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/run-ok

run: $(VENV)/run-ok ## serve on 127.0.0.1:8080, with the demo upstream; flags go in ARGS="--port 9000"
	@exec $(BIN)/embedding-proxy serve $(ARGS)

check: $(VENV)/dev-ok ## lint, format, types, import layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

fmt: $(VENV)/dev-ok ## format the code and mend what the linter can
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

# A process of tests for each core. Where a shell forbids bytecode, each would compile every test and what these import,
# and so would each proxy that they start.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/pytest
PARALLEL := --numprocesses auto --dist worksteal

test: $(VENV)/dev-ok ## all tests, with a real Redis or Valkey; pytest's flags go in ARGS
	@$(PYTEST) $(PARALLEL) $(ARGS)

clean: ## remove the environment and all caches
	rm -rf .venv .venv-3.* $(VENV) $(OTHERS) $(INFINITY) $(LOCKER) $(NODE) $(PAGE) .ci/programs *.egg-info .mypy_cache .pytest_cache .ruff_cache \
	  .hypothesis .import_linter_cache

##@ More tests
test-slow: $(VENV)/dev-ok ## the same with many more random examples, and long loads
	@HYPOTHESIS_PROFILE=slow $(PYTEST) $(PARALLEL) --timeout 1800 \
	  -m 'not (prometheus or browser or cluster or deploy or infinity)' $(ARGS)

# One environment for each file of requirements, since these exclude each other.
$(OTHERS:=/ok): .venv-clients%/ok: tests/clients/requirements%.txt $(VENV)/python-ok
	@echo "installing Python clients into $(@D) ..."
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

$(NODE)/ok: tests/clients/package.json tests/clients/package-lock.json
	@{ command -v node && command -v npm; } >/dev/null || \
	  { echo "node 20 or newer and npm are needed for the JavaScript clients; they were not found in PATH"; exit 1; }
	@echo "installing the JavaScript clients into $(NODE) ..."
	@cd tests/clients && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

test-clients: $(NODE)/ok $(OTHERS:=/ok) $(VENV)/dev-ok ## every client, the larger ones too, as a table; needs node and npm
	@CLIENTS=all $(BIN)/pytest tests/clients/test_clients.py --matrix $(ARGS)

test-browser: $(VENV)/dev-ok ## the status page and pages on another origin in a headless browser; needs chromium and chromedriver
	@$(BIN)/pytest tests/e2e/test_browser.py -m browser $(ARGS)

test-providers: $(VENV)/dev-ok ## what was tried of each provider, as a table
	@$(BIN)/pytest tests/e2e/test_providers.py --matrix $(ARGS)

test-grafana: $(VENV)/dev-ok ## dashboards and alerts with a real Prometheus; needs prometheus and promtool
	@$(BIN)/pytest tests/grafana -m prometheus $(ARGS)

$(INFINITY)/ok: tests/infinity/requirements.txt $(VENV)/python-ok
	@echo "installing Infinity, torch and a model into $(INFINITY), which takes 1.5 GB or more ..."
	@$(PYTHON) -m venv $(INFINITY)
	@$(INFINITY)/bin/pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

test-infinity: $(INFINITY)/ok $(VENV)/dev-ok ## a real Infinity behind the proxy; installs it with torch, 1.5 GB or more
	@$(BIN)/pytest tests/infinity -m infinity $(ARGS)

test-cluster: $(VENV)/dev-ok ## failovers and resharding of real clusters and sentinels, Redis and Valkey, under load
	@$(BIN)/pytest tests/e2e/test_redis_failover.py -m cluster $(ARGS)

test-deploy: $(VENV)/dev-ok ## deploy/ by the programs that read it; needs kustomize, helm, nginx, promtool, systemd
	@$(BIN)/pytest tests/deploy -m deploy $(ARGS)

##@ Files that are generated
readme: $(VENV)/dev-ok ## write README's table of options, from proxy/cli/options/table.py
	@$(BIN)/python -m tests.support.readme

screenshots: $(VENV)/dev-ok ## pictures of the status page under load, into docs/; needs chromium and chromedriver
	@$(BIN)/python -m tests.support.browser docs

dashboards: $(VENV)/dev-ok ## write the dashboards' JSON, from grafana/source
	@$(BIN)/python -m grafana.source

$(PAGE)/ok: tests/grafana/page/package.json tests/grafana/page/package-lock.json
	@{ command -v node && command -v npm; } >/dev/null || \
	  { echo "node 20 or newer and npm are needed for Grafana's components; they were not found in PATH"; exit 1; }
	@echo "installing Grafana's components into $(PAGE) ..."
	@cd tests/grafana/page && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

dashboard-pictures: $(PAGE)/ok $(VENV)/dev-ok ## pictures of the dashboards, six minutes; needs prometheus, chromium, chromedriver, node, npm
	@$(BIN)/python -m tests.grafana.pictures grafana/pictures

##@ Dependencies
$(LOCKER)/ok: $(VENV)/python-ok
	@echo "installing pip-tools and pip-audit into $(LOCKER) ..."
	@$(PYTHON) -m venv $(LOCKER)
	@$(LOCKER)/bin/pip install --quiet --disable-pip-version-check 'pip-tools>=7.5' 'pip-audit>=2.9'
	@touch $@

# What pip was told of this machine stays out.
COMPILE := env -u PIP_FIND_LINKS -u PIP_EXTRA_INDEX_URL PIP_CONFIG_FILE=/dev/null $(LOCKER)/bin/pip-compile --quiet \
  --upgrade --no-config --generate-hashes --strip-extras --no-header --no-emit-options --annotation-style line
# The oldest Python resolves to what all newer ones can install, too.
lock: $(LOCKER)/ok ## pin what the container installs and is built with, by hash; with the oldest Python: PYTHON=python3.11
	@$(LOCKER)/bin/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "locking takes Python 3.11, the oldest: rm -r $(LOCKER) and make lock PYTHON=python3.11"; exit 1; }
	@$(COMPILE) --extra fast --output-file $(LOCK) pyproject.toml
	@$(COMPILE) --allow-unsafe --build-deps-for wheel --only-build-deps --output-file $(BUILD_LOCK) pyproject.toml
	@for file in $(LOCK) $(BUILD_LOCK); do { \
	  echo "# By make lock, from pyproject.toml: for Python 3.11.4 or newer on Linux, pip install --require-hashes -r"; \
	  cat $$file; } > $$file.new && mv $$file.new $$file; done

audit: $(LOCKER)/ok ## known vulnerabilities of what the container installs; asks PyPI, with ARGS="-s osv" OSV
	@$(LOCKER)/bin/pip-audit --disable-pip --require-hashes -r $(LOCK) $(ARGS)

##@ Measurements
bench: $(VENV)/dev-ok ## CPU time of every path against bare aiohttp; needs wrk; ROWS=fresh,miss/1: only those
	@$(BIN)/python -m bench.paths --rows "$(ROWS)" $(ARGS)

added: $(VENV)/dev-ok ## the latency that the proxy adds to a lone miss, direct against through
	@$(BIN)/python -m bench.added $(ARGS)

cost: $(VENV)/dev-ok ## what metrics, the log of requests and traces take off hit throughput; needs wrk
	@$(BIN)/python -m bench.cost $(ARGS)

ledger-cost: $(VENV)/dev-ok ## what telling clients apart adds to the CPU time of a hit
	@$(BIN)/python -m bench.ledger_cost $(ARGS)

workers: $(VENV)/dev-ok ## hit throughput of several workers against one; needs wrk
	@$(BIN)/python -m bench.workers $(ARGS)

stores: $(VENV)/dev-ok ## items a second from one Redis and from a cluster, and what an item weighs in Redis
	@$(BIN)/python -m bench.stores $(ARGS)

transfer: $(VENV)/dev-ok ## a whole SQLite store into a file and into Redis, as a multiple of reading it
	@$(BIN)/python -m bench.transfer $(ARGS)

coherence: $(VENV)/dev-ok ## when every process serves what was refreshed or purged, on each store, and with Redis killed
	@$(BIN)/python -m bench.coherence $(ARGS)

sizing: $(VENV)/dev-ok ## what an item weighs in each tier; ARGS=trace.gz: what share of it a size answers
	@$(BIN)/python -m bench.sizing $(ARGS)

memory: $(VENV)/dev-ok ## memory of a proxy while a million items go through it, half an hour; ARGS="--items 100000" for less
	@$(BIN)/python -m bench.memory --plot docs/memory.svg $(ARGS)

pauses: $(VENV)/dev-ok ## the longest hit by how many entries are cached, up to a million
	@$(BIN)/python -m bench.pauses $(ARGS)

replica: $(VENV)/dev-ok ## what one replica asks of Redis; needs wrk
	@$(BIN)/python -m bench.replica $(ARGS)

faults: $(VENV)/dev-ok ## what failures cost, a few minutes; ARGS=--quick for a tenth of it
	@$(BIN)/python -m bench.faults $(ARGS)

limits: $(VENV)/dev-ok ## jobs under rate limits of every kind, direct and through the proxy, some ten minutes; ARGS=--quick for less
	@$(BIN)/python -m bench.limits $(ARGS)

hostile: $(VENV)/dev-ok ## what slow and too many clients cost, a few minutes; ARGS=--quick for less
	@$(BIN)/python -m bench.hostile $(ARGS)
