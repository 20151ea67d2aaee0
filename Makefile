# Thin on purpose: what go can do, go does.
GO     ?= go
PREFIX ?= /usr/local

build: stack/tcp/.patched ## the tcpcrypt binary, in bin/
	$(GO) build -trimpath -o bin/ ./cmd/tcpcrypt

# The TCP endpoint is generated from the gVisor module pinned in go.mod.
stack/tcp/.patched: go.mod $(wildcard stack/patch/*.go)
	$(GO) generate ./stack/patch
	touch $@

clean: ## remove what was built and generated
	rm -rf bin stack/tcp/.patched stack/tcp/internal stack/tcp/up_*.go

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

.PHONY: build clean help
