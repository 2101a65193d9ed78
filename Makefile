# make demo   build everything, run the main job, and leave a hub running until Ctrl-C
# make test   install what the tests need, then everything that CI runs
# make check  formatting and lints
# make ui     the web page: hub/ui/dist, which goes into the hub
# make deb    Debian packages of relay, hub and peer: target/deb
# make bench  benchmarks against other tools: bench/results/*.json and docs/benchmarks.md

.PHONY: demo build check test ui ui-test bench deb

demo: build
	./target/debug/cortex-hub demo

build: ui
	cargo build --workspace --bins

ui: hub/ui/dist/index.html

hub/ui/node_modules/.package-lock.json: hub/ui/package-lock.json
	cd hub/ui && PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD=1 npm ci --no-audit --no-fund
	touch $@

# Only when something that it is made of has changed.
hub/ui/dist/index.html: hub/ui/node_modules/.package-lock.json hub/ui/package.json hub/ui/index.html hub/ui/vite.config.ts hub/ui/svelte.config.js $(shell find hub/ui/src -type f)
	cd hub/ui && npm run build
	touch $@

# The programs are those of the Rust tests.
ui-test: ui
	./scripts/check-types.sh
	cd hub/ui && npm run check && npm run unit && npm run e2e

check:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy -p cortex-peer --no-default-features -- -D warnings

test:
	./scripts/setup-test.sh
	$(MAKE) ui
	$(MAKE) check
# This builds the programs as well, because their packages have tests that run them.
	cargo nextest run --workspace
	$(MAKE) ui-test

bench: ui
	cargo build --release --workspace --bins
	cargo build --release --manifest-path bench/iroh/Cargo.toml --target-dir target/iroh
	./target/release/cortex-bench all

deb: ui
	cargo build --profile dist -p cortex-relay -p cortex-hub -p cortex-peer --bins
	./packaging/deb.sh target/dist target/deb
