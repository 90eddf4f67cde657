# make run    install into .venv/ and run the main job on the faces that come with the install
# make test   install into .venv/ and run the tests
PYTHON ?= $(firstword $(shell command -v python3.11 python3.12 python3.13 python3))
BIN := .venv/bin

run: .venv/installed
	$(BIN)/python -m compress.pipeline --teacher swin_b --student tiny16

test: .venv/tested
	$(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

slow: .venv/tested
	$(BIN)/pytest -m slow -n auto --dist loadfile --no-loadscope-reorder

lint: .venv/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The stamp is written last, so an install that was cut short is done again.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[openvino]'
	touch $@

# What the tests need beside it: image quality metrics, timm's models, the linters.
.venv/tested: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,quality]'
	touch $@

.PHONY: run test slow lint
