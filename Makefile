# make demo and make test do all of their own set-up on a machine with Python >= 3.10.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := $(VENV)/.tzn-demo
STAMP := $(VENV)/.tzn-installed
KERNELS := $(wildcard csrc/*.h csrc/*/*.cpp csrc/*/*.h csrc/*/*/*.h)

.PHONY: demo test docs notebooks dist check-dist test-simd test-arm64 test-extractors evidence-smoke sanitize lint aot carry \
  bench bench-ops clean wheel wheel-cuda cuda

demo: $(DEMO)
	$(BIN)/tzn demo --out demo

# Two test files at a time. Threads that wait for each other sleep: spinning, four on two cores take ten times as long.
PYTEST := env OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -q -n 2 --dist loadfile

# Triton's interpreter is chosen when Triton is imported, so its tests are a process of their own.
test: $(STAMP)
	$(PYTEST) --ignore=tests/kernels --ignore=tests/evidence --ignore=tests/extractors
	TRITON_INTERPRET=1 $(PYTEST) --dist worksteal tests/kernels tests/ops

# torchvision and timm, which must not lie in the environment itself (tests/extractors says why).
EXTRACTORS := build/extractors
test-extractors: $(STAMP)
	$(BIN)/python -m pip install --quiet --upgrade --no-deps -c constraints.txt --target $(EXTRACTORS) torchvision timm
	PYTHONPATH=$(EXTRACTORS) $(BIN)/python -m pytest -q tests/extractors

# The tests whose numbers depend on the instruction set, once per SIMD level below the machine's own.
test-simd: $(STAMP)
	env OMP_WAIT_POLICY=passive $(BIN)/python tests/simd_levels.py

# The kernels for arm64 (NEON), built by a cross compiler, and the op tests on them in an emulator: an hour of one core.
test-arm64: $(STAMP)
	$(BIN)/python tests/arm64.py

# Every program of benchmarks/evidence on tiny settings, and the directions that theory or counting make certain.
evidence-smoke: $(STAMP)
	$(PYTEST) tests/evidence

# The CPU kernels built with AddressSanitizer and UBSan, beside the normal ones, and the op and fuzz tests on them.
SANITIZED := build/sanitize
sanitize: $(STAMP)
	TZN_SANITIZE=1 TZN_BUILD=1 $(BIN)/python setup.py -q build_ext --build-lib $(SANITIZED)/lib --build-temp $(SANITIZED)/temp
	env TZN_NATIVE_LIBRARY=$(CURDIR)/$(SANITIZED)/lib/tzn/_native.abi3.so TZN_REQUIRE_NATIVE=1 \
	  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
	  LD_PRELOAD=$$(gcc -print-file-name=libasan.so):$$(gcc -print-file-name=libubsan.so) \
	  $(BIN)/python -m pytest -q tests/ops

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site in build/site: warnings are errors, then every link and anchor of every page is followed.
docs: $(STAMP)
	env NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict  # --quiet would hide warnings from --strict
	$(BIN)/python docs/site/links.py build/site

# Notebooks run anew, with their outputs written into them.
notebooks: $(STAMP)
	$(BIN)/python docs/notebooks/execute.py

# Under 10 minutes on 2 cores; tables and pictures go to benchmarks/results.
bench: $(STAMP)
	$(BIN)/python -m benchmarks.flops
	$(BIN)/python -m benchmarks.latency
	$(BIN)/python -m benchmarks.plot_latency
	$(BIN)/python -m benchmarks.score

# The compiled CPU kernels beside their peers, with what each is to reach: two minutes.
bench-ops: $(STAMP)
	$(BIN)/python -m benchmarks.ops

# Every Triton kernel compiled for GPUs that are not here; TZN_AOT=all: every dtype and head width. TRITON=3.6.0: by that
# version, laid beside the environment's own.
TRITON ?=
aot: $(STAMP)
ifneq ($(TRITON),)
	$(BIN)/python -m pip install --quiet --upgrade --no-deps --target build/triton-$(TRITON) triton==$(TRITON)
endif
	env $(if $(TRITON),PYTHONPATH=build/triton-$(TRITON)) $(BIN)/python -m benchmarks.aot

# What a GPU machine without a network needs beside the sources for benchmarks/run_gpu.sh: the compiled libraries, and the
# packages that torch does not bring, for CARRY_PYTHON on x86-64 Linux. Copy the tree with tzn/*.so and build/carry.
CARRY := build/carry
CARRY_PYTHON ?= 3.12
carry: $(STAMP)
	TZN_BUILD=1 TZN_CUDA=1 $(BIN)/python setup.py -q build_ext --inplace
	rm -rf $(CARRY)
	$(BIN)/python -m pip install --quiet --no-compile --target $(CARRY) -c constraints.txt --only-binary=:all: \
	  --python-version $(CARRY_PYTHON) --implementation cp --platform manylinux2014_x86_64 --platform manylinux_2_28_x86_64 \
	  pydantic PyYAML tqdm
	@du -sh $(CARRY); ls -l tzn/*.so

# One abi3 wheel for Python >= 3.10 and torch >= 2.10; a kernel that does not compile is an error here.
wheel: $(STAMP)
	rm -rf build dist
	TZN_BUILD=1 $(BIN)/python -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist .
	@ls -l dist

# Source distribution and wheel, by the pinned tools of .ci/build-requirements.txt in an environment of their own.
TOOLS := build/tools
dist: wheel
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --require-hashes -r .ci/build-requirements.txt
	TZN_BUILD=0 $(TOOLS)/bin/python -m build --sdist --no-isolation --outdir dist . > build/sdist.log || { cat build/sdist.log; exit 1; }

# What a release would publish: metadata, symbols, contents, and the op tests on the installed wheel from elsewhere.
check-dist: dist
	$(TOOLS)/bin/twine check --strict dist/*
	$(TOOLS)/bin/abi3audit --strict --summary dist/*.whl
	$(BIN)/python .ci/check_contents.py dist
	.ci/check_wheel dist/*.whl --here $(BIN)/python

# The CUDA kernels compiled with nvcc, and what each takes: registers, spills (an error), shared memory. No GPU needed.
cuda: $(STAMP)
	$(BIN)/python csrc/cuda/build_cuda.py

# The same wheel with the CUDA library in it; its file name carries the build number 1cuda.
wheel-cuda:
	TZN_CUDA=1 $(MAKE) wheel

# torch comes first and pinned: what depends on it must not pull another one. NumPy with it: torch warns without. A visitor who
# looks at the demo needs a third of the packages that a contributor does.
$(DEMO): pyproject.toml setup.py constraints.txt $(KERNELS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "tzn needs Python >= 3.10, but $(PYTHON) is $$($(PYTHON) --version 2>&1); try: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --upgrade pip setuptools wheel
	$(BIN)/python -m pip install -qq -c constraints.txt torch numpy
	env PYTHONWARNINGS=ignore $(BIN)/python -m pip install -qq --no-build-isolation -c constraints.txt -e '.[train,plot]'
	@touch $@

# tzn is there already, so this adds what its extras need, and compiles nothing again.
$(STAMP): $(DEMO)
	$(BIN)/python -m pip install -qq -c constraints.txt 'tzn[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist demo *.egg-info .pytest_cache .mypy_cache .ruff_cache
