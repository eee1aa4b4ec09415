# `make` or `make help` lists what there is. Everything beyond Rust, Python 3 and make itself is installed into
# .dev/ by the first target that needs it.

SHELL := /bin/bash
TARGET := $(or $(CARGO_TARGET_DIR),target)
# Tests wait more than they compute: for time-outs, for other servers, for dead ones. So more run at once than there are cores.
RUST_TEST_THREADS ?= $(shell echo $$((2 * $$(getconf _NPROCESSORS_ONLN))))
export RUST_TEST_THREADS

.DEFAULT_GOAL := help
.PHONY: help setup run test check generate

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: ## install what the local stack and the tests need into .dev/
	@scripts/dev-setup

run: setup ## build and run the whole platform here, with two demo clients (ARGS="--detach", ...)
	cargo build --workspace
	@exec $(TARGET)/debug/freehold dev $(ARGS)

# The binaries first: some tests start them as a user would.
test: setup ## run the whole test suite (ARGS go to cargo test)
	cargo build --workspace --bins
	cargo test --workspace $(ARGS)

check: setup ## formatting, lints, licences, and whether generated files are fresh
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	scripts/cargo-deny check licenses bans sources
	scripts/check-generated

generate: ## regenerate the committed generated files: openapi.json, .sqlx
	scripts/generate
