#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# PID 1 in the test kernel: the host's root, read-only, under a throw-away overlay; runs the job there.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
word() { for each in $(cat /proc/cmdline); do case $each in $1=*) echo "${each#*=}"; return ;; esac; done; }
off() { sync; perl -e 'syscall(169, 0xfee1dead, 672274793, 0x4321fedc, 0)'; sleep 60; } # reboot(POWER_OFF)
die() { echo "vm: $*" >/dev/console; off; }
if [ "${1:-}" != inside ]; then
	mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev 2>/dev/null
	grep -q overlay /proc/filesystems || modprobe -d "$(word vm.mods)" overlay || die "no overlay"
	mount -t tmpfs -o mode=755 overlay /run; mkdir /run/upper /run/work /run/root /run/lower
	mount --bind / /run/lower
	mount -t overlay -o lowerdir=/run/lower,upperdir=/run/upper,workdir=/run/work overlay /run/root || die "no overlay root"
	for place in proc sys dev; do mount --move "/$place" "/run/root/$place"; done
	# Not a mere chroot: whoever is in one may make no user namespace.
	cd /run/root && mkdir -p run/old && pivot_root . run/old && umount -l run/old || die "no overlay root"
	exec chroot . "$0" inside
fi
# What only the kernel has seen: who was killed, and why.
deaths() { dmesg | grep -iE 'out of memory|oom-kill|segfault|general protection|traps:|BUG:|Oops|WARNING:|blocked for' | sed 's/^/vm: kernel: /'; }
modules=$(word vm.mods) job=$(word vm.job) results=$(word vm.rw)
[ -e /dev/vport0p1 ] && kind=virtiofs || kind=hostfs
share() { # tag folder place
	mkdir -p "$3"
	case $kind in
	virtiofs) mount -t virtiofs "$1" "$3" ;;
	hostfs) mount -t hostfs -o "$2" none "$3" ;;
	esac || die "cannot share $2"
}
mount -t tmpfs -o mode=755 run /run; mkdir -p /run/lock /run/netns /run/job /dev/pts /dev/shm
mount -t devpts devpts /dev/pts; mount -t tmpfs shm /dev/shm; ln -sf /proc/self/fd /dev/fd
mount -t cgroup2 cgroup /sys/fs/cgroup; mount -t bpf bpf /sys/fs/bpf; mount -t tracefs trace /sys/kernel/tracing 2>/dev/null
if [ -e /proc/modules ] && [ -n "$modules" ]; then # where the kernel's own loader looks
	mkdir -p /lib/modules; ln -sfn "$modules/lib/modules/$(uname -r)" "/lib/modules/$(uname -r)"
	modprobe -q aesni_intel; modprobe -q tun
fi
[ -z "$results" ] || share rw "$results" "$results"
ip link set lo up
sysctl -q -w net.core.fb_tunnels_only_for_init_net=2 2>/dev/null # a namespace begins with lo alone
if [ $kind = virtiofs ]; then
	exec 3>/dev/vport0p2
	echo began >&3
	setsid -w sh "$job/job" </dev/null >/dev/vport0p1 2>&1 3>&-
	status=$?
	[ $status = 0 ] || deaths >/dev/vport0p1
	echo $status >&3
else # a pipe: no program shall see a terminal; what is left running is killed, for the pipe to end
	share job "$job" /run/job
	stty raw -echo </dev/tty1; mkfifo /run/out
	cat </run/out >/dev/tty1 & cat=$!
	echo began >/run/job/rc
	{
		setsid -w sh "$job/job" </dev/null
		status=$?
		[ $status = 0 ] || deaths
	} >/run/out 2>&1
	echo $status >>/run/job/rc
	for pid in /proc/[1-9]*; do pid=${pid#/proc/}; [ "$pid" = 1 ] || [ "$pid" = $cat ] || kill -9 "$pid"; done 2>/dev/null
	wait $cat
fi
off
