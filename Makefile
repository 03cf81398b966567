# Needs Go, root, and for `make test` also node and npm, chromium, runc, iproute2,
# nftables, curl, python3 and sudo; .ci/run installs them on Debian.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
export CGO_ENABLED := 0

GO      := go
FLAGS   := -trimpath -ldflags "-s -w"
# What each fuzz target gets; `make fuzz FUZZTIME=1h` for longer.
FUZZTIME := 10s

.PHONY: all build test check unit e2e sdk browser demo bench fuzz generate clean

all: build

## build: bin/moat, with the sandbox's daemon inside it, and bin/moat-lab
build:
	$(GO) build $(FLAGS) -o internal/guest/image/moat-guest ./cmd/moat-guest
	$(GO) build $(FLAGS) -o bin/moat ./cmd/moat
	$(GO) build $(FLAGS) -o bin/moat-lab ./cmd/moat-lab

## test: everything, in laboratories without a route to the outside
test: check unit e2e sdk browser

## check: what needs no running
check: build
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); \
	  [ -z "$$unformatted" ] || { echo "not formatted: $$unformatted"; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

# Packages build namespaces, nftables tables and cgroups on one machine: one
# after the other.
unit: build
	$(GO) test -p 1 -timeout 15m $$($(GO) list ./... | grep -v '/test/')

e2e: build
	$(GO) test -p 1 -timeout 15m ./test/e2e/... ./test/cli/...

sdk: build
	npm ci --prefix test/sdk --no-audit --no-fund
	$(GO) test -timeout 15m ./test/sdk

# Real Chromium, Debian's.
browser: build
	npm ci --prefix test/browser --no-audit --no-fund
	$(GO) test -timeout 15m ./test/browser

## demo: a server, a sandbox and its policy, in a laboratory
demo: build
	demo/run

## bench: how fast, how small
bench: build
	bench/run

## fuzz: every fuzz target for FUZZTIME
fuzz: build
	FUZZTIME=$(FUZZTIME) test/fuzz/run

## generate: everything that is generated, anew
generate:
	$(GO) generate ./...

clean:
	rm -rf bin internal/guest/image/moat-guest test/sdk/node_modules test/browser/node_modules
