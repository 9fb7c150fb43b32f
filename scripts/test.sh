#!/usr/bin/env bash
# Everything that CI runs, after scripts/setup.sh: lint, generated files, all tests. With CI in the environment a test may
# be skipped only for what machines of CI need not have.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH="$PATH:/usr/sbin:/sbin"

may_be_skipped='/dev/kvm|KVM|SELinux|AppArmor|LIBVIRT_SOURCE|file system with user attributes'

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

run_tests() {
  say 'tests'
  local report=.cache/test-report.tap failed=0 skipped forbidden tests
  mkdir -p .cache
  mapfile -t tests < <(compiled_tests)
  [ ${#tests[@]} -gt 0 ] || die 'there are no tests'
  node --test --test-concurrency=2 --test-timeout=900000 \
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
  say "$(sed -nE 's/^# (tests|pass|fail|cancelled|skipped) ([0-9]+)$/\1 \2/p' "$report" | paste -sd, | sed 's/,/, /g') (${SECONDS} s)"
  [ "$failed" = 0 ] || die 'there are failures'
}

if [ -n "${CI:-}" ]; then export VIRSTREAM_REQUIRE=all; fi
[ "${1:-}" = tests ] || { lint; check_generated; }
run_tests
