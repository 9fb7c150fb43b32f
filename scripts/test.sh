#!/usr/bin/env bash
# Everything that CI runs, after scripts/setup.sh: lint, generated files, all tests. With CI in the environment a test may
# be skipped only for what machines of CI need not have. Run by an ordinary user who may use sudo without a password,
# the tests that need root are run by root as well.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH="$PATH:/usr/sbin:/sbin"

may_be_skipped='needs to run as root|/dev/kvm|KVM|SELinux|AppArmor|LIBVIRT_SOURCE|file system with user attributes'

say() { printf 'test: %s\n' "$*"; }
die() { printf 'test: %s\n' "$*" >&2; exit 1; }

lint() {
  say 'lint'
  node_modules/.bin/eslint . || die 'eslint has complaints'
  node_modules/.bin/prettier --check --log-level warn . || die 'prettier would format these otherwise: npm run format'
}

check_generated() {
  say 'generated files'
  local script
  for script in scripts/generate-*.mjs; do
    if [ "$script" = scripts/generate-constants.mjs ] && [ ! -d /usr/include/libvirt ]; then
      say "skipped $script: needs the package libvirt-dev"
      continue
    fi
    node "$script" --check || die "what $script makes is not what is committed"
  done
}

# The compiled tests that still have a source.
compiled_tests() {
  find test -name '*.test.ts' | sort | sed 's|^|dist/|; s|ts$|js|'
}

# Runs the named tests: run_tests REPORT COMMAND...
run_tests() {
  local report=$1 failed=0 skipped forbidden
  shift
  mkdir -p .cache
  # one more than the cores of CI: a third of the time tests wait
  "$@" --test --test-concurrency=3 --test-timeout=900000 \
    --test-reporter=spec --test-reporter-destination=stdout \
    --test-reporter=tap --test-reporter-destination="$report" "${tests[@]}" || failed=$?
  skipped=$(sed -nE 's/^ *ok [0-9]+ - (.*) # SKIP ?(.*)$/\1: \2/p' "$report")
  if [ -n "$skipped" ]; then
    say 'skipped:'
    sed 's/^/  /' <<<"$skipped"
  fi
  forbidden=$(grep -vE "$may_be_skipped" <<<"$skipped" | sed '/^$/d' || true)
  if [ -n "${CI:-}" ] && [ -n "$forbidden" ]; then
    say 'these must not be skipped here:'
    sed 's/^/  /' <<<"$forbidden"
    failed=1
  fi
  counts=$(sed -nE 's/^# (tests|pass|fail|cancelled|skipped) ([0-9]+)$/\1 \2/p' "$report" | paste -sd, | sed 's/,/, /g')
  summary+=("$counts")
  [ "$failed" = 0 ] || failures=1
}

run_all_tests() {
  local counts
  say 'tests'
  mapfile -t tests < <(compiled_tests)
  [ ${#tests[@]} -gt 0 ] || die 'there are no tests'
  run_tests .cache/test-report.tap node
  [ "$(id -u)" = 0 ] && return
  if ! sudo -n true 2>/dev/null; then
    say 'the tests that need root are left out: there is no sudo without a password'
    return
  fi
  say 'the files with tests that need root, as root'
  mapfile -t tests < <(grep -rlE "requires\(.*'root'" test --include='*.test.ts' | sort | sed 's|^|dist/|; s|ts$|js|')
  run_tests .cache/test-report-root.tap sudo -n env "PATH=$PATH" "CI=${CI:-}" "VIRSTREAM_REQUIRE=${VIRSTREAM_REQUIRE:-}" "$(command -v node)"
}

if [ -n "${CI:-}" ]; then export VIRSTREAM_REQUIRE=all; fi
[ "${1:-}" = tests ] || { lint; check_generated; }
summary=() failures=0
run_all_tests
for line in "${summary[@]}"; do say "$line"; done
say "took ${SECONDS} s"
[ "$failures" = 0 ] || die 'there are failures'
