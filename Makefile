# The two commands of the README are `make serve` and `make test`; each makes .venv first when it is missing or outdated.
PYTHON ?= python3
BIN := .venv/bin
CONFIG ?= serve_config.yaml

# A proxy in the environment is for the hub and the package index: what is on this machine is asked directly.
comma := ,
NO_PROXY := 127.0.0.1,localhost$(addprefix $(comma),$(or $(NO_PROXY),$(no_proxy)))
no_proxy := $(NO_PROXY)
export NO_PROXY no_proxy

.PHONY: serve deploy status test unit faults long plans startup chaos autoscale bench fleet miniature-check acceptance manifests clients check format lock clean

# Runs `serve run` with its output in a log file, on a port that no other program uses: Serve would share it.
serve: .venv/installed
	$(BIN)/python -m serve_app.ops.launch $(CONFIG)

# Ray 2.60 wants the token that it keeps in ~/.ray/auth_token. `serve run` sends it by itself, the two commands below only when told so.
deploy: .venv/installed
	RAY_AUTH_MODE=token $(BIN)/serve deploy $(CONFIG)

status: .venv/installed
	RAY_AUTH_MODE=token $(BIN)/serve status

# Three pytest processes at once, then the coverage of two of them; plain `.venv/bin/pytest` runs everything in one.
test: .venv/installed
	$(BIN)/python -m tests.support.parts

# The tests that need no database server, model or network: under a minute.
unit: .venv/installed
	$(BIN)/pytest tests/unit

# Every fault that a review found in the first version, row by row, and what happens now.
faults: .venv/installed
	$(BIN)/python -m tests.support.faults

long: .venv/installed
	$(BIN)/pytest -m 'long and not plans' -s

# A thousand plans of a random language model, and a thousand of the toy model's: up to ten minutes. `make long` makes a hundred of each.
plans: .venv/installed
	$(BIN)/pytest -m plans -s tests/integration/test_planner.py tests/integration/test_miniature_planner.py

startup: .venv/installed
	$(BIN)/pytest -m startup -s

chaos: .venv/installed
	$(BIN)/python -m tests.support.chaos --database sqlite --events 25 --seed 5
	$(BIN)/python -m tests.support.chaos --database postgresql --events 25 --seed 6

# Ray's node autoscaler on its fake provider; start it alone, as it takes all of a small machine.
autoscale: .venv/installed
	$(BIN)/python -m tests.support.autoscale

bench: .venv/installed
	$(BIN)/python -m benchmarks.burst
	$(BIN)/python -m benchmarks.store
	$(BIN)/python -m benchmarks.long_queue
	$(BIN)/python -m benchmarks.runpod_backlog
	$(BIN)/python -m benchmarks.followers
	$(BIN)/python -m benchmarks.codecs

# Simulates the autoscaling policy beside others, then writes the tables and the picture of docs/FLEET.md.
fleet: .venv/installed
	$(BIN)/python -m benchmarks.fleet

# Asks for 100 songs of the packaged model, and prints how often they are in the key, at the tempo … that was asked for; then for 40 songs
# without planned codes and on them.
miniature-check: .venv/installed
	$(BIN)/python -m miniature evaluate
	$(BIN)/python -m miniature evaluate --codes --songs 40

# Plays every task of MODEL (a model of serve_config.yaml, `embedded`, a hub repository or a folder) and writes a report to attach to
# an issue. ARGS has further options: `make acceptance MODEL=owner/name ARGS='--dit acestep-v15-sft'`.
acceptance: .venv/installed
	$(BIN)/python -m benchmarks.acceptance "$(MODEL)" $(ARGS)

manifests: .venv/installed .venv-skypilot/installed
	$(BIN)/pytest -m manifests

# The real client packages of other services against a running Sophia.
clients: .venv/installed .venv-clients/installed tests/javascript/node_modules/installed
	$(BIN)/pytest $(wildcard tests/integration/test_*_package.py)

.venv-clients/installed: tests/clients.txt
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/pip install --quiet --disable-pip-version-check -r tests/clients.txt
	@touch $@

tests/javascript/node_modules/installed: tests/javascript/package-lock.json
	@command -v npm >/dev/null || { echo "The JavaScript clients need Node.js 20 or newer and npm; on Debian or Ubuntu: apt-get install nodejs npm" >&2; exit 1; }
	cd tests/javascript && npm ci --no-audit --no-fund
	@touch $@

# SkyPilot wants older versions of what Ray needs, so it has an environment of its own.
.venv-skypilot/installed:
	$(PYTHON) -m venv .venv-skypilot
	.venv-skypilot/bin/pip install --quiet --disable-pip-version-check 'skypilot==0.14.1'
	@touch $@

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.venv/installed: pyproject.toml constraints.txt client/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Sophia needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "Python cannot make virtual environments; on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' -e ./client
	@touch $@

lock: .venv/installed
	@sed -n '/^#/p' constraints.txt > constraints.new
	@$(BIN)/pip freeze --exclude-editable | grep -v -i '^\(pip\|setuptools\|sophia\)' | sed 's/+cpu$$//' >> constraints.new
	@mv constraints.new constraints.txt

clean:
	rm -rf .venv
