# The real host is found or made by tests/host/provision.py (see there); nothing else is needed but Python 3.10-3.12.
PYTHON ?= python3
HOST_PYTHON = $(shell $(PYTHON) tests/host/provision.py --print python)
HOST_COMFYUI = $(shell $(PYTHON) tests/host/provision.py --print comfyui)

.PHONY: demo test test-fast test-matrix lint format bench

demo: ## the shipped workflow on the real ComfyUI, start to finish: an mp4 and an animated WEBP
	@$(HOST_PYTHON) tests/host/as_package.py tests.host.demo

test: lint ## everything, on the real host (server, executor, Chromium)
	@$(HOST_PYTHON) -m pytest

test-fast: lint ## without the server, the browser and full-size networks
	@$(HOST_PYTHON) -m pytest -m "not slow"

test-matrix: ## the node set and the shipped workflow on every ComfyUI from the oldest declared to the newest
	@$(HOST_PYTHON) -m pytest tests/test_matrix.py --matrix

lint:
	@$(HOST_PYTHON) -m ruff check . && $(HOST_PYTHON) -m ruff format --check .
	@PYTHONPATH=$(HOST_COMFYUI) $(HOST_PYTHON) -m basedpyright --level error --pythonpath $(HOST_PYTHON)

format:
	@$(HOST_PYTHON) -m ruff check --fix . ; $(HOST_PYTHON) -m ruff format .

bench: ## speed against plain, diffusers and the floor; writes tests/benchmarks/README.md
	@$(HOST_PYTHON) tests/host/as_package.py tests.benchmarks.bench
