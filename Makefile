# Every target makes what it needs in .venv; nothing else has to be set up.
PYTHON ?= python3
GPU_PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
VLLM_BIN := .venv-vllm/bin
VLLM_STAMP := .venv-vllm/.installed
DEEPSPEED_BIN := .venv-deepspeed/bin
DEEPSPEED_STAMP := .venv-deepspeed/.installed
QUANTIZED_BIN := .venv-quantized/bin
QUANTIZED_STAMP := .venv-quantized/.installed
TRITON_BIN := .venv-triton/bin
TRITON_STAMP := .venv-triton/.installed
# One thread: the quickstart's model is too small for more, and threads that wait for each other on a busy machine
# cost far more than a second core gains on an idle one.
export OMP_NUM_THREADS ?= 1

.PHONY: $(shell sed -n 's/^\([a-z-]*\):.*[#]# .*/\1/p' $(MAKEFILE_LIST))

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

install: $(STAMP)  ## Make .venv with everything but vLLM

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[train,cli,examples,dev]'
	# Two real vocabularies for the tests, out of sight of transformers, which would use mistral_common.
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target .venv/vocabularies -c constraints.txt \
		dashscope mistral-common
	touch $@

demo: install  ## A small digits run: pages, steps, pictures (a minute and a half on a CPU)
	$(BIN)/python -m rollout_sft.train --config configs/demo.yaml

quickstart: install  ## Train on handwritten digits: two stages, scope window (minutes on a CPU)
	$(BIN)/python -m rollout_sft.train --config configs/quickstart.yaml

quickstart-micro: install  ## The same in scope micro
	$(BIN)/python -m rollout_sft.train --config configs/quickstart-micro.yaml

quickstart-images: install  ## Train on digits drawn as images, a small Qwen3-VL (ten minutes on a CPU)
	$(BIN)/python -m rollout_sft.train --config configs/quickstart-images.yaml

quickstart-images-micro: install  ## The same in scope micro
	$(BIN)/python -m rollout_sft.train --config configs/quickstart-images-micro.yaml

test: install  ## Run the whole test suite
	$(BIN)/python -m pytest -n auto --dist loadscope --cov=packsched --cov-report= --cov-fail-under=99 \
		--doctest-modules packsched tests benchmarks/packsched/test_shapes.py benchmarks/step_time benchmarks/peers benchmarks/waves benchmarks/kernels

test-families: install  ## Every hybrid and image family on one and two ranks; writes benchmarks/results/families.md (half an hour)
	$(BIN)/python -m pytest -m families tests/rollout_sft tests/distributed

test-faults: install  ## Break sixty runs on two ranks and resume them; writes docs/faults.md (half an hour)
	$(BIN)/python -m pytest -s -m faults tests/faults

test-ranks: install  ## The tests with more than two ranks, and every save that fails under FSDP2 (ten minutes)
	$(BIN)/python -m pytest -m ranks tests

test-fuzz: install  ## All random inputs of the fuzz tests, with fixed seeds (minutes)
	FUZZ=whole $(BIN)/python -m pytest -m fuzz tests/fuzz

VERSIONS_TESTED := tests/rollout_sft tests/packsched tests/distributed tests/versions
test-lowest: .venv-lowest/.installed  ## The tests with the lowest versions that pyproject.toml admits (.venv-lowest, 3 GB; half an hour)
	.venv-lowest/bin/python -m pytest -n auto --dist loadscope $(VERSIONS_TESTED)

test-newest: .venv-newest/.installed  ## The same with the newest versions (.venv-newest, 2 GB)
	.venv-newest/bin/python -m pytest -n auto --dist loadscope $(VERSIONS_TESTED)

.venv-lowest/.installed .venv-newest/.installed: .venv-%/.installed: constraints-%.txt pyproject.toml tests/versions/empty_cuda_libraries.py
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --upgrade pip wheel
	.venv-$*/bin/python -m pip install --quiet --no-deps -r constraints-$*.txt
	.venv-$*/bin/python tests/versions/empty_cuda_libraries.py
	.venv-$*/bin/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

# What differs from .venv but for torch, in a folder before it on the path.
NEWEST_FAST := .venv-newest-fast
test-newest-fast: install $(NEWEST_FAST)/.installed  ## A part of test-newest in .venv, with its torch (a minute)
	PYTHONPATH=$(CURDIR)/$(NEWEST_FAST) $(BIN)/python -m pytest -n auto --dist loadscope \
		tests/rollout_sft/model tests/rollout_sft/checks tests/rollout_sft/config/test_releases.py

$(NEWEST_FAST)/.installed: constraints-newest.txt constraints.txt
	rm -rf $(NEWEST_FAST)
	$(BIN)/python -m pip install --quiet --no-deps --target $(NEWEST_FAST) \
		$$(grep -E '^(transformers|accelerate|peft|datasets)==' constraints-newest.txt | grep -Fxv -f constraints.txt)
	touch $@

mutants: install  ## Change single tokens and see whether the tests notice; writes docs/mutants.md (half an hour)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[train,cli,examples,dev,mutants]'
	$(BIN)/python -m tests.mutants

masks: install  ## Probe every model family for leaks between packed segments; writes docs/masks.md (half an hour)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.length_table
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.mask_table

test-vllm: $(VLLM_STAMP)  ## The rollouts against a real vLLM on the CPU, in an environment of its own (.venv-vllm)
	OMP_NUM_THREADS=1 $(VLLM_BIN)/python -m pytest tests/vllm tests/rollout_sft/rollouts/test_live_weights.py

