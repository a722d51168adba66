# The four commands that a newcomer and CI use. Each looks for what it needs first (see tests/prepare).

.PHONY: run test bench soak

# A release build, and a fleet on this machine to try it on.
run:
	@tests/prepare build
	cargo build --release --bin muster
	@target/release/muster dev

# Everything that proves something, and a table of what ran and what did not.
test:
	@tests/prepare test
	@tests/run

# Figures, as ratios side by side in one run.
bench:
	@tests/prepare build
	cargo build --release --bin muster
	cargo bench --package muster-tests

# One fault, many times: make soak FAULT=power-cut RUNS=100 SEED=1
soak:
	@tests/prepare test
	@tests/soak "$(FAULT)" "$(RUNS)" "$(SEED)"
