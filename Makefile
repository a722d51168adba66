# The four commands that a newcomer and CI use. Each looks for what it needs first (see tests/prepare).

.PHONY: run test bench soak

# A release build, and what it can do.
run:
	@tests/prepare build
	cargo build --release --bin muster
	@target/release/muster --help

# Everything that proves something, and a table of what ran and what did not.
test:
	@tests/prepare test
	@tests/run

# Figures, as ratios side by side in one run.
bench:
	@tests/prepare build
	cargo bench --package muster-tests

# One fault, many times: make soak FAULT=power-cut RUNS=100 SEED=1
soak:
	@tests/prepare test
	@tests/soak "$(FAULT)" "$(RUNS)" "$(SEED)"
