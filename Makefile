# SPDX-License-Identifier: Apache-2.0
# make demo    see it work: three nodes, encryption off, then on, a sniffer on the wire
# make test    everything: check, then the tests that need root and a kernel
# make check   a minute, no root: lint, types, import contracts, pure tests and their coverage
# make vm      the tests that need the kernel's ESP, in a machine of their own [KERNEL=6.1|newest|uml] [TEST=…]
# make bench   one table against plaintext and wireguard-go (minutes) [KERNEL=uml: and of the kernel's ESP]
PY = .venv/bin/python
PYTEST = $(PY) -m pytest -p no:cacheprovider
# The pure core: each of these keeps 90% of its lines and branches in the pure tests alone.
CORE = keys/* wire/* facts.py table.py

KERNEL = 6.12
# Debian's cloud kernels have no netdevsim, which plays a network card.
TEST = tests/vm $(if $(filter uml,$(KERNEL)),,--ignore=tests/vm/test_offload.py)
# Times that a kernel is slower in there, about: waits are longer by as much, and loads brief.
PATIENCE_6.12 = 20
PATIENCE_6.1 = 20
PATIENCE_newest = 20
PATIENCE_uml = 4
# Of tests/vm, what `make test` has.
BRIEFLY = tests/vm/test_xfrm_states.py tests/vm/test_xfrm_traffic.py tests/vm/test_flush.py tests/net/test_streams.py

.PHONY: demo test check bench lint pure whole vm clean
demo:
	@scripts/setup.sh demo
	@.venv/bin/pellicle demo

check: lint pure

lint:
	@scripts/setup.sh check
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

pure:
	@scripts/setup.sh check
	$(PYTEST) -n auto tests/pure --cov --cov-report=
	@set -f; for part in $(CORE); do echo "coverage of $$part, 90% or more:"; \
	$(PY) -m coverage report --include="src/pellicle/$$part" --fail-under=90 || exit 1; done

# The machine with ESP takes the time that the others leave it; what it said comes last.
test:
	@scripts/setup.sh test
	@$(MAKE) --no-print-directory check
	@said=$$(mktemp); trap 'rm -f $$said' EXIT; trap 'kill $$machine; wait; exit 130' INT TERM; \
	nice -n 19 $(MAKE) --no-print-directory vm TEST='$(BRIEFLY)' >$$said 2>&1 & machine=$$!; \
	$(MAKE) --no-print-directory whole; whole=$$?; \
	wait $$machine; machine=$$?; cat $$said; [ $$whole = 0 ] && [ $$machine = 0 ]

# Most tests wait most of the time, so two run at once, each apart: as if on a machine of its own.
whole:
	$(PYTEST) --dist loadfile --tx '2*popen//python=tests/net/apart.sh' --durations=10 \
	tests/bpf tests/net

vm:
	@scripts/setup.sh test
	tests/vm/boot.sh -k $(KERNEL) $(if $(CMD),sh -c '$(CMD)',env PYTHONDONTWRITEBYTECODE=1 \
	$(PYTEST) --engine xfrm --brief --patience $(PATIENCE_$(KERNEL)) --durations=5 $(TEST))

bench:
	@scripts/setup.sh bench
	$(if $(filter file,$(origin KERNEL)),,taskset --cpu-list 0 tests/vm/boot.sh -k $(KERNEL) -t 7200 \
	env PYTHONDONTWRITEBYTECODE=1 PELLICLE_LAB_PATIENCE=$(PATIENCE_$(KERNEL))) $(PY) benchmarks/run.py $(BENCH)

clean:
	rm -rf .venv build dist src/pellicle/_bpf .coverage* .hypothesis pellicle-demo.pcap pellicle-demo.svg
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
