# make demo   build the binary and, with it, a real multi-stage image
# make test   everything CI runs; installs what it needs (as root)
# make bench  measure against other builders that are on PATH
SHELL := /bin/bash -euo pipefail
GO    ?= go
ROOT  := $(shell [ "$$(id -u)" = 0 ] && echo yes)
CACHE ?= $(if $(ROOT),/var/cache/build-test,$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/build-test)
export BUILD_TEST_CACHE := $(CACHE)

# The packages whose behaviour depends on who runs them: these are tested once more as ordinary users.
USER_PACKAGES = ./cmd/build ./executor ./snapshot ./internal/build ./internal/buildctx ./internal/cgroup ./internal/store ./internal/userns ./internal/usernet
AS_USER       = $(CURDIR)/testdata/setup/as-user.sh
# Two passes have their temporary files in memory, the others on the disk.
IN_MEMORY     = testdata/setup/in-memory.sh

.PHONY: all build demo test check test-root test-user test-range test-single setup bench clean
all: build

build:
	CGO_ENABLED=0 $(GO) build -trimpath -o build ./cmd/build

demo: build
	demo/run.sh

setup:
	testdata/setup/packages.sh
	$(if $(ROOT),testdata/setup/users.sh)
	testdata/setup/bases.sh
	testdata/setup/kernel.sh
	testdata/setup/emulators.sh

check:
	@bad=$$(gofmt -l $$(find . -name '*.go' -not -path './.git/*')); [ -z "$$bad" ] || { echo "gofmt: $$bad" >&2; exit 1; }
	$(GO) vet ./...

# A skip for want of something that setup brings is a failure (internal/testenv).
test: export BUILD_TEST_REQUIRE = 1
# The race detector makes every process that ends by itself sleep for a second before it does: tests start thousands.
test: export GORACE = atexit_sleep_ms=0
test: setup check build test-root $(if $(ROOT),test-user)

# The tests of whole programs run without the race detector, which measures itself there. Attacks are tried on every rung.
WHOLE   = ^Test(Real|Places|Attack|Huge)
ATTACKS = ^TestAttack(FromStep|Users|Stubs|BaseDirectories|WritesToMounts|OutlivesBuild)$$

test-root:
	$(IN_MEMORY) $(GO) test -race -timeout 40m -skip '$(WHOLE)' ./...
	$(GO) test -timeout 40m -run '$(WHOLE)' ./cmd/build ./internal/build
	BUILD_TEST_ISOLATION=ids=single,tree,proc=bound,chroot $(GO) test -timeout 40m -run '$(ATTACKS)' ./cmd/build

# The race detector has seen all of it by then. Side by side, because most of these tests wait for processes most of the time.
test-user:
	$(MAKE) -j2 --output-sync=target test-range test-single

test-range:
	$(GO) test -timeout 40m -skip ^TestHuge -exec '$(AS_USER) buildtest' $(USER_PACKAGES)

# Without a range of subordinate ids owners are recorded, and what is built is the same.
test-single:
	$(IN_MEMORY) $(GO) test -timeout 40m -exec '$(AS_USER) buildtest0' ./cmd/build ./internal/userns ./internal/usernet ./internal/fakeroot

bench: build setup
	$(GO) run ./bench -ours ./build $(BENCHFLAGS)

clean:
	rm -rf build out
