# Everything that a person or CI runs here.  Needs make, Python >= 3.11 with venv, and the package registries.
#
#   make demo                      the whole way once: back up, break, restore, prove
#   make test                      what CI runs
#   make test-all                  full counts, and what needs a distribution's packages; in resumable parts
#   make bench [ONLY=name] [QUICK=1]
#   make lock | format | clean

SHELL := /bin/sh
.DELETE_ON_ERROR:
.PHONY: demo test test-all check bench lock format clean s3-server patroni brokers debezium help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL = $(BIN)/python -m pip install --quiet --no-input --disable-pip-version-check
# One more than CI has cores: many a test waits for a server, a lease or a clock.
WORKERS ?= 3
SEEDS ?= 20
UV := uv==0.13.9

help:
	@sed -n '3,7s/^# \{0,3\}//p' Makefile

# --- the virtual environment -------------------------------------------------------------------------------

# The mark's name depends on the place: scripts in a virtual environment name it, so a moved one is made anew.
VENV_MADE := $(VENV)/.made-$(shell pwd | cksum | cut -d ' ' -f 1)

$(VENV_MADE):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "pitr needs Python 3.11 or later, and '$(PYTHON)' is not; say which: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	  echo "'$(PYTHON)' has no venv module or no ensurepip; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo-ready: $(VENV_MADE) requirements.lock pyproject.toml
	$(PIP_INSTALL) --require-hashes --only-binary :all: -r requirements.lock
	@# setuptools warns of every editable installation; this one is meant.
	PYTHONWARNINGS=ignore $(PIP_INSTALL) --no-deps --no-build-isolation --no-index --editable .
	@touch $@

# The test lock holds all of the other one, in the same versions.
$(VENV)/.test-ready: $(VENV)/.demo-ready requirements-test.lock
	$(PIP_INSTALL) --require-hashes --only-binary :all: -r requirements-test.lock
	@touch $@

# --- what people run ---------------------------------------------------------------------------------------

demo: $(VENV)/.demo-ready
	$(BIN)/pitr demo $(ARGS)

bench: $(VENV)/.demo-ready
	$(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY)) $(if $(QUICK),--quick)

check: $(VENV)/.test-ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Built once per machine and kept in the user's cache; here, so that no test's own time limit counts it.
s3-server: $(VENV)/.test-ready
	@$(BIN)/python -m cli.demo_versitygw

# Patroni and etcd, in a virtual environment in the user's cache, for the same reason.
patroni: $(VENV)/.test-ready
	@cd tests && ../$(BIN)/python -P -c 'import sys; sys.path[:0] = [".", ".."]; import fix_patroni; fix_patroni.patroni_python()'

# A Java where there is none, Kafka's jars, and Redis.
brokers: $(VENV)/.test-ready
	@cd tests && ../$(BIN)/python -P -c 'import sys; sys.path[:0] = [".", ".."]; import fix_redis; from benchmarks import java_process, kafka_node; java_process.java(); kafka_node.kafka_jars(); fix_redis.redis_server()'

# Debezium's connector: only one slow test needs it.
debezium: brokers
	@cd tests && ../$(BIN)/python -P -c 'import sys; sys.path[:0] = [".", ".."]; import fix_debezium; fix_debezium.debezium_jars()'

# A file's tests share servers, so a worker takes whole files, in their order: those of few and long tests are
# not the last then, with one worker at them and the other idle.
test: check s3-server patroni brokers
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

# --- the full counts -----------------------------------------------------------------------------------------

# A part that passed leaves a stamp under the commit's name and is not run again, and of a part that was stopped
# only what has not passed (what failed, and how, stands in a file beside it); a changed tree has no name to keep a
# stamp under, so all of it always runs.
COMMIT := $(shell git describe --always --dirty --abbrev=16 --exclude '*' 2>/dev/null || echo unknown-dirty)
FULL := --seeds $(SEEDS) --hypothesis-profile=full --timeout 3600
ALL_PARTS = $(sort $(patsubst tests/%/,%,$(dir $(wildcard tests/*/test_*.py))))
# The longest last.
PARTS = $(filter-out integration,$(ALL_PARTS)) apt integration

# The part "apt" fails where a program is missing: what did not run has not passed.
test-all: check s3-server patroni brokers debezium
	@mkdir -p .stamps; rm -f .stamps/*-dirty-*
	@for part in $(PARTS); do \
	  stamp=".stamps/$(COMMIT)-$$part"; \
	  if [ -e "$$stamp" ]; then echo "test-all: $$part passed before at this commit"; continue; fi; \
	  echo "test-all: $$part"; \
	  if [ $$part = apt ]; then set -- tests -m needs_apt; else set -- "tests/$$part" -m 'not needs_apt'; fi; \
	  $(BIN)/python -m pytest "$$@" -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(FULL) \
	    --passed "$$stamp-passed" $(ARGS); status=$$?; \
	  case $$status in 0) touch "$$stamp" ;; 1) failed="$$failed $$part" ;; *) exit $$status ;; esac; \
	done; test -z "$$failed" || { echo "test-all: failed:$$failed" >&2; exit 1; }; echo "test-all: every part passed"

# --- the project's own upkeep ----------------------------------------------------------------------------------

LOCK := .cache/lock-venv/bin/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
  --quiet --custom-compile-command "make lock"

# UPGRADE=1 takes the newest versions; otherwise what is locked stays if it still fits.
lock: $(VENV_MADE)
	test -x .cache/lock-venv/bin/uv || { $(BIN)/python -m venv .cache/lock-venv && \
	  .cache/lock-venv/bin/python -m pip install --quiet --disable-pip-version-check $(UV); }
	$(LOCK) $(if $(UPGRADE),--upgrade) --extra make --extra demo -o requirements.lock
	$(LOCK) $(if $(UPGRADE),--upgrade) --extra make --extra demo --extra pdf --extra test -c requirements.lock -o requirements-test.lock

format: $(VENV)/.test-ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .stamps .cache build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis \
	  .import_linter_cache benchmarks/results.json
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
