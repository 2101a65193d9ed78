# make demo   build everything, run the main job, and leave a hub running until Ctrl-C
# make test   install what the tests need, then everything that CI runs
# make check  formatting and lints
# make deb    Debian packages of relay, hub and peer: target/deb
# make bench  benchmarks against other tools: bench/results/*.json and docs/benchmarks.md

.PHONY: demo build check test bench deb

demo: build
	./target/debug/cortex-hub demo

build:
	cargo build --workspace --bins

check:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

test:
	./scripts/setup-test.sh
	$(MAKE) check
# This builds the programs as well, because their packages have tests that run them.
	cargo nextest run --workspace

bench:
	cargo build --release --workspace --bins
	./target/release/cortex-bench all

deb:
	cargo build --profile dist -p cortex-relay -p cortex-hub -p cortex-peer --bins
	./packaging/deb.sh target/dist target/deb
