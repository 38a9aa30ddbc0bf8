# make demo          shows the main job on one machine, without Kubernetes (root)
# make test          runs every test, and names what could not run (root)
# make lint          rustfmt, clippy, cargo-deny
# make build         target/dist/wg-overlay and target/dist/wg-overlay-cni, static
# make cluster       a Kubernetes of three nodes in namespaces, with wg-overlay as its network (root)
# make e2e           upstream's network tests and ours on that cluster (root)
# make e2e-full      more of them, iptables mode and an older Kubernetes too (root)
# make fuzz          the parsers of outside input, FUZZ="SECONDS" each, 60 if not said
# make sanitize      what has `unsafe` in it, with AddressSanitizer; SANITIZE="CASE..." bounds the end-to-end cases (root)
# make bench         us, the peers and the floor side by side: benches/report.md, target/bench/report.json (root)
# make torture       seeded faults on real agents, and what was lost: target/torture/report.json (root)
# make cluster-down  ends the cluster and leaves nothing of it
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

ARCH := $(shell uname -m)
TRIPLE := $(ARCH)-unknown-linux-musl
CACHE := $(or $(WG_OVERLAY_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/wg-overlay)
OUT := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
RELEASE := $(OUT)/$(TRIPLE)/release
DIST := $(OUT)/dist

export CARGO_BUILD_TARGET := $(TRIPLE)
export WG_OVERLAY_CACHE := $(CACHE)
export WG_OVERLAY_BIN_DIR := $(DIST)
export WG_OVERLAY_E2E_BIN_DIR := $(RELEASE)
# ring's C parts, for a static target
export CC_$(subst -,_,$(TRIPLE)) := musl-gcc

.PHONY: help demo test lint build build-agent build-others prerequisites units namespaces cni-spec overlay kernel-wg kernel-wg-all cluster cluster-down e2e e2e-full fuzz sanitize bench bench-smoke torture clean

help: ## this list
	@sed -n 's/^# make /make /p' $(MAKEFILE_LIST)

prerequisites: ## installs the Debian packages that are missing
	@e2e/prerequisites

build: prerequisites
	@# at once: the agent's link as a whole takes minutes of one processor
	@$(MAKE) --no-print-directory --jobs=2 build-agent build-others
	@mkdir -p $(DIST)
	@# not while a test starts them, unless they are other ones
	@for program in agent/wg-overlay plugin/wg-overlay-cni; do \
	  from=$(OUT)/$(TRIPLE)/$$program; to=$(DIST)/$${program##*/}; \
	  [ $$to -nt $$from ] || install --strip $$from $$to; \
	done

# cargo has jobs of its own, and make does not lend it any.
build-agent build-others: export MAKEFLAGS :=
build-agent:
	cargo build --profile agent --package wg-overlay

build-others:
	cargo build --release --workspace --exclude wg-overlay --bins
	cargo build --profile plugin --package wg-overlay-cni --config .cargo/plugin.toml

demo: build
	@$(RELEASE)/demo

test: units namespaces cni-spec overlay kernel-wg
	@echo "All tiers ran; what could not run is named above as skipped or ignored."

# Laws, golden files, parsers: no privileges.
units: build
	cargo test --release --workspace --lib --bins --no-fail-fast
	cargo test --release --package wg-overlay-mesh --no-fail-fast

# Netlink, nftables, the user-space device and the lab itself, in namespaces of their own.
namespaces: build
	cargo test --release --no-fail-fast --package wg-overlay-host --package wg-overlay-userspace --tests
	cargo test --release --no-fail-fast --workspace --test api --test lab

# The plugin as a runtime calls it, killed at every system call; and the CNI project's own client, cnitool.
cni-spec: build
	cargo test --release --no-fail-fast --workspace --test cni

# End to end on the user-space device of this host.
overlay: build
	cargo test --release --workspace --test overlay

# The same suite on kernel WireGuard, in a virtual machine, but for cases that the device has no part in.
kernel-wg: build
	e2e/vm/overlay

kernel-wg-all: build
	WG_OVERLAY_KERNEL_ALL=1 WG_OVERLAY_VM_TIMEOUT=6000 e2e/vm/overlay

# Once, building Kubernetes and its companions from their Go modules takes minutes.
cluster: build
	@e2e/cluster/build
	@e2e/cluster/images
	@e2e/cluster/cluster up

cluster-down: ## ends the cluster and leaves nothing of it
	@e2e/cluster/cluster down

e2e: build
	@e2e/cluster/run short

e2e-full: build
	@e2e/cluster/run full

# With coverage, on the stable compiler; the corpus is e2e/fuzz/corpus. FUZZ="600 node uapi" is ten minutes each of two.
fuzz: prerequisites
	@e2e/fuzz/run $(FUZZ)

# SANITIZE="none" leaves the end-to-end cases out.
sanitize: prerequisites build-others
	@e2e/sanitize $(SANITIZE)

# BENCH holds its arguments: make bench BENCH="--only plugin". A peer that doesn't build is named in the report.
bench: build
	-@benches/peers
	-@e2e/cluster/build
	@$(RELEASE)/bench --out $(OUT)/bench $(BENCH)
	@[ -n "$(BENCH)" ] || $(RELEASE)/simulate --report $(OUT)/bench/report.json > benches/scale.md

# A few minutes of it, for CI: fails where a ratio lies beyond its target by more than a factor of 2.
bench-smoke: build
	@benches/peers smoke
	@$(RELEASE)/bench --smoke --out $(OUT)/bench

# TORTURE holds its arguments: make torture TORTURE="--minutes 60 --nodes 50", or "--only kills --seed 7".
torture: build
	@$(RELEASE)/torture --out $(OUT)/torture $(TORTURE)

lint: prerequisites
	cargo fmt --all --check
	cargo fmt --manifest-path e2e/fuzz/Cargo.toml --check
	@# with the hooks of the fuzzer, which nothing else compiles
	cargo clippy --release --workspace --all-targets -- -D warnings --cfg fuzzing
	@e2e/deny
	@deploy/lint

clean: ## removes what builds and tests left
	cargo clean

