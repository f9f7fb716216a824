# Everything a developer types; `make` alone lists it.
.DEFAULT_GOAL := help
.PHONY: help setup dev ort-openvino clients serve test lint fmt bench soak fuzz lock

BIN := .venv/bin
INSTALLED := .venv/.installed
CLIENTS := .venv-clients
ORT_OPENVINO := .venv-ort-openvino
NODE := compat_tests/node
LOCK_INPUTS := pyproject.toml requirements/install.sh requirements/build.txt
COMPILE := UV_SYSTEM_CERTS=true $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s  %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED)-default ## Make .venv and install VMM in it: .venv/bin/vmm
	@:
dev: $(INSTALLED)-dev ## The same, with what the tests need
ort-openvino: $(ORT_OPENVINO)/.installed ## VMM with Intel's build of ONNX Runtime, in .venv-ort-openvino
clients: $(CLIENTS)/.installed $(NODE)/node_modules/.installed ## Clients that cannot share .venv, for the tests

serve: setup ## Start the server; ARGS="--port 8080" passes flags
	@exec $(BIN)/vmm serve $(ARGS)

test: lint clients ort-openvino ## Set up, lint, check types and run all tests, on the real model too
	$(BIN)/pytest -n auto --maxprocesses 4 tests compat_tests $(ARGS)
	$(CLIENTS)/bin/pytest -c compat_tests/third_party.ini compat_tests/third_party compat_tests/deploy compat_tests/test_openai*.py
	$(ORT_OPENVINO)/bin/pytest tests/profiles tests/adapters/test_session_contract.py

lint: dev ## Check the format, the rules and the types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fmt: dev ## Format, and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: dev ## Measure runner, engine and HTTP side by side; ARGS="--help" lists the choices
	$(BIN)/python -m bench $(ARGS)

fuzz: dev ## Give every reader 10,000 mutated inputs; CASES=1000 is how many
	VMM_FUZZ_CASES=$(or $(CASES),10000) $(BIN)/pytest -s tests/fuzz tests/api/test_fuzz.py tests/api/test_schemathesis.py $(ARGS)

soak: dev ## Try to wear a server out; ARGS="--minutes 20" is how long it takes
	$(BIN)/python -m bench.soak $(ARGS)

lock: setup ## Resolve the dependencies anew; ARGS="--upgrade" takes newer versions
	$(COMPILE) $(ARGS) --extra onnxruntime --extra dev pyproject.toml -o requirements/dev.txt
	$(COMPILE) $(ARGS) -c requirements/dev.txt --extra onnxruntime pyproject.toml -o requirements/default.txt
	$(COMPILE) $(ARGS) --override requirements/no-onnxruntime.txt --extra ort-openvino pyproject.toml requirements/ort-openvino.in \
	  -o requirements/ort-openvino.txt
	$(COMPILE) $(ARGS) -c requirements/dev.txt requirements/build.in -o requirements/build.txt
	$(COMPILE) $(ARGS) requirements/clients.in -o requirements/clients.txt

$(INSTALLED)-default: $(LOCK_INPUTS) requirements/default.txt
	requirements/install.sh default
	@touch $@

$(INSTALLED)-dev: $(LOCK_INPUTS) requirements/default.txt requirements/dev.txt
	requirements/install.sh dev
	@touch $(INSTALLED)-default $@

$(ORT_OPENVINO)/.installed: $(LOCK_INPUTS) requirements/ort-openvino.txt
	requirements/install.sh ort-openvino
	@touch $@

$(CLIENTS)/.installed: requirements/install.sh requirements/build.txt requirements/clients.txt
	requirements/install.sh clients
	@touch $@

$(NODE)/node_modules/.installed: $(NODE)/package.json $(NODE)/install.mjs
	@if command -v node >/dev/null && command -v npm >/dev/null; then node $(NODE)/install.mjs && touch $@; \
	else echo "node or npm is not installed: the tests with clients for Node will be skipped"; fi