$(VLLM_STAMP): constraints-vllm.txt pyproject.toml tests/vllm/declare_torchvision_ops.py
	$(PYTHON) -m venv .venv-vllm
	$(VLLM_BIN)/python -m pip install --quiet --upgrade pip setuptools wheel
	$(VLLM_BIN)/python -m pip install --quiet --no-deps -r constraints-vllm.txt
	$(VLLM_BIN)/python tests/vllm/declare_torchvision_ops.py
	$(VLLM_BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

test-deepspeed: $(DEEPSPEED_STAMP)  ## DeepSpeed ZeRO 1, 2 and 3 beside DDP on two ranks of a CPU (.venv-deepspeed; minutes)
	DS_ACCELERATOR=cpu $(DEEPSPEED_BIN)/python -m pytest $(DEEPSPEED_TESTS)

test-deepspeed-fast:  ## One training under ZeRO-3 beside DDP, and what is refused (a minute)
	$(MAKE) test-deepspeed DEEPSPEED_TESTS='tests/deepspeed/test_one_cell.py tests/deepspeed/test_refusals.py'

DEEPSPEED_TESTS ?= tests/deepspeed

# Environments that hold one package more than .venv, and see the packages of .venv.
define beside_venv
	$(PYTHON) -m venv $(1)
	echo "import site; site.addsitedir('$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" \
		> "$$($(1)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/packages_of_venv.pth"
	$(1)/bin/python -m pip install --quiet --upgrade setuptools wheel
endef

$(DEEPSPEED_STAMP): $(STAMP)  # built without its kernels: no compiler is needed
	$(call beside_venv,.venv-deepspeed)
	DS_ACCELERATOR=cpu DS_BUILD_OPS=0 $(DEEPSPEED_BIN)/python -m pip install --quiet --no-build-isolation \
		-c constraints.txt 'deepspeed==0.19.8'
	touch $@

test-quantized: $(QUANTIZED_STAMP)  ## QLoRA and 8-bit optimizers with bitsandbytes (.venv-quantized; half a minute)
	$(QUANTIZED_BIN)/python -m pytest tests/rollout_sft/model/test_quantized.py tests/rollout_sft/step/test_optimizers.py

# Not in .venv, where accelerate and peft would import it at every start, with a warning.
$(QUANTIZED_STAMP): $(STAMP)
	$(call beside_venv,.venv-quantized)
	$(QUANTIZED_BIN)/python -m pip install --quiet -c constraints.txt 'bitsandbytes==0.50.2'
	touch $@

check-triton: $(TRITON_STAMP)  ## fla's Triton kernels in Triton's interpreter, without a GPU (.venv-triton; three minutes)
	$(TRITON_BIN)/python -W ignore -m benchmarks.kernels --interpreter

# triton is the version that torch was made for; both packages would otherwise bring a torch with CUDA.
$(TRITON_STAMP): $(STAMP)
	$(call beside_venv,.venv-triton)
	$(TRITON_BIN)/python -m pip install --quiet --no-deps \
		triton==3.7.1 flash-linear-attention==0.6.0 fla-core==0.6.0 einops==0.8.2
	touch $@

test-slurm: $(VLLM_STAMP)  ## Jobs on a real Slurm with two nodes on this machine, vLLM server included (Debian, as root; minutes)
	test -x /usr/sbin/slurmctld || (apt-get update -qq && apt-get install -qq -y --no-install-recommends slurm-wlm munge)
	OMP_NUM_THREADS=1 $(VLLM_BIN)/python -m pytest -m slurm tests/slurm

CONFIG ?= configs/quickstart-vllm-server.yaml
PORT ?= 8000
vllm-server: $(VLLM_STAMP)  ## A vLLM server for the rollouts of CONFIG, on PORT (without a GPU; see docs/vllm.md)
	$(VLLM_BIN)/python -m rollout_sft.serve --config $(CONFIG) --port $(PORT)

quickstart-vllm: $(VLLM_STAMP)  ## The quickstart with rollouts by vLLM in the training process, on the CPU
	$(VLLM_BIN)/python -m rollout_sft.train --config configs/quickstart-vllm.yaml

quickstart-vllm-server: $(VLLM_STAMP)  ## The same with the server of `make vllm-server`
	$(VLLM_BIN)/python -m rollout_sft.train --config configs/quickstart-vllm-server.yaml

lint: install  ## Style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

release-check: install  ## Build sdist and wheel, check them, and use the wheel outside the repository without torch
	.ci/release-check $(BIN)/python

docs: install  ## Build the documentation site in runs/site; a dead link is an error
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	$(BIN)/python -m mkdocs build --quiet

bench: install  ## Every goal of packsched measured, and packsched beside the alternatives (2 minutes)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.packsched

bench-step: install  ## Seconds per optimizer step, from padded batches to the limit, and how they grow, on a CPU (45 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.step_time --preset cpu
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.step_time.growth

bench-gpu:  ## Gradients through the kernels and step times on a GPU, with the python of GPU_PYTHON (ten minutes)
	export CUDA_VISIBLE_DEVICES=0; $(GPU_PYTHON) -m benchmarks.kernels; kernels=$$?; \
		$(GPU_PYTHON) -m benchmarks.step_time --preset gpu --rounds 2 --minutes 8 && exit $$kernels

PRESET ?= cpu
bench-peers: install  ## rollout_sft beside TRL in one table; PRESET=gpu takes the python of GPU_PYTHON (an hour)
	$(if $(filter gpu,$(PRESET)),CUDA_VISIBLE_DEVICES=0 $(GPU_PYTHON),$(BIN)/python) -m benchmarks.peers --preset $(PRESET)

clean:  ## Remove the environments and what runs wrote
	rm -rf .venv .venv-vllm .venv-deepspeed .venv-quantized .venv-triton .venv-lowest .venv-newest .venv-newest-fast runs
