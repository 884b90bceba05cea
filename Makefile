# A newcomer needs `make demo` and `make test`; `make help` lists the other targets.
PYTHON ?= python3
SCENARIO ?= site
VENV := .venv
export PYTHON
# Container images set it. Without compiled files, each of hundreds of processes would compile Ansible again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: browser changelog demo demo-down test test-fast test-long molecule bench soak docs lock check-machine venv help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

check-machine:
	@PYTHONPATH=lab $(PYTHON) -m ec2lab.machine

venv:
	@tools/bootstrap

browser: ## install Chromium for the tests of the proxy's status page, from Debian's packages; needs root
	@command -v chromium-headless-shell >/dev/null || command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
	    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends chromium-headless-shell; } \
	    >/dev/null || echo "make: no Chromium could be installed: the tests that need one will say so" >&2

demo: check-machine venv ## deploy the whole stack on this machine and stream a chat completion
	@lab/lab demo

demo-down: venv ## remove every trace of the demo
	@lab/lab demo-down

test-fast: venv ## lint and unit tests; no root
	@$(VENV)/bin/python tools/run_checks.py fast

test: check-machine venv browser ## everything that CI runs
	@$(VENV)/bin/python tools/run_checks.py all

test-long: check-machine venv ## the scenarios that make test leaves out for their length: clusters, drivers, instances, images, all rolls
	@$(VENV)/bin/python tools/run_checks.py long

molecule: check-machine venv ## one scenario: make molecule SCENARIO=proxy
	@lab/scenario $(SCENARIO)

bench: venv ## measure the proxy beside other gateways: make bench BENCH="--quick"
	@cd proxy_app && ../$(VENV)/bin/python -m benchmarks $(BENCH)

soak: venv ## stress one proxy worker for 20 minutes: make soak SOAK="--minutes 2"
	@cd proxy_app && ../$(VENV)/bin/python -m benchmarks.soak $(SOAK)

docs: venv ## write the variable tables from the argument specs
	@PYTHONPATH=proxy_app/src $(VENV)/bin/python tools/variables.py

changelog: venv ## take the fragments into the changelog: a step of a release, see docs/releasing.md
	@PATH=$(CURDIR)/$(VENV)/bin:$$PATH antsibull-changelog release --update-existing

lock: venv ## pin the newest versions again
	@tools/lock
