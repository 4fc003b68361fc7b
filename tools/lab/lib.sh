# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# What the lab's programs share: where things are kept, and how they are made.
#
# A *product* is a directory in the cache, named NAME-KEY, where KEY is a hash
# of all that went into it. It is made in one go by a function, under a lock,
# and holds a file `.made` once it is whole; so any number of checkouts and
# makes can run beside each other, be killed at any point, and start again.

set -euo pipefail

LAB=$(cd -P "$(dirname "${BASH_SOURCE[0]}")" && pwd)
TOP=$(cd -P "$LAB/../.." && pwd)
CACHE=${RKVM_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/rkvm}
export RKVM_CACHE=$CACHE
# Set when we run inside the dev root already.
IN_ROOT=${RKVM_IN_ROOT:-}

# The architecture that kernels, modules, L1 and its programs are for; that of L0 and of all compilers is amd64.
export RKVM_ARCH=${RKVM_ARCH:-amd64}

# for_family FAMILY: sets the architecture by the virtualization hardware.
for_family() {
	case $1 in
	svm | vmx | svm-bochs) RKVM_ARCH=amd64 ;;
	arm64) RKVM_ARCH=arm64 ;;
	*) die "no such family here yet: $1" ;;
	esac
}

say() { printf '[lab] %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# Sets TMPDIRS' entries up for removal at exit.
tmpdirs=()
cleanup_tmp() { ((${#tmpdirs[@]} == 0)) || rm -rf --one-file-system "${tmpdirs[@]}"; }
trap cleanup_tmp EXIT

# hash: eight hex digits of standard input.
hash() { sha256sum | cut -c1-8; }

# need_disk DIR MIB WHAT: stops unless the file system of DIR has MIB free.
need_disk() {
	local free
	free=$(($(df --output=avail -k "$1" | tail -1) / 1024))
	((free >= $2)) || die "$3 needs $2 MiB of disk at $1, and $free MiB are free (RKVM_CACHE names another place)"
}

# need_memory MIB WHAT: stops unless that much memory can be had.
need_memory() {
	local free
	free=$(($(awk '/^MemAvailable:/ { print $2 }' /proc/meminfo) / 1024))
	((free >= $1)) || die "$2 needs $1 MiB of memory, and $free MiB are available"
}

# timed LABEL LOG CMD...: runs CMD with its output in LOG, says every 15 s how
# long it has taken, and at a failure what failed, the log's end and its place.
timed() {
	local label=$1 log=$2 start=$SECONDS pid rc=0 n=0
	shift 2
	mkdir -p "$(dirname "$log")"
	# In a process group of its own, so that all of it can be ended with us.
	set -m
	("$@") >"$log" 2>&1 </dev/null &
	pid=$!
	set +m
	# shellcheck disable=SC2064
	trap "kill -- -$pid 2>/dev/null || :; exit 130" INT TERM HUP
	while kill -0 "$pid" 2>/dev/null; do
		sleep 0.2
		((++n % 75)) || say "$label: $((SECONDS - start)) s ..."
	done
	wait "$pid" || rc=$?
	trap - INT TERM HUP
	if ((rc)); then
		tail -n 20 "$log" | sed 's/^/    /' >&2
		say "error: $label failed (status $rc); log: $log"
		return "$rc"
	fi
	say "$label: done in $((SECONDS - start)) s"
}

# product NAME KEY DISK_MIB LABEL FUNCTION...: makes it unless it is there; its
# path is then in $PRODUCT. FUNCTION gets an empty directory as its argument.
# With RESUME=1 the directory is the final one and may hold an interrupted
# attempt, which FUNCTION carries on with.
product() {
	local name=$1 key=$2 disk=$3 label=$4 lock work
	shift 4
	PRODUCT=$CACHE/$name-$key
	if [[ -e $PRODUCT/.made ]]; then
		touch "$PRODUCT/.made"
		return
	fi
	mkdir -p "$CACHE/lock" "$CACHE/log"
	# The makers inherit the lock: were we killed, none starts before they end.
	exec {lock}>"$CACHE/lock/$name-$key"
	if ! flock -n "$lock"; then
		say "$label: being made by another process, waiting"
		flock "$lock"
	fi
	if [[ ! -e $PRODUCT/.made ]]; then
		need_disk "$CACHE" "$disk" "$label"
		say "$label: making $PRODUCT"
		if [[ ${RESUME:-} ]]; then
			work=$PRODUCT
		else
			rm -rf --one-file-system "$CACHE/tmp-$name-$key" "$PRODUCT"
			work=$CACHE/tmp-$name-$key
		fi
		mkdir -p "$work"
		# In a shell of its own: under our "||", a function's failing commands
		# would not end it.
		# shellcheck disable=SC2016
		timed "$label" "$CACHE/log/$name-$key.log" /bin/bash -c \
			'lab=$1; shift; . "$lab/lib.sh"; for r in "$lab"/*.recipe; do . "$r"; done; "$@"' \
			make "$LAB" "$@" "$work" || exit 1
		[[ ${RESUME:-} ]] || mv -T "$work" "$PRODUCT"
		: >"$PRODUCT/.made"
		# Of what it replaces, the unused goes.
		find "$CACHE" -maxdepth 2 -path "$CACHE/$name-*/.made" -mtime +7 -printf '%h\0' | xargs -0r rm -rf --one-file-system
	fi
	exec {lock}>&-
}

# in_root_make RECIPE FUNCTION DIR: a recipe's function, run in the dev root.
in_root_make() {
	# shellcheck disable=SC2016
	"$LAB/in-root" /bin/bash -c '. "$1/lib.sh"; . "$1/kernel.recipe"; . "$1/$2"; "$3" "$4"' recipe "$LAB" "$@"
}
