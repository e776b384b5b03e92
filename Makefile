# make demo   the whole story, in five seconds once built: agents, gateway, API, with the real bytes
# make test   everything that is promised, on this machine, from nothing
# make test-systemd  the shipped unit and the package in Debians that are booted for it; as root
# make test-clients  more programs that agents run, than `make test` has time to fetch
# make test-conformance  more cases of the Autobahn test suite than `make test` has time for
# make lab    the properties alone; ONLY=FILE:: runs those of one file
# make deb    the Debian package, in target/debian
# make image  the router image, in target/image; as root
# make test-reproducible  package and image twice from clean clones: the same bytes; as root
# make box    the boxes of the Vagrantfile, from the image; then `vagrant up` (docs/vagrant.md); as root
# make test-vagrant  the Vagrantfile is valid; its story and docs/vagrant.md, in namespaces; as root
# make test-image  the image, booted, with agents and an API around it; as root
# make fuzz   the parsers that agents feed, under libFuzzer, ten minutes each; MINUTES=1, ONLY=TARGET
# make bench  CPU and memory beside HAProxy and nginx, in 30 minutes; QUICK=1: in five
#
# Those that run something install what is missing from Debian first (tests/prerequisites), and say so.

CARGO ?= cargo
# The same packages in every step: the benches ask dependencies for other features, and what the
# demonstration built would be compiled again. Lints look at the benches, too.
TESTED = --locked --workspace --exclude cloakroom-benches
# One lab test is a small network with several programs in it, most of the time waiting.
LAB_THREADS ?= 5
# Those that measure a rate or a time, while little else runs.
ALONE = conformance::autobahn:: limits::agents_in_a_flood:: limits::floods:: packets::flushed_rules:: lifecycle::restart::
# Which of them run: those whose name holds this, such as `quarantine::`; of `fuzz`, which targets.
ONLY ?=
# The path of the Vault is the last line of what this prints.
VAULT_PATH = $(if $(CLOAKROOM_VAULT),echo "$(CLOAKROOM_VAULT)",tests/vault/get)
# The booted image is updated to this version, which is above the package's.
NEXT = $(shell sed -n 's/^version = "\(.*\)"$$/\1/p' Cargo.toml | head -n 1).2
# Where nft and ip are; an ordinary user's PATH lacks it on Debian.
export PATH := $(PATH):/usr/sbin:/sbin

.PHONY: help demo test bench fuzz prerequisites vault clients format lint dependencies unit lab build \
	test-clients test-conformance test-systemd test-vagrant deb image box test-image test-reproducible
# Each step is parallel in itself, and their output is read in this order.
.NOTPARALLEL:

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

test: prerequisites vault clients format lint dependencies unit lab

demo: prerequisites $(if $(filter-out 0,$(VAULT)),vault)
	@echo "== Build (minutes the first time, seconds afterwards)"
	@$(CARGO) build $(TESTED) --bins
	@echo "== The story"
	@target/debug/demo

prerequisites:
	@echo "== What Debian has to provide"
	@tests/prerequisites

vault: prerequisites
	@echo "== A real Vault (CLOAKROOM_VAULT, from PATH, from the cache, downloaded or built)"
	@$(VAULT_PATH)

clients: prerequisites
	@echo "== The clients: Python packages and agents, in the versions of tests/clients; suites, InfluxDB, named and Semgrep"
	@tests/clients/get
	@tests/conformance/get
	@tests/influxdb/get
	@tests/named/get
	@tests/semgrep/get

format:
	@echo "== Format"
	$(CARGO) fmt --all --check

lint: prerequisites
	@echo "== Lints; a warning is an error"
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" \
		$(CARGO) doc --locked --no-deps --package cloakroom --document-private-items

# Advisories need a network and a database; the rest does not.
dependencies: prerequisites
	@echo "== Licences, bans, duplicates and sources of the dependencies"
	@tests/dependencies
	@if command -v cargo-deny >/dev/null; then $(CARGO) deny check bans licenses sources; fi

build: prerequisites
	@echo "== Build (minutes the first time, seconds afterwards)"
	$(CARGO) build $(TESTED) --bins

unit: prerequisites
	@echo "== Unit tests, which module takes from which, and how sentences are made"
	$(CARGO) test $(TESTED) --lib --bins --test floor_plan --test sentences

lab: build vault clients
	@echo "== Properties, in namespaces, against the built program"
	CLOAKROOM_BIN=$(CURDIR)/target/debug/cloakroom CLOAKROOM_VAULT="$$($(VAULT_PATH) | tail -n 1)" \
		CARGO="$(CARGO)" tests/lab/run $(LAB_THREADS) "$(TESTED)" "$(ONLY)" $(ALONE)

