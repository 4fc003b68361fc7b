# SPDX-License-Identifier: GPL-2.0
# rkvm's front door. 'make help' lists what there is.

KVER ?= $(shell uname -r)
KDIR ?=
FAMILY ?= svm
LAB := tools/lab

.DEFAULT_GOAL := all
.PHONY: all modules help lab lab-clean demo check check-long selftests lint install uninstall kernel-metadata dkms clean

all: modules

# Built for KDIR natively when it is given; else for the running kernel if its
# tree has Rust metadata; else for the lab's stock kernel, in the dev root.
modules:
	@$(LAB)/modules '$(KDIR)' '$(KVER)'

help:
	@sed -n 's/^#: //p' $(firstword $(MAKEFILE_LIST))

#: make                  build rkvm.ko for the running kernel, or for the lab's
#: make KDIR=DIR         build rkvm.ko for the configured kernel tree DIR
#: make kernel-metadata  prepare the running Debian kernel's tree (KVER= another's)
#: make install          install rkvm.ko and the udev rule for the running kernel
#: make demo             boot a Linux guest on /dev/rkvm in an emulated computer
#: make check            all tests that must hold; check-long: the slow ones too
#: make selftests        the kernel's own KVM selftests, beside in-tree KVM (FAMILY=arm64)
#: make bench            what exits cost, against in-tree KVM, in instructions
#:                       FAMILY=arm64|vmx|svm-bochs chooses the family of demo, check and bench; svm is the default
#: make lint             formatting, clippy, unsafe lines per room
#: make lab              make all that the above need; lab-clean: remove it
#: make clean            remove what was built in this checkout

lab:
	@$(LAB)/lab

lab-clean:
	@$(LAB)/lab clean

demo:
	@$(LAB)/demo $(FAMILY)

check:
	@$(LAB)/check check $(FAMILY)

check-long:
	@$(LAB)/check long $(FAMILY)

bench:
	@FAMILY=$(FAMILY) selftests/bench/run

# TESTS='NAME...' runs only these.
selftests:
	@selftests/kvm/run $(FAMILY) $(TESTS)

lint:
	@$(LAB)/lint

kernel-metadata:
	@$(LAB)/kernel-metadata '$(KVER)'

# What dkms.conf calls.
dkms: kernel-metadata modules

# For the kernel that rkvm.ko was built for; DESTDIR is put before all paths.
INSTALL_RELEASE = $(shell tr '\0' '\n' <rkvm.ko | sed -n 's/^vermagic=\([^ ]*\).*/\1/p')
UDEV_RULES := /usr/lib/udev/rules.d

install:
	@test -e rkvm.ko || { echo "no rkvm.ko here: 'make' builds it"; exit 1; }
	install -D -m 644 rkvm.ko '$(DESTDIR)/lib/modules/$(INSTALL_RELEASE)/updates/rkvm.ko'
	install -D -m 644 tools/install/70-rkvm.rules '$(DESTDIR)$(UDEV_RULES)/70-rkvm.rules'
	if test -z '$(DESTDIR)'; then depmod '$(INSTALL_RELEASE)'; udevadm control --reload 2>/dev/null || :; fi

uninstall:
	rm -f '$(DESTDIR)'/lib/modules/*/updates/rkvm.ko '$(DESTDIR)$(UDEV_RULES)/70-rkvm.rules'
	if test -z '$(DESTDIR)'; then depmod -a; fi

clean:
	rm -rf build rkvm.ko
