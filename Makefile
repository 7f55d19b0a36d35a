# make quickstart   images -> latents -> a trained DiT -> new images, on two CPU cores
# make test         lint, types, import direction, and every test
# Both set up all they need on a fresh Debian or Ubuntu with Python >= 3.11.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: quickstart test drills lint format clean
.DEFAULT_GOAL := quickstart

$(INSTALLED): pyproject.toml constraints.txt
	@quickstart/setup.sh "$(PYTHON)" "$(VENV)"
	@touch $@

# IMAGES=path takes a folder of class folders of your own; OUT=path writes elsewhere.
quickstart: $(INSTALLED)
	@quickstart/run.sh "$(BIN)" "$(or $(OUT),quickstart-output)" "$(IMAGES)"

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/pytest --numprocesses 2 --dist loadfile --durations 15

# Kills at random moments, other numbers of ranks; a line of figures each. KILLS=n for more of them.
drills: $(INSTALLED)
	$(BIN)/python -m tests.drills.encode --kills $(or $(KILLS),25)
	$(BIN)/python -m tests.drills.order
	$(BIN)/python -m tests.drills.train --kills $(or $(KILLS),13)

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) quickstart-output build *.egg-info
