#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# boot.sh [-k 6.12|6.1|newest|uml] [-t SECONDS] [-m MiB] [-r FOLDER] COMMAND…
# Boots a kernel that has ESP over this machine's root and runs COMMAND in it, as root, in this folder
# and environment. Everything that it writes stays in the machine, but for FOLDER. Prints its output as it
# comes, ends with its status; 124: out of time, 125: the machine failed. When the command failed, what the
# kernel had seen die follows. Only a machine that died before the command began is booted again, twice at most.
set -u
here=$(dirname "$(readlink -f "$0")")
which=6.12 seconds=3600 memory=3072 results=
while getopts k:t:m:r: option; do
	case $option in
	k) which=$OPTARG ;;
	t) seconds=$OPTARG ;;
	m) memory=$OPTARG ;;
	r) results=$(readlink -f "$OPTARG") ;;
	*) exit 2 ;;
	esac
done
shift $((OPTIND - 1))
[ "$(id -u)" = 0 ] || { echo "vm: run as root: the machine's root is this one's" >&2; exit 125; }
kernel=$("$here/kernel.sh" "$which") || exit 125
job=$(mktemp -d)
pids=
clean() { for pid in $pids; do kill "$pid" 2>/dev/null; done; wait 2>/dev/null; rm -rf "$job"; }
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
{
	printf 'cd %q || exit 126\n' "$PWD"
	export -p | grep -v -E '^declare -[a-z]*x[a-z]* (SHLVL|OLDPWD|PWD|_)='
	printf 'exec'; printf ' %q' "$@"; echo
} >"$job/job.bash"
echo "exec bash $job/job.bash" >"$job/job"
common="ro init=$here/init.sh loglevel=4 panic=-1 no_timer_check vm.job=$job vm.rw=$results"

share() { # tag folder cache
	local server="" tag=$1
	for path in /usr/libexec/virtiofsd /usr/lib/qemu/virtiofsd; do [ -x "$path" ] && server=$path; done
	if "$server" --help 2>&1 | grep -q shared-dir; then
		"$server" --socket-path="$job/$tag.sock" --shared-dir "$2" --cache "$3" --sandbox chroot --xattr >"$job/$tag.log" 2>&1 &
	else
		"$server" --socket-path="$job/$tag.sock" -o source="$2",cache="$3",sandbox=chroot,xattr -f >"$job/$tag.log" 2>&1 &
	fi
	pids="$pids $!"
	for _ in $(seq 500); do [ -S "$job/$tag.sock" ] && break; sleep .02; done
	devices+=(-chardev "socket,id=$tag,path=$job/$tag.sock" -device "vhost-user-fs-pci,chardev=$tag,tag=$tag")
}
emulate() {
	devices=()
	[ ! -e "$kernel/initramfs" ] || devices+=(-initrd "$kernel/initramfs")
	share host / always
	[ -z "$results" ] || share rw "$results" auto
	rm -f "$job/out" && mkfifo "$job/out"
	cat "$job/out" & local cat=$!
	pids="$pids $cat"
	# One processor in one thread: with more, one boot in nine panicked.
	timeout --foreground -k 10 "$seconds" qemu-system-x86_64 -accel tcg,thread=single,tb-size=512 -cpu max \
		-machine q35,memory-backend=mem -smp 1 -m "$memory" -object "memory-backend-memfd,id=mem,size=${memory}M,share=on" \
		-nodefaults -no-user-config -display none -no-reboot -kernel "$kernel/image" \
		-append "root=host rootfstype=virtiofs console=ttyS0 mitigations=off vm.mods=$kernel $common" \
		-serial "file:$job/console" -device virtio-serial-pci "${devices[@]}" -device virtio-rng-pci \
		-chardev "file,id=out,path=$job/out,append=on" -device virtserialport,nr=1,chardev=out \
		-chardev "file,id=rc,path=$job/rc" -device virtserialport,nr=2,chardev=rc </dev/null 2>"$job/qemu.log" &
	pids="$pids $!"
	wait $!
	status=$?
	[ $status != 0 ] || wait $cat
}
run_uml() {
	timeout --foreground -s KILL "$seconds" "$kernel/linux" mem="${memory}M" ncpus=1 seccomp=on root=/dev/root rootfstype=hostfs \
		rootflags=/ con=null con0=null,fd:2 con1=null,fd:1 $common </dev/null 2>"$job/console" &
	pids="$pids $!"
	wait $!
	status=$?
}
for try in 1 2 3; do
	rm -f "$job/rc" "$job/began"
	if [ "$which" = uml ]; then run_uml; else emulate; fi
	if [ $status = 124 ] || [ $status = 137 ]; then
		echo "vm: out of time after $seconds s" >&2
		exit 124
	fi
	rc=$(tail -n 1 "$job/rc" 2>/dev/null)
	case $rc in "" | began) ;; *) exit "$rc" ;; esac
	tail -n 20 "$job/console" "$job"/*.log >&2 2>/dev/null
	if [ "$rc" = began ]; then
		echo "vm: the machine died under the command" >&2
		exit 125
	fi
	echo "vm: THE MACHINE DIED BEFORE THE COMMAND BEGAN ($status), boot $try of 3" >&2
done
exit 125
