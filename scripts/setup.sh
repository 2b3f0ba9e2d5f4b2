#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Install what `make WHAT` needs, and say what.  WHAT: demo, check, test or bench.
# Debian packages through apt, Python packages into .venv through pip; nothing else is touched.
set -eu
cd "$(dirname "$0")/.."
what=${1:-demo}
python=${PYTHON:-python3}

packages="libbpf1 iproute2 iputils-ping"
case $what in
check) packages="" ;;
test) packages="$packages tcpdump tshark iperf3" ;;
bench) packages="$packages iperf3 wireguard-go wireguard-tools" ;;
esac
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
	echo "setup: Python 3.11 or later is needed; $python is $("$python" -V 2>&1). Set PYTHON=…" >&2
	exit 1
}
"$python" -c 'import ensurepip, venv' 2>/dev/null || packages="$packages python3-venv"

missing=""
for package in $packages; do
	dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing="$missing $package"
done
if [ -n "$missing" ]; then
	command -v apt-get >/dev/null || { echo "setup: no apt here; install the like of:$missing" >&2; exit 1; }
	[ "$(id -u)" = 0 ] || { echo "setup: these Debian packages are missing, and only root can install them:$missing" >&2; exit 1; }
	echo "setup: installing Debian packages:$missing"
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -qq
	# shellcheck disable=SC2086
	apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=300 $missing >/dev/null
fi

# Rebuilt when what is installed from could have changed; the BPF objects are compiled by the same step.
stamp=.venv/.stamp-demo
extra=""
[ "$what" = demo ] || { stamp=.venv/.stamp-test; extra="[test]"; }
inputs=$({ "$python" -V; cat pyproject.toml build_bpf.py bpf/*.c bpf/*.h cni/* scripts/setup.sh; } | sha256sum)
if [ "$(cat "$stamp" 2>/dev/null)" != "$inputs" ]; then
	echo "setup: installing pellicle$extra and its Python packages into .venv (BPF compiled by the ziglang wheel)"
	# Also when one was begun and not finished, or is another Python's.
	.venv/bin/python -m pip -V >/dev/null 2>&1 || "$python" -m venv --clear .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".$extra"
	echo "$inputs" >"$stamp"
fi
