#!/usr/bin/env bash
# Makes the guest of the live tests and the demo: the distribution's kernel and an initramfs of busybox, a few modules and
# our agent as /init. Needs no root as long as apt's lists and gcc are there. Nothing is installed.
#   scripts/guest/build.sh            the cloud kernel (virtio, ide), in .cache/guest
#   scripts/guest/build.sh generic    the distribution's full kernel (also sata, usb), in .cache/guest-generic
# Leaves vmlinux (unpacked: it boots faster than vmlinuz where the CPU is emulated) and initramfs.cpio there.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
flavour=${1:-cloud}
case $flavour in
  cloud) out=$here/../../.cache/guest packages='linux-image-cloud-amd64 linux-image-kvm linux-image-virtual' ;;
  generic) out=$here/../../.cache/guest-generic packages='linux-image-amd64 linux-image-generic' ;;
  *) echo "usage: $0 [cloud|generic]" >&2; exit 2 ;;
esac
modules='virtio_pci virtio_blk virtio_scsi virtio_net virtio_console virtio-rng virtio_balloon virtio_input
  ata_piix ahci sd_mod sr_mod xhci-pci ehci-pci uhci-hcd usb-storage uas button evdev'

stamp=$(cat "$here"/* | sha256sum | cut -d' ' -f1)
is_fresh() { [[ -s $out/vmlinux && -s $out/initramfs.cpio && $(cat "$out/stamp" 2>/dev/null) == "$stamp" ]]; }
if is_fresh; then exit 0; fi # someone else may have built it: nothing is written then

mkdir -p "$out"
out=$(cd "$out" && pwd)
exec 9>"$out/.lock"
flock 9
if is_fresh; then exit 0; fi

work=$(mktemp -d "$out/work.XXXXXX")
trap 'rm -rf "$work"' EXIT

# the newest kernel package that one of the meta packages stands for
kernel_package() {
  local meta name
  for meta in $packages; do
    name=$(apt-cache depends "$meta" 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1)
    if [[ -n $name ]]; then echo "$name"; return; fi
  done
  echo "guest: apt knows none of: $packages (apt-get update helps where its lists are empty)" >&2
  return 1
}

# Downloads a package into the cache, once, and unpacks it.
unpack() {
  local package=$1 deb
  deb=$(find "$out" -maxdepth 1 -name "${package}_*.deb" | head -n 1)
  if [[ -z $deb ]]; then
    echo "guest: downloading $package" >&2
    (cd "$work" && apt-get download -q "$package" >&2 2>"$work/apt.log" || { cat "$work/apt.log" >&2; exit 1; })
    mv "$work/$package"_*.deb "$out/"
    deb=$(find "$out" -maxdepth 1 -name "${package}_*.deb" | head -n 1)
  fi
  dpkg-deb -x "$deb" "$work/root"
}

# The ELF file inside a bzImage (Documentation/x86/boot.rst: setup_sects, payload_offset, payload_length).
unpack_kernel() {
  local image=$1 setup offset length magic tool
  number() { od -An -tu"$2" -j "$1" -N "$2" "$image" | tr -d ' '; }
  setup=$(number 497 1)
  offset=$(((setup == 0 ? 4 : setup) * 512 + 512 + $(number 584 4)))
  length=$(number 588 4)
  tail -c +$((offset + 1)) "$image" | head -c "$length" >"$work/payload" || true
  magic=$(od -An -tx1 -N 4 "$work/payload" | tr -d ' ')
  case $magic in
    02214c18) tool='lz4 -dc' ;;
    28b52ffd) tool='zstd -dcq' ;;
    1f8b*) tool='gzip -dc' ;;
    fd377a58) tool='xz -dc --single-stream' ;;
    *) tool='' ;;
  esac
  # what follows the compressed kernel (its length) makes the tools complain: the ELF magic is what counts
  if [[ -n $tool ]] && command -v "${tool%% *}" >/dev/null; then $tool <"$work/payload" >"$work/vmlinux" 2>/dev/null || true; fi
  if [[ $(od -An -tx1 -N 4 "$work/vmlinux" 2>/dev/null | tr -d ' ') != 7f454c46 ]]; then
    echo "guest: can't unpack $image (${tool%% *} missing?), the guest will boot more slowly" >&2
    cp "$image" "$work/vmlinux"
  fi
}

# Modules in the order in which they must be loaded; what the kernel has built in is left out.
declare -A seen=()
add_module() {
  local name=${1//-/_} file dependency
  if [[ -n ${seen[$name]:-} ]]; then return; fi
  seen[$name]=1
  file=${files[$name]:-}
  if [[ -z $file ]]; then return; fi
  for dependency in $(module_file "$file" | grep -azo '^depends=.*' | tr '\0' '\n' | sed -n 's/^depends=//p' | tr ',' ' '); do
    add_module "$dependency"
  done
  module_file "$file" >"$work/tree/modules/$name.ko"
  echo "$name.ko" >>"$work/tree/modules/order"
}
module_file() {
  case $1 in
    *.zst) zstd -dcq "$1" ;;
    *.xz) xz -dc "$1" ;;
    *) cat "$1" ;;
  esac
}

kernel=$(kernel_package)
unpack "$kernel"
if ! find "$work/root" -name 'virtio_blk.ko*' | grep -q .; then unpack "${kernel/linux-image/linux-modules}"; fi
if ! find "$work/root" -name 'vmlinuz-*' | grep -q .; then echo "guest: no kernel in $kernel" >&2; exit 1; fi
unpack_kernel "$(find "$work/root/boot" -name 'vmlinuz-*' | head -n 1)"

mkdir -p "$work/tree"/{dev,proc,sys,bin,modules,tmp,etc}
: >"$work/tree/modules/order"
declare -A files=()
while read -r file; do
  name=${file##*/}
  name=${name%%.ko*}
  files[${name//-/_}]=$file
done < <(find "$work/root" -name '*.ko*' -path '*/kernel/*')
for module in $modules; do add_module "$module"; done

busybox=$(command -v busybox || true)
if [[ -z $busybox ]] || ! file -L "$busybox" 2>/dev/null | grep -q 'static'; then
  unpack busybox-static
  busybox=$(find "$work/root" -path '*bin/busybox' | head -n 1)
fi
cp -L "$busybox" "$work/tree/bin/busybox"
ln -s busybox "$work/tree/bin/sh"
gcc -O2 -Wall -Wextra -Werror -static -pthread -s -o "$work/tree/init" "$here"/*.c

# The kernel takes an unpacked archive as well, and needs no time to unpack it. Owners don't matter: /init runs as root anyway.
(cd "$work/tree" && find . -print0 | LC_ALL=C sort -z | cpio --null --quiet -o -H newc -R 0:0 >"$work/initramfs.cpio")
mv "$work/vmlinux" "$work/initramfs.cpio" "$out/"
echo "$stamp" >"$out/stamp"
echo "guest: $kernel and $(wc -l <"$work/tree/modules/order") modules in $out" >&2
