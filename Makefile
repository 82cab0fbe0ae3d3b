# The real host is found or made by tests/host/provision.py (see there); nothing else is needed but Python 3.10-3.12.
PYTHON ?= python3
SHELL = /bin/sh -e
WORKERS ?= 2 # one takes up to 16 GB, for the full-size networks, the other 4
# glibc gives large blocks back to the system at once; mapping them anew each step costs a quarter of the time
REUSE_MEMORY = MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=8000000000 MALLOC_TOP_PAD_=268435456
PROVISION = host=$$($(PYTHON) tests/host/provision.py --print python); comfyui=$$($(PYTHON) tests/host/provision.py --print comfyui)

.PHONY: help-pictures demo demo-eval demo-models demo-sparse proof proof-stages test test-fast test-matrix lint format bench bench-training bench-motion-module bench-windows bench-sparsectrl bench-decoding

demo: ## a prompt becomes an mp4 and an animated WEBP, on the real ComfyUI: make demo PROMPT="a blue square moving left"
	@$(PROVISION); "$$host" tests/host/as_package.py tests.host.demo "$(PROMPT)"

demo-eval: ## does what is asked for appear, and move as asked? Writes tests/demo/README.md
	@$(PROVISION); "$$host" tests/host/as_package.py tests.demo.evaluate; "$$host" tests/host/as_package.py tests.demo.banner

demo-models: ## the demo's models again from nothing: about 4 hours on two cores with bfloat16; goes on where it was stopped
	@$(PROVISION); $(REUSE_MEMORY) "$$host" tests/host/as_package.py tests.demo.make_models; \
	"$$host" tests/host/as_package.py tests.demo.evaluate

demo-sparse: ## do clips begin and end at the pictures that a SparseCtrl is shown? Writes tests/demo/SPARSECTRL.md
	@$(PROVISION); "$$host" tests/host/as_package.py tests.demo.held

proof: ## does MotionDirector learn a clip's motion, and only that? Writes tests/demo/MOTIONDIRECTOR.md
	@$(PROVISION); $(REUSE_MEMORY) "$$host" tests/host/as_package.py tests.demo.proof

proof-stages: ## does a domain adapter take up a watermark, a MotionLoRA made from stills zoom, a module of two processes move? Writes tests/demo/STAGES.md
	@$(PROVISION); $(REUSE_MEMORY) "$$host" tests/host/as_package.py tests.demo.stages

test: lint ## everything, on the real host (server, executor, Chromium)
	@$(PROVISION); OMP_NUM_THREADS=1 "$$host" -m pytest --numprocesses $(WORKERS) --dist loadscope --no-loadscope-reorder

test-fast: lint ## what takes a second or two: without the server, the browser, full-size networks and whole trainings
	@$(PROVISION); OMP_NUM_THREADS=1 "$$host" -m pytest --numprocesses $(WORKERS) --dist loadscope -m "not slow"

test-matrix: ## the node set and the shipped workflow on every ComfyUI from the oldest declared to the newest
	@$(PROVISION); "$$host" -m pytest tests/test_matrix.py --matrix

lint:
	@$(PROVISION); "$$host" -m ruff check .; "$$host" -m ruff format --check .; \
	PYTHONPATH="$$comfyui" "$$host" -m basedpyright --level error --pythonpath "$$host"

format:
	@$(PROVISION); "$$host" -m ruff format .; "$$host" -m ruff check --fix .

help-pictures: ## the picture of every help page, of the real front end; of some nodes: make help-pictures NODES="Curve FreeInit"
	@$(PROVISION); "$$host" tests/host/as_package.py tests.host.help_pictures $(NODES)

bench: ## speed against plain, diffusers and the floor; writes tests/benchmarks/README.md
	@$(PROVISION); "$$host" tests/host/as_package.py tests.benchmarks.bench

bench-training: ## time and memory of a training step, ours against the peers' way; writes tests/benchmarks/TRAINING.md
	@$(PROVISION); $(REUSE_MEMORY) "$$host" tests/host/as_package.py tests.benchmarks.training

bench-motion-module: ## time and memory of a step of stage 2, ours against the original's recipe; writes tests/benchmarks/MOTION_MODULE.md
	@$(PROVISION); $(REUSE_MEMORY) "$$host" tests/host/as_package.py tests.benchmarks.motion_module

bench-windows: ## time and memory of long clips in context windows; writes tests/benchmarks/WINDOWS.md
	@$(PROVISION); "$$host" tests/host/as_package.py tests.benchmarks.windows

bench-decoding: ## frames a second and core that come out of videos, against decord; writes tests/benchmarks/DECODING.md
	@$(PROVISION); "$$host" tests/host/as_package.py tests.benchmarks.decoding

bench-sparsectrl: ## what SparseCtrl adds to an evaluation, in time and FLOPs; writes tests/benchmarks/SPARSECTRL.md
	@$(PROVISION); "$$host" tests/host/as_package.py tests.benchmarks.sparsectrl
