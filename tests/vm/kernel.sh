#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# kernel.sh 6.12|uml: the test kernel in the cache, fetched or built first if need be; prints its path.
# Debian's packages are only unpacked, never installed; what was unpacked is checked by hash each time.
set -eu
here=$(dirname "$(readlink -f "$0")")
which=$1
cache=${XDG_CACHE_HOME:-$HOME/.cache}/pellicle/kernels
export DEBIAN_FRONTEND=noninteractive
say() { echo "vm: $*" >&2; }
install_packages() {
	local missing=""
	for package in "$@"; do
		dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing="$missing $package"
	done
	[ -n "$missing" ] || return 0
	say "installing Debian packages:$missing"
	apt-get update -qq >&2
	# shellcheck disable=SC2086
	apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=300 $missing >/dev/null
}
is_whole() { [ -e "$1/SHA256SUMS" ] && (cd "$1" && sha256sum --quiet --check SHA256SUMS >&2); }
seal() { # the list begins to exist after all that it lists
	local sums
	sums=$(cd "$1" && find . -type f ! -name SHA256SUMS -print0 | sort -z | xargs -0 sha256sum)
	echo "$sums" >"$1/SHA256SUMS"
}

mkdir -p "$cache"
exec 9>"$cache/lock" && flock 9 # another of us may be fetching or building it
fresh=$cache/.fresh.$$
trap 'rm -rf "$fresh"' EXIT
case $which in
6.12)
	install_packages qemu-system-x86 kmod zstd
	[ -e /usr/lib/qemu/virtiofsd ] || install_packages virtiofsd
	kept=$cache/6.12-cloud
	if ! is_whole "$kept"; then
		say "fetching Debian's kernel 6.12"
		rm -rf "$kept" "$fresh"
		mkdir -p "$fresh" && cd "$fresh"
		apt-get update -qq >&2
		package=$(apt-cache depends linux-image-6.12-cloud-amd64 2>/dev/null | sed -n 's/.*Depends: \(linux-image-6[^ ]*\)/\1/p' | head -1)
		[ -n "$package" ] || package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/.*Depends: \(linux-image-6\.12[^ ]*\)/\1/p' | head -1)
		[ -n "$package" ] || { say "apt knows no linux-image-6.12-cloud-amd64: is Debian's security suite configured?"; exit 1; }
		apt-get download -qq "$package" >&2 2>/dev/null || { say "cannot download $package"; exit 1; }
		dpkg-deb -x "$package"_*.deb . && rm -f "$package"_*.deb
		version=$(ls lib/modules) && depmod -b . "$version"
		# The uncompressed kernel: QEMU enters it through its PVH note, and the guest saves the work.
		python3 - "boot/vmlinuz-$version" vmlinux <<'PY'
import struct, subprocess, sys
image = open(sys.argv[1], "rb").read()
offset, length = struct.unpack_from("<II", image, 0x248)  # Documentation/arch/x86/boot.rst: payload_offset, payload_length
start = (image[0x1F1] + 1) * 512 + offset
done = subprocess.run(["zstd", "-dcq"], input=image[start : start + length], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
assert done.stdout[:4] == b"\x7fELF", "not a zstd-compressed kernel"
open(sys.argv[2], "wb").write(done.stdout)
PY
		seal "$fresh"
		cd / && mv "$fresh" "$kept"
	fi
	echo "$kept"
	;;
uml)
	kept=$cache/uml
	if ! is_whole "$kept"; then
		say "building User-mode Linux, some ten minutes on two cores"
		install_packages gcc make flex bison bc dwarves libc6-dev libelf-dev zlib1g-dev xz-utils binutils
		rm -rf "$kept" "$fresh"
		mkdir -p "$fresh" && chmod 755 "$fresh" && cd "$fresh"
		# A private view of the mirror that is configured already: the system's suites stay as they are.
		mkdir -p lists/partial cache/archives/partial out
		sed '/^$/,$d; s/^Suites:.*/Suites: trixie-backports/' /etc/apt/sources.list.d/debian.sources >view.sources
		view() { apt-get -qq -o Dir::Etc::sourcelist="$fresh/view.sources" -o Dir::Etc::sourceparts=- -o Dir::State::lists="$fresh/lists" -o Dir::Cache="$fresh/cache" "$@" >&2; }
		source=linux-source-7.2
		view update && view download "$source"
		dpkg-deb --fsys-tarfile "$source"_*.deb | tar -xO --wildcards "./usr/src/$source.tar.xz" | tar -xJ
		cd "$source"
		export ARCH=um
		make -s allnoconfig >&2
		scripts/kconfig/merge_config.sh -m .config "$here/uml.config" >&2
		make -s olddefconfig >&2
		make -s -j"$(nproc)" linux >&2
		strip -g -o ../out/linux linux
		seal ../out
		cd / && mv "$fresh/out" "$kept"
	fi
	echo "$kept"
	;;
*)
	say "no kernel '$which': give 6.12 or uml"
	exit 2
	;;
esac
