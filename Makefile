# Thin on purpose: what go can do, go does.
GO      ?= go
PREFIX  ?= /usr/local
# Not LINT: make has that name built in, as "lint", and ?= leaves it so.
GOLANGCI ?= $(GO) run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
OTHERS  := darwin windows freebsd

build: stack/tcp/.patched ## the tcpcrypt binary, in bin/
	@.ci/need build
	$(GO) build -trimpath -ldflags="-s -w" -o bin/ ./cmd/tcpcrypt

# The TCP endpoint is generated from the gVisor module pinned in go.mod.
stack/tcp/.patched: go.mod $(wildcard stack/patch/*.go)
	$(GO) generate ./stack/patch
	@touch $@

demo: build ## two hosts in namespaces, curl through tcpcrypt, and what the wire saw
	@.ci/need demo
	$(GO) run ./cmd/tcpcrypt/lab/demo bin/tcpcrypt

test: build ## all tests, in namespaces where they need a network, with the race detector
	@.ci/need test
	$(GO) vet ./...
	for os in $(OTHERS); do GOOS=$$os $(GO) vet ./tcpcrypt ./tun ./stack/... || exit 1; done
	$(GO) test -race -count=1 ./... # not from the cache, which does not see that e2e builds the binary

lint: stack/tcp/.patched ## golangci-lint, as strict as .golangci.yml says
	$(GOLANGCI) run ./...

fuzz: stack/tcp/.patched ## each fuzz target for FUZZTIME (10s)
	@for pkg in $$($(GO) list ./...); do \
		for f in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz'); do \
			$(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $${FUZZTIME:-10s} $$pkg || exit 1; \
		done; \
	done

bench: build ## throughput in namespaces against the kernel's TCP, in the same run
	$(GO) run ./bench

install: build ## the binary, to DESTDIR and PREFIX
	install -D -m 0755 bin/tcpcrypt $(DESTDIR)$(PREFIX)/bin/tcpcrypt

release: ## tag VERSION (v0.1.0) on a commit that holds the generated files too, for go get and go install
	@GO='$(GO)' .ci/release '$(VERSION)'

clean: ## remove what was built and generated
	rm -rf bin stack/tcp/.patched stack/tcp/internal stack/tcp/up_*.go

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

.PHONY: build demo test lint fuzz bench install release clean help
