#!/usr/bin/env bash
# Everything that the demo and the tests need, on a fresh Debian or Ubuntu machine: packages, npm modules, the native
# addon, the compiled sources and the test guest. Each step does only what is missing, so a second run is quick.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

state=.cache/setup
packages=(
  qemu-system-x86 qemu-utils qemu-block-extra nbdkit libnbd-bin # what we drive and what serves images
  libzstd1 # what compresses the memory of guests that move
  apparmor # its parser, which the tests show the profiles of domains
  busybox-static ovmf seabios kmod cpio zstd xz-utils           # the test guest
  build-essential python3                                       # the native addon
  libvirt-dev libvirt0 libxml2-utils                            # constants and schemas to hold ours against
  libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients     # to share images with, and to drive by their library
  python3-libvirt                                               # to measure ours against
  iproute2 openssl                                              # links to measure, certificates to test with
  openssh-client netcat-openbsd                                 # to reach a libvirtd over ssh
)

# A lock manager whose package starts services that take the host's watchdog, and a server that lets people in: not for
# everybody's machine, and without them their tests are skipped.
[ -z "${CI:-}" ] || packages+=(sanlock openssh-server)

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# Runs a command with its output in a log, which is shown only if the command fails.
quietly() {
  local log="$state/$1.log"
  shift
  "$@" >"$log" 2>&1 || { cat "$log" >&2; return 1; }
}

# Sets `root` to what makes a command run as root; dies where nothing does.
become_root() {
  if [ "$(id -u)" = 0 ]; then root=()
  elif ! command -v sudo >/dev/null; then die "only root may $1, and there is no sudo"
  elif sudo -n true 2>/dev/null; then root=(sudo -n)
  elif [ -t 0 ] && [ -t 2 ] && [ -z "${CI:-}" ]; then root=(sudo)
  else die "only root may $1, and sudo wants a password where nobody can be asked"
  fi
}

apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300)

update_package_lists() {
  become_root 'update the lists of packages'
  quietly apt-update "${root[@]}" "${apt[@]}" update || die 'apt-get update failed'
}

check_node() {
  command -v node >/dev/null || die 'Node.js 20.19 or later is missing (https://nodejs.org/en/download)'
  node -e 'const [a, b] = process.versions.node.split(".").map(Number); process.exit(a > 20 || (a === 20 && b >= 19) ? 0 : 1)' ||
    die "Node.js 20.19 or later is needed, this is $(node --version)"
}

install_packages() {
  if ! command -v dpkg-query >/dev/null; then
    say "no Debian or Ubuntu: please see to it that these are there: ${packages[*]}"
    return
  fi
  local installed missing=() one
  installed=$(dpkg-query -W -f='${db:Status-Abbrev} ${Package}\n' "${packages[@]}" 2>/dev/null | sed -n 's/^ii *//p' || true)
  for one in "${packages[@]}"; do
    grep -qxF "$one" <<<"$installed" || missing+=("$one")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  say "packages to install: ${missing[*]}"
  become_root "install: ${missing[*]}"
  update_package_lists
  quietly apt-install "${root[@]}" "${apt[@]}" install --no-install-recommends "${missing[@]}" || die 'apt-get install failed'
  say 'packages are installed'
}

# Whether node_modules holds the very versions of package-lock.json.
modules_are_current() {
  [ -f node_modules/.package-lock.json ] && node -e '
    const { readFileSync } = require("node:fs")
    const packages = (path) => JSON.parse(readFileSync(path, "utf8")).packages
    const [wanted, have] = ["package-lock.json", "node_modules/.package-lock.json"].map(packages)
    const stale = Object.entries(wanted).some(([path, { version, optional }]) =>
      path !== "" && have[path]?.version !== version && !(optional && have[path] === undefined))
    process.exit(stale ? 1 : 0)'
}

install_modules() {
  if modules_are_current; then return; fi
  say 'npm modules: installing what package-lock.json lists'
  quietly npm npm ci --include=dev --ignore-scripts --no-audit --no-fund || die 'npm ci failed'
}

compile() {
  local stamp=$state/compiled changed
  if [ -f "$stamp" ] && [ -f dist/src/index.js ]; then
    # some of the folders may not be there
    changed=$(find src test bench examples scripts tsconfig.json package-lock.json -newer "$stamp" -print -quit 2>/dev/null || true)
    [ -n "$changed" ] || return 0
  fi
  say 'compiling'
  touch "$stamp.new"
  node_modules/.bin/tsc -p . || die 'the sources do not compile'
  mv "$stamp.new" "$stamp"
}

build_guest() {
  # the guest's kernel comes from the package archive, though nothing of it is installed
  if [ ! -f .cache/guest/stamp ] && command -v apt-cache >/dev/null && [ -z "$(apt-cache search --names-only '^busybox-static$')" ]; then
    update_package_lists
  fi
  bash scripts/guest/build.sh || die 'building the test guest failed'
}

mkdir -p "$state"
exec 9>"$state/lock"
flock 9 # a test run and a demo may be started together
check_node
install_packages
install_modules
node scripts/install-native.mjs
compile
build_guest
say "all there (${SECONDS} s)"
