# `make demo` and `make test` need only Python 3.11 to 3.13 and GNU make: each creates the virtual
# environment .venv first, with the versions of requirements.txt.
PYTHON ?= python3
EXTRAS ?=
BIN := .venv/bin
COMMA := ,
# One stamp for each set of extras, so that asking for more installs more.
STAMP := .venv/.installed$(if $(EXTRAS),-$(subst $(COMMA),-,$(EXTRAS)))
DEMO := runs/demo

# Targets that run in a second make, with more extras.
.PHONY: groups bench-peers verify-here test-jax test-long
.PHONY: help demo test test-all bench bench-devices verify lint sample clean

help:
	@echo "make demo      train on the sample, print BLEU and translations, export, query the export"
	@echo "make test      the fast tests; EXTRAS=parity adds those against PyTorch"
	@echo "make test-all  also the slow tests: process kills, several workers, JAX, the wheel"
	@echo "make test-long what takes longer still"
	@echo "make bench     training and using every model against Hugging Face and KerasHub"
	@echo "make bench-devices  training steps on 1, 2 and 4 replicas against plain Keras"
	@echo "make verify    checks for which we lack GPUs, Docker and a network: please send us its output"
	@echo "make lint      ruff and pyright"
	@echo "make sample    write data/samples again from its grammar"

$(STAMP): pyproject.toml requirements.txt
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"polyhead needs Python 3.11 to 3.13, this is {sys.version.split()[0]}: make PYTHON=python3.11 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.txt -e ".[test$(if $(EXTRAS),$(COMMA)$(EXTRAS))]"
	@touch $@

demo: $(STAMP)
	@POLYHEAD="$(BIN)/polyhead" PYTHON="$(BIN)/python" bash recipes/demo.sh $(DEMO)

# The tests run as groups, each in a process of its own: TensorFlow never frees the functions that it
# has traced, and one process for all of them would need 6 GB. Two run at a time, but the tests of
# replicas alone: their threads wait for each other, and take long beside another process. Each
# group prints its results when it ends. To run some tests: .venv/bin/pytest tests/data
REPLICAS := tests/training/test_replicas.py
COMMAND := tests/recipes/test_command.py
GPT := tests/zoo/test_gpt.py
GROUPS := recipes command training zoo gpt serving others
replicas := $(REPLICAS)
training := tests/training --ignore=$(REPLICAS)
command := $(COMMAND)
recipes := tests/recipes --ignore=$(COMMAND)
gpt := $(GPT)
zoo := tests/zoo --ignore=$(GPT)
serving := tests/serving
others := tests $(patsubst %,--ignore=tests/%,training recipes zoo serving)
PYTEST := $(BIN)/python -m pytest -p no:cacheprovider
TOGETHER := --jobs=2 --keep-going --no-print-directory
# Not in make 3.81, which macOS has.
TOGETHER += $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

test: $(STAMP)
	@$(MAKE) groups MARK="not slow"

test-all:
	@$(MAKE) groups EXTRAS=parity,formats MARK="not long" JAX=test-jax

groups: $(STAMP)
	@status=0; \
	$(MAKE) --no-print-directory test-group-replicas || status=1; \
	$(MAKE) $(TOGETHER) $(JAX) $(GROUPS:%=test-group-%) || status=1; \
	exit $$status

test-long: $(STAMP)
	@$(PYTEST) -m long

test-group-%: $(STAMP)
	@$(PYTEST) $($*) -m "$(MARK)"

test-jax: $(STAMP)
	@KERAS_BACKEND=jax $(PYTEST) tests/layers tests/zoo -m "$(MARK)"

bench:
	$(MAKE) bench-peers EXTRAS=bench

bench-peers: $(STAMP)
	$(BIN)/python bench/translation.py
	$(BIN)/python bench/generation.py
	$(BIN)/python bench/classification.py

bench-devices: $(STAMP)
	$(BIN)/python bench/devices.py

verify:
	$(MAKE) verify-here EXTRAS=hub,parity$(if $(shell command -v nvidia-smi),$(COMMA)gpu)

verify-here: $(STAMP)
	$(BIN)/python bench/verify.py $(VERIFY)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

sample: $(STAMP)
	$(BIN)/python -m polyhead.data.grammar data/samples/translation

clean:
	rm -rf .venv runs
