# Set-up, tests and the main job. `make` alone lists the targets.
#
# Assumes Debian 12 (apt packages in apt.txt, Python 3.11 at /usr/bin/python3). The virtual environment sees Debian's
# packages, because bcc exists only there. Every target may be repeated: what is already in place is left alone.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

SYSTEM_PYTHON := /usr/bin/python3
VENV := $(CURDIR)/.venv
PYTHON := $(VENV)/bin/python
VCG := $(VENV)/bin/vcg
LOCK_OPTIONS := --extra dev --strip-extras --generate-hashes --allow-unsafe \
	--no-emit-index-url --no-emit-find-links --no-emit-trusted-host

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

.PHONY: root
root:
	@if [ "$$(id -u)" -ne 0 ]; then
		echo "not root: cgroups, mounts, loop devices and BPF need root (run the same make as root, or with sudo)" >&2
		exit 1
	fi

.PHONY: packages
packages:
	@if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
		echo "apt-get or dpkg-query not found: this set-up is written for Debian 12. On another system install the" \
			"counterparts of the packages in apt.txt, then see the steps of 'setup' in the Makefile" >&2
		exit 1
	fi
	missing=()
	for package in $$(sed 's/#.*//' apt.txt); do
		status=$$(dpkg-query --show --showformat='$${db:Status-Status}' "$$package" 2>/dev/null || true)
		if [ "$$status" != installed ]; then missing+=("$$package"); fi
	done
	if [ "$${#missing[@]}" -eq 0 ]; then exit 0; fi
	if [ "$$(id -u)" -ne 0 ]; then
		echo "not root, and these Debian packages are missing: $${missing[*]}" \
			"(as root: apt-get install $${missing[*]})" >&2
		exit 1
	fi
	echo "installing Debian packages: $${missing[*]}"
	export DEBIAN_FRONTEND=noninteractive
	if ! { apt-get -qq update && apt-get -qq install --yes --no-install-recommends "$${missing[@]}"; }; then
		echo "apt-get could not install: $${missing[*]} (are its sources in /etc/apt reachable?)" >&2
		exit 1
	fi
	if [[ " $${missing[*]} " == *" redis-server "* ]]; then # only its program is wanted, not the service of the host
		update-rc.d redis-server disable
		invoke-rc.d redis-server stop
	fi

# An environment is rebuilt when it was made elsewhere (its scripts hold absolute paths), by another Python, or without
# a sight of Debian's packages; some installers switch the latter off silently.
.PHONY: setup
setup: packages ## install what is missing: Debian packages, .venv, locked requirements, the project; compile
	@if [ ! -x $(SYSTEM_PYTHON) ] || ! $(SYSTEM_PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
		echo "$(SYSTEM_PYTHON): Python 3.11 or newer expected (Debian 12 has it as package python3)" >&2
		exit 1
	fi
	environment="$(CURDIR) $$($(SYSTEM_PYTHON) --version)"
	if [ "$$(cat $(VENV)/environment.stamp 2>/dev/null || true)" != "$$environment" ] ||
		! grep -qx 'include-system-site-packages = true' $(VENV)/pyvenv.cfg; then
		echo "making $(VENV)"
		$(SYSTEM_PYTHON) -m venv --clear --system-site-packages $(VENV)
		echo "$$environment" >$(VENV)/environment.stamp
	fi
	if ! cmp -s requirements.lock $(VENV)/requirements.stamp; then
		echo "installing requirements.lock"
		$(PYTHON) -m pip --disable-pip-version-check --quiet install --require-hashes --requirement requirements.lock
		cp requirements.lock $(VENV)/requirements.stamp
	fi
	if ! cmp -s pyproject.toml $(VENV)/project.stamp || [ ! -x $(VCG) ]; then
		echo "installing the project, editable"
		$(PYTHON) -m pip --disable-pip-version-check --quiet install --no-deps --no-build-isolation --editable .
		cp pyproject.toml $(VENV)/project.stamp
	fi
	if ! $(PYTHON) -c 'import bcc'; then
		echo "$(PYTHON) cannot import bcc: is Debian's python3-bpfcc of the same Python? (apt-get install" \
			"--reinstall python3-bpfcc; rm -r .venv; make setup)" >&2
		exit 1
	fi
	if ! $(PYTHON) -c 'import sys; from vcg import compiled; sys.exit(not compiled.is_built())'; then
		echo "compiling the orchestrator's rounds"
		mkdir -p .build
		if ! $(PYTHON) -m vcg.compiled >.build/compile.log 2>&1; then
			cat .build/compile.log >&2
			echo "could not compile vcg/tokens.py and vcg/rounds.py (are gcc and python3-dev there?)" >&2
			exit 1
		fi
	fi

.PHONY: quickstart
quickstart: root setup ## the main job: set up, check the host, run the quick sweep, leave a report under results/
	@$(VCG) doctor --quick
	$(VCG) sweep run quick --out "results/quickstart-$$(date -u +%Y%m%dT%H%M%SZ)"

.PHONY: test
test: root setup ## set up, then all tests on the real kernel, with the audit for leftovers at the end
	@$(PYTHON) -m pytest tests/unit tests/host

.PHONY: lint
lint: setup ## ruff (rules and format) and mypy --strict
	@$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

.PHONY: bench
bench: root setup ## every benchmark, one after another; JSON under results/bench/
	@mkdir -p results/bench
	for name in $$($(VCG) bench --list | awk '{ print $$1 }'); do
		echo "bench $$name"
		$(VCG) bench "$$name" --out "results/bench/$$name.json"
	done

.PHONY: lock
lock: ## resolve pyproject.toml anew into requirements.lock, with hashes
	@scratch=$$(mktemp -d)
	trap 'rm -rf "$$scratch"' EXIT
	$(SYSTEM_PYTHON) -m venv "$$scratch"
	"$$scratch/bin/python" -m pip --disable-pip-version-check --quiet install pip-tools
	CUSTOM_COMPILE_COMMAND='make lock' "$$scratch/bin/pip-compile" --quiet $(LOCK_OPTIONS) \
		--output-file requirements.lock pyproject.toml

.PHONY: clean
clean: ## remove what set-up and tests made here (keeps all results)
	@rm -rf .venv .build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
