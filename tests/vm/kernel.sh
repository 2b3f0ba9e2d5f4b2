#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# kernel.sh 6.12|6.1|newest|uml: the test kernel in the cache, fetched or built first if need be; prints its path.
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
6.12) packages="linux-image-6.12-cloud-amd64 linux-image-cloud-amd64" ;;
6.1 | newest) packages=linux-image-cloud-amd64 ;;
uml) ;;
*)
	say "no kernel '$which': give 6.12, 6.1, newest or uml"
	exit 2
	;;
esac

# A private view of the mirror that is configured already: the system's suites stay as they are.
backports=
look_at_backports() {
	mkdir -p lists/partial cache/archives/partial
	sed '/^$/,$d; s/^Suites:.*/Suites: trixie-backports/' /etc/apt/sources.list.d/debian.sources >view.sources
	backports="-o Dir::Etc::sourcelist=$fresh/view.sources -o Dir::Etc::sourceparts=- -o Dir::State::lists=$fresh/lists -o Dir::Cache=$fresh/cache"
}
# shellcheck disable=SC2086
view_get() { apt-get -qq $backports -o APT::Sandbox::User=root "$@" >&2; }
# shellcheck disable=SC2086
version_of() { apt-cache $backports depends "$1" 2>/dev/null | sed -n "s/.*Depends: \\(linux-image-$2[^ ]*\\)/\\1/p" | head -1; }

fetch_kernel() {
	local package=""
	[ "$which" != newest ] || look_at_backports
	view_get update
	case $which in newest) series="[0-9]" ;; *) series=${which/./\\.}\\. ;; esac
	for each in $packages; do [ -n "$package" ] || package=$(version_of "$each" "$series"); done
	[ -n "$package" ] || { say "apt knows no $packages of $which: are Debian's security and backports suites to be had?"; exit 1; }
	# Later releases have it in parts.
	# shellcheck disable=SC2086
	parts=$(apt-cache $backports depends "$package" | sed -n "s/.*Depends: \\(linux-[a-z]*-${package#linux-image-}\\)/\\1/p")
	say "fetching $package" $parts
	# shellcheck disable=SC2086
	view_get download "$package" $parts
	for each in ./*.deb; do dpkg-deb -x "$each" .; done
	rm -rf ./*.deb lists cache view.sources
}

# The uncompressed kernel where zstd made the other one: QEMU enters it through its PVH note, and the
# guest saves the work.
unpack_kernel() {
	python3 - "$1" image <<'PY'
import struct, subprocess, sys
image = open(sys.argv[1], "rb").read()
offset, length = struct.unpack_from("<II", image, 0x248)  # Documentation/arch/x86/boot.rst: payload_offset, payload_length
start = (image[0x1F1] + 1) * 512 + offset
packed = image[start : start + length]
if packed.startswith(b"\x28\xb5\x2f\xfd"):
    image = subprocess.run(["zstd", "-dcq"], input=packed, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    assert image[:4] == b"\x7fELF", "not a zstd-compressed kernel"
open(sys.argv[2], "wb").write(image)
PY
}

# What a kernel without virtiofs of its own needs before it sees its root: the modules, and who loads them.
pack_modules() { # version
	install_packages busybox-static cpio
	mkdir -p early/bin early/modules early/proc early/dev early/root
	cp /bin/busybox early/bin/
	local number=100
	for module in virtio_pci virtiofs virtio_console; do
		modprobe -d . -S "$1" --show-depends "$module" | sed -n 's/^insmod //p'
	done | awk '!seen[$0]++' | while read -r file; do
		number=$((number + 1))
		cp "$file" "early/modules/$number.ko"
	done
	cat >early/init <<'SH'
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
for module in /modules/*.ko; do /bin/busybox insmod "$module"; done
for word in $(/bin/busybox cat /proc/cmdline); do case $word in init=*) init=${word#init=} ;; esac; done
/bin/busybox umount /proc
/bin/busybox mount -t virtiofs -o ro host /root
exec /bin/busybox switch_root /root "$init"
SH
	chmod 755 early/init
	(cd early && find . | cpio --quiet -o -H newc | gzip) >initramfs
	rm -rf early
}

[ "$which" = uml ] || install_packages qemu-system-x86 kmod zstd
[ "$which" = uml ] || [ -e /usr/lib/qemu/virtiofsd ] || install_packages virtiofsd
kept=$cache/$which
if is_whole "$kept"; then
	echo "$kept"
	exit
fi
rm -rf "$kept" "$fresh"
mkdir -p "$fresh" && chmod 755 "$fresh" && cd "$fresh"
case $which in
uml)
	say "building User-mode Linux, some ten minutes on two cores"
	install_packages gcc make flex bison bc dwarves libc6-dev libelf-dev zlib1g-dev xz-utils binutils
	look_at_backports
	source=linux-source-7.2
	view_get update && view_get download "$source"
	dpkg-deb --fsys-tarfile "$source"_*.deb | tar -xO --wildcards "./usr/src/$source.tar.xz" | tar -xJ
	cd "$source"
	export ARCH=um
	make -s allnoconfig >&2
	scripts/kconfig/merge_config.sh -m .config "$here/uml.config" >&2
	make -s olddefconfig >&2
	make -s -j"$(nproc)" linux >&2
	mkdir ../out && strip -g -o ../out/linux linux
	fresh_kept=$fresh/out
	;;
*)
	fetch_kernel
	[ -e lib ] || ln -s usr/lib lib # merged, in later releases
	version=$(ls lib/modules) && depmod -b . "$version"
	packed=boot/vmlinuz-$version
	[ -e "$packed" ] || packed=lib/modules/$version/vmlinuz
	unpack_kernel "$packed"
	grep -q /virtiofs "lib/modules/$version/modules.builtin" || pack_modules "$version"
	fresh_kept=$fresh
	;;
esac
seal "$fresh_kept"
cd / && mv "$fresh_kept" "$kept"
echo "$kept"