test-clients: build clients
	@echo "== Package managers and agents of PyPI and npm, in the versions of tests/clients/packages and more"
	@tests/clients/packages/get
	@tests/clients/more/get
	@tests/clients/sdks/get
	CLOAKROOM_BIN=$(CURDIR)/target/debug/cloakroom $(CARGO) test $(TESTED) --test properties -- \
		--test-threads=$(LAB_THREADS) --ignored $(or $(ONLY),clients::)

test-conformance: build clients
	@echo "== h2spec, and the Autobahn test suite"
	CLOAKROOM_BIN=$(CURDIR)/target/debug/cloakroom CLOAKROOM_CONFORMANCE=whole \
		$(CARGO) test $(TESTED) --test properties -- \
		--test-threads=1 --include-ignored $(or $(ONLY),conformance::)

# The package here is made as `make deb` makes it, of the build that the other tests have.
test-systemd: build vault
	@echo "== The unit and the package, under systemd as the first process of a machine"
	@tests/prerequisites lintian
	$(CARGO) build $(TESTED) --example pages
	target/debug/examples/pages target/pages
	CLOAKROOM_BIN=$(CURDIR)/target/debug/cloakroom \
		CLOAKROOM_DEB="$$(CARGO="$(CARGO)" image/package/build dev target/debug/debian | tail -n 1)" \
		CLOAKROOM_MACHINE="$$(tests/systemd/root | tail -n 1)" \
		CLOAKROOM_VAULT="$$($(VAULT_PATH) | tail -n 1)" \
		CLOAKROOM_BOOKWORM="$$(tests/systemd/root bookworm | tail -n 1)" \
		$(CARGO) test $(TESTED) --test systemd -- --test-threads=1 $(ONLY)

# The same bytes from any folder, by whoever builds: no path of the machine is in them, nor a build ID, which
# such paths go into. The benches measure what is packaged.
CARGO_HOME ?= $(HOME)/.cargo
deb bench: export RUSTFLAGS += --remap-path-prefix=$(CURDIR)=/usr/src/cloakroom \
	--remap-path-prefix=$(CARGO_HOME)=/usr/src/cargo -C link-arg=-Wl,--build-id=none
deb bench: export CFLAGS += -ffile-prefix-map=$(CURDIR)=/usr/src/cloakroom \
	-ffile-prefix-map=$(CARGO_HOME)=/usr/src/cargo

deb: prerequisites
	@echo "== The package"
	$(CARGO) build --locked --release --package cloakroom
	$(CARGO) run --quiet --locked --release --package cloakroom --example pages -- target/pages
	CARGO="$(CARGO)" image/package/build

image: deb
	@echo "== The image"
	image/build

# DEBIAN=trixie: in a Debian of that release, made for it.
test-reproducible: prerequisites
	@echo "== The package and the image, twice"
	image/reproducible $(DEBIAN)

box: vault
	@echo "== The boxes"
	@tests/prerequisites qemu-utils dosfstools mtools
	tests/vagrant/box

test-vagrant: build vault
	@echo "== The Vagrantfile, and its story without machines"
	@tests/prerequisites vagrant vagrant-libvirt dosfstools mtools
	CLOAKROOM=$(CURDIR)/target/debug/cloakroom CLOAKROOM_VAULT="$$($(VAULT_PATH) | tail -n 1)" tests/vagrant/rehearse
	python3 -c 'import sys, xml.etree.ElementTree as xml; xml.parse(sys.argv[1])' tests/vagrant/box.ovf
	@# It wants the files there that the rehearsal has made.
	VAGRANT_DEFAULT_PROVIDER=libvirt vagrant validate

test-image: image
	@echo "== Another version of the image, for updates"
	@tests/prerequisites qemu-system-x86 ovmf swtpm qemu-utils dosfstools mtools ethtool gpg
	IMAGE_VERSION=$(NEXT) IMAGE_OUTPUT=$(CURDIR)/target/image-next image/build
	@echo "== The image, booted (an hour where there is no KVM)"
	CLOAKROOM_IMAGE=$(CURDIR)/target/image CLOAKROOM_NEXT=$(CURDIR)/target/image-next \
		$(CARGO) test $(TESTED) --test image -- --test-threads=1 $(ONLY)

# libFuzzer is C++. See tests/README.md.
fuzz:
	@tests/prerequisites g++
	tests/fuzz/run $(ONLY)

# Ratios count, not figures: see benches/README.md.
bench: prerequisites
	@benches/prerequisites
	$(CARGO) build --locked --release --package cloakroom --package cloakroom-benches
	target/release/side-by-side $(if $(QUICK),--quick)
