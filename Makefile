# Two commands are enough: `make run` executes the notebooks, `make test` checks everything.
# Both build .venv first when it is missing or when the lock has changed.

PYTHON ?= python3
PROFILE ?= smoke
ONLY ?=
ARGS ?=

BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: run test evidence notebooks refresh bench lint clean help

# The stamp is written last, so an installation that failed is tried again by the next call.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is missing or older than 3.11; name a newer one: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; \
	  exit 1; }
	@echo "installing requirements.lock into .venv (a few minutes, once)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

run: $(STAMP)  ## execute the notebooks into runs/PROFILE/ [PROFILE=smoke] [ONLY=04] [ARGS="-p SEED 3"]
	$(BIN)/python -m icrm_lib.run --profile "$(PROFILE)" $(if $(ONLY),--only "$(ONLY)") $(ARGS)

test: $(STAMP)  ## run tests/, then execute every notebook and compare it with its stored outputs
	$(BIN)/python -m pytest
	$(BIN)/python -m pytest --nbval notebooks

evidence: $(STAMP)  ## run the cells of the evidence that are not recorded yet, into results/PROFILE/ [PROFILE=lab] [ONLY=main]
	$(BIN)/python -m icrm_lib.experiments --profile "$(if $(filter file,$(origin PROFILE)),lab,$(PROFILE))" --only "$(ONLY)"

# Left to itself JupyterLab fetches news and updates from the network.
notebooks: $(STAMP)  ## open JupyterLab at notebooks/
	$(BIN)/python -m jupyterlab --LabApp.news_url=None \
	  --LabApp.check_for_updates_class=jupyterlab.handlers.announcements.NeverCheckForUpdate notebooks

refresh: $(STAMP)  ## execute the notebooks again and store their outputs in place [ONLY=04]
	$(BIN)/python -m icrm_lib.run --refresh $(if $(ONLY),--only "$(ONLY)")

# rewardbench_package.py needs a second environment and is run by hand.
bench: $(STAMP)  ## run the scripts in benchmarks/; each prints one JSON record
	@for script in $(filter-out %/rewardbench_package.py,$(sort $(wildcard benchmarks/*.py))); do \
	  echo "$$script" >&2; $(BIN)/python "$$script" || exit 1; done

lint: $(STAMP)  ## check style and formatting, notebooks included
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

clean:  ## remove executed notebooks, checkpoints and caches; keep .venv
	rm -rf runs .pytest_cache .ruff_cache .hypothesis build *.egg-info
	find icrm_lib tests notebooks benchmarks \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} + 2>/dev/null || true

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
