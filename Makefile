# The real host is found or made by tests/host/provision.py (see there); nothing else is needed but Python 3.10-3.12.
PYTHON ?= python3
SHELL = /bin/sh -e
PROVISION = host=$$($(PYTHON) tests/host/provision.py --print python); comfyui=$$($(PYTHON) tests/host/provision.py --print comfyui)

.PHONY: demo test test-fast test-matrix lint format bench

demo: ## the shipped workflow on the real ComfyUI, start to finish: an mp4 and an animated WEBP
	@$(PROVISION); "$$host" tests/host/as_package.py tests.host.demo

test: lint ## everything, on the real host (server, executor, Chromium)
	@$(PROVISION); "$$host" -m pytest

test-fast: lint ## without the server, the browser and full-size networks
	@$(PROVISION); "$$host" -m pytest -m "not slow"

test-matrix: ## the node set and the shipped workflow on every ComfyUI from the oldest declared to the newest
	@$(PROVISION); "$$host" -m pytest tests/test_matrix.py --matrix

lint:
	@$(PROVISION); "$$host" -m ruff check .; "$$host" -m ruff format --check .; \
	PYTHONPATH="$$comfyui" "$$host" -m basedpyright --level error --pythonpath "$$host"

format:
	@$(PROVISION); "$$host" -m ruff format .; "$$host" -m ruff check --fix .

bench: ## speed against plain, diffusers and the floor; writes tests/benchmarks/README.md
	@$(PROVISION); "$$host" tests/host/as_package.py tests.benchmarks.bench
