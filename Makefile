# The verbs of this repository. `make demo` and `make test` work on a fresh checkout: they install what is missing.
#
#   make demo    build and run the demonstration (ARGS="…" is passed on)
#   make test    every test
#   make bench   the benchmarks
#   make lint    formatting and lints, as CI has them
#   make clean   remove build results (not data)

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo build test bench lint clean system

TARGET := $(or $(CARGO_TARGET_DIR),target)
ARGS ?=

help:
	@sed -n 's/^#   //p' Makefile

demo: build
	@exec "$(TARGET)/release/millrace" demo $(ARGS)

# The progress bar also shows where the output is no terminal; the first build is long.
build: system
	@if [ ! -x "$(TARGET)/release/millrace" ]; then \
	    echo "First build: some 540 crates, about 18 minutes on two cores, less on more. Later builds take a minute."; \
	fi
	@CARGO_TERM_PROGRESS_WHEN=always CARGO_TERM_PROGRESS_WIDTH=80 cargo build --release --locked --bin millrace

test: system
	@cargo test --workspace --locked
	@for script in tests/*/run; do \
	    if [ -x "$$script" ]; then echo "running $$script"; "$$script"; fi; \
	done

bench: system
	@cargo bench --workspace --locked

lint: system
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets --locked -- -D warnings

clean:
	@cargo clean

# Compilers, zlib, and the Postgres programs that the server runs privately. Debian and Ubuntu packages are installed
# when we are root or may use sudo without a password; otherwise this says what to install.
system:
	@missing=(); \
	command -v cc >/dev/null && command -v c++ >/dev/null || missing+=(build-essential); \
	command -v cmake >/dev/null || missing+=(cmake); \
	command -v pkg-config >/dev/null || missing+=(pkg-config); \
	command -v python3 >/dev/null || missing+=(python3); \
	command -v curl >/dev/null || missing+=(curl ca-certificates); \
	echo '#include <zlib.h>' | cc -E - >/dev/null 2>&1 || missing+=(zlib1g-dev); \
	found_postgres() { \
	    for program in /usr/lib/postgresql/*/bin/initdb "$$(pg_config --bindir 2>/dev/null)/initdb" "$$(command -v initdb)"; do \
	        if [ -x "$$program" ]; then return 0; fi; \
	    done; \
	    return 1; \
	}; \
	found_postgres || missing+=(postgresql); \
	if [ $${#missing[@]} -gt 0 ]; then \
	    if ! command -v apt-get >/dev/null; then \
	        echo "missing: $${missing[*]} (Debian's names); install them with your package manager"; exit 1; \
	    fi; \
	    sudo=(); \
	    if [ "$$(id -u)" -ne 0 ]; then sudo=(sudo -n); fi; \
	    echo "installing $${missing[*]}"; \
	    { "$${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -qq && \
	      "$${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$${missing[@]}"; } || \
	        { echo "could not install them; run: sudo apt-get install $${missing[*]}"; exit 1; }; \
	fi; \
	if ! command -v cargo >/dev/null; then \
	    echo "Rust is missing; install it from https://rustup.rs (the version is chosen by rust-toolchain.toml)"; exit 1; \
	fi
