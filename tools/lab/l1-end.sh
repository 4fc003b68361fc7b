# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# What the emulators' scripts (l1-host, l1-bochs) share: how a run ends. Sourced; $run is its directory.

log=$run/console.log
pids=()

finish() {
	local pid
	for pid in "${pids[@]}"; do
		kill "$pid" 2>/dev/null || :
	done
	rm -f "$run"/{swap,*.img,*.redo}
	if [[ ${keep:-${RKVM_KEEP:-}} ]]; then
		say "L1's kernel log: $log"
	else
		rm -rf "$run"
	fi
}
trap finish EXIT
trap 'exit 130' INT TERM HUP

# die_with STATUS MESSAGE: ends with the kernel log's last lines.
die_with() {
	keep=1
	tail -n "${3:-15}" "$log" 2>/dev/null | tr -d '\r' | sed 's/^/    /' >&2
	say "error: $2"
	exit "$1"
}

# limited PID: waits for the emulator, whose status is then in $rc, up to the time limit, and its death in $late.
limited() {
	local emulator_pid=$1 limit ended
	setpriv --pdeathsig KILL sleep "$timeout" &
	limit=$!
	pids+=("$limit")
	rc=0 late=
	# wait -n ends with whichever comes first.
	wait -n -p ended "$emulator_pid" "$limit" || rc=$?
	[[ $ended == "$limit" ]] || return 0
	late=1
	kill -KILL "$emulator_pid"
	wait "$emulator_pid" 2>/dev/null || :
}

# look_at_log: anything in the kernel's log that looks bad, but what is known to be harmless.
look_at_log() {
	grep -aEn -f <(grep -v '^#' "$LAB/bad-lines") "$log" | grep -avE -f <(grep -v '^#' "$LAB/harmless-lines") >"$run/bad" || return 0
	head -20 "$run/bad" | tr -d '\r' | sed 's/^/    /' >&2
	keep=1
	say "error: bad lines in L1's kernel log"
	exit 99
}

# end_as STATUS: COMMAND's, or what L1 has said instead.
end_as() {
	[[ $1 =~ ^[0-9]+$ ]] || die_with 99 "L1 died before COMMAND ended"
	(($1 != 97)) || keep=1
	exit "$1"
}
