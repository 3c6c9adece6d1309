# esbflow. `make demo` and `make test` are all a newcomer needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test setup tools bench bench-train lint docs clean bitstream

demo: setup
	$(BIN)/esbflow demo --out build/demo

test: setup
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest --numprocesses auto --dist worksteal

setup: tools $(STAMP)

# The environment is made anew when a requirement changes. Warnings there are about how editable packages are laid out.
# Python compiles what is imported, when it is: all at once would take half of the set-up's time.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 12) else "esbflow needs Python 3.10 to 3.12, and $(PYTHON) is %d.%d; set PYTHON=..." % v)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools wheel
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --no-build-isolation --editable '.[train,saliency,hw,sim,report,interchange,test,docs]'
	@touch $@

# g++ compiles the simulator, Icarus runs the benches, and tclsh the steps of the Vivado flow. They are installed only when missing, and only when allowed.
tools:
	@for tool in g++ iverilog tclsh; do \
	  command -v $$tool >/dev/null && continue; \
	  package=$$tool; test $$tool = tclsh && package=tcl; \
	  if [ "$$ESBFLOW_APT" = 1 ]; then apt-get update -qq && apt-get install -y -qq $$package >/dev/null || exit 1; \
	  elif [ $$tool = g++ ]; then echo "g++ is missing: install it (Debian: apt-get install g++), or allow it with ESBFLOW_APT=1"; exit 2; \
	  else echo "$$tool is missing: tests that need it will be skipped (Debian: apt-get install $$package, or ESBFLOW_APT=1)"; fi; \
	done

# Records what every named engine takes and does in docs/results, and writes docs/performance.md and the README's table.
bench: setup
	$(BIN)/python -m esbhw.performance; measured=$$?; \
	$(BIN)/python -m esbhw.block_records && \
	$(BIN)/python -m sim.benches.benchmarks --out build/bench --record docs/results/engine-simulation.json && \
	$(BIN)/python -m sim.benches.network_on_rtl --record docs/results/resnet18-on-rtl.json && \
	$(BIN)/python -m sim.benches.driver_rate --record docs/results/driver-rate.json && \
	$(BIN)/python -m sim.benches.network_on_pins --baud 10000000 --record docs/results/lenet5-on-pins.json && \
	$(BIN)/python -m esbhw.document && exit $$measured

# Brevitas is measured beside esbflow, in an environment of its own.
BREVITAS := build/brevitas
bench-train: setup
	test -x $(BREVITAS)/bin/python || $(PYTHON) -m venv $(BREVITAS)
	$(BREVITAS)/bin/python -m pip install --quiet --constraint constraints.txt setuptools wheel torch numpy brevitas==0.13.4
	PYTHONPATH=sw $(BREVITAS)/bin/python -m esbflow.studies.benchmarks --out build/bench/training.json

lint: setup
	$(BIN)/ruff check sw hw sim tests docs
	$(BIN)/lint-imports
	$(BIN)/mypy

# Writes the generated pages, then the site: build/site/index.html. Any warning, a link that leads nowhere too, is an error.
docs: setup
	$(BIN)/python -m esbhw.document
	$(BIN)/python -m esbflow.reports.methods_table docs
	$(BIN)/python -m esbflow.reports.passes_table docs
	$(BIN)/python -m esbflow.reports.accuracy docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# BOARD: docs/hardware.md lists them; ulx3s and tang-mega-138k need pip packages alone. ARGUMENTS=--dry-run writes every file only.
BOARD ?= zcu102
ENGINE ?= $(if $(filter ulx3s tang-mega-138k,$(BOARD)),tiny4x4,base16x16)
bitstream: setup
	@$(BIN)/esbflow bitstream --board $(BOARD) --engine $(ENGINE) $(ARGUMENTS) || exit 2

clean:
	rm -rf build
