#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Python with a network, processes, /run and BPF file system of its own: labs beside each other.
#   tests/net/apart.sh -m pytest tests/net/test_ways.py
# All that is started in here ends with it, and nothing of it is left.
set -eu
[ "$(id -u)" = 0 ] || { echo "apart: these tests make network namespaces and load BPF programs: run them as root" >&2; exit 1; }
# shellcheck disable=SC2016
exec unshare --mount --net --pid --fork --kill-child --mount-proc sh -euc '
	mount -t tmpfs tmpfs /run
	mkdir /run/lock /run/netns
	mount -t sysfs sysfs /sys
	mount -t bpf bpf /sys/fs/bpf
	ip link set lo up
	"$@" || exit $?
	exit 0 # the shell stays, and reaps what others leave behind
' sh "$(dirname "$0")/../../.venv/bin/python" "$@"
