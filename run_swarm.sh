#!/usr/bin/env bash
# Sets up what the project needs, then hands over:
#   ./run_swarm.sh                a whole swarm on this machine (`swarm demo`)
#   ./run_swarm.sh COMMAND ...    any other command of `swarm`; see ./run_swarm.sh --help
#   ./run_swarm.sh test [ARGS]    the test suite, with ARGS for pytest
set -euo pipefail
caller=$PWD # where the paths that the user names begin
cd "$(dirname "${BASH_SOURCE[0]}")"
root=$PWD
venv=.venv
log=.venv/setup.log
need_mb=6000 # of disk, for the packages and pip's work

trap 'echo "run_swarm.sh: stopped; start again to go on" >&2; exit 130' INT TERM

fail() { echo "run_swarm.sh: $1" >&2; exit 1; }

find_python() {
  local candidate
  for candidate in "${SWARM_PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11 python; do
    [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
    found=$candidate
    "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
    python=$candidate
    return 0
  done
  [ -n "${found:-}" ] || fail "no Python found: install Python 3.11 or newer (https://www.python.org/downloads)"
  fail "$($found --version 2>&1) cannot be used: install Python 3.11 or newer with its venv module, or set SWARM_PYTHON"
}

# On a terminal, the step that pip is at, in one line that is overwritten; elsewhere nothing.
show_progress() {
  local line
  while read -r line; do
    [ -t 2 ] || continue
    case "$line" in
      Collecting*|Downloading*|Building*|Installing*) printf '\r\033[K  %.76s' "$line" >&2 ;;
    esac
  done
  [ ! -t 2 ] || printf '\r\033[K' >&2
}

# $1: "" or "test". Nothing is done when the finished set-up is of these very files.
set_up() {
  local stamp="$venv/ready${1:+-$1}" wanted
  wanted=$(cat pyproject.toml constraints.txt run_swarm.sh | cksum)
  [ "$(cat "$stamp" 2>/dev/null || true)" = "$wanted" ] && [ -x "$venv/bin/python" ] && return 0
  find_python
  local free_mb
  free_mb=$(df -Pm . | awk 'NR == 2 { print $4 }')
  if [ ! -e "$venv/ready" ] && [ "$free_mb" -lt "$need_mb" ]; then
    fail "only $free_mb MB free in $PWD: the packages need $need_mb MB; make room and start again"
  fi
  # A first run that was interrupted leaves no stamp: what it half made is made anew.
  [ -e "$venv/ready" ] || rm -rf "$venv" || fail "cannot remove the unfinished $PWD/$venv: delete it and start again"
  [ -x "$venv/bin/python" ] || "$python" -m venv "$venv" || fail "cannot make $PWD/$venv with $python: see above"
  echo "setting up in $PWD/$venv; this takes a few minutes the first time (details in $log)" >&2
  if ! "$venv/bin/python" -m pip install --disable-pip-version-check --no-input \
      --constraint constraints.txt --editable ".${1:+[$1]}" 2>&1 | tee "$log" | show_progress; then
    if grep -qi 'no space left' "$log"; then fail "the disk is full: make room and start again (details in $log)"; fi
    if grep -qiE 'connection|resolve|timed out|proxy|certificate' "$log"; then
      fail "a package registry cannot be reached: check the network and start again (details in $log)"
    fi
    fail "installing failed: $(grep -i '^error' "$log" | tail -n 1); details in $log"
  fi
  if [ -z "${1:-}" ] && ! "$venv/bin/python" -m pip install --disable-pip-version-check --no-input \
      --constraint constraints.txt --editable ".[reasoning]" >>"$log" 2>&1; then
    echo "the task reasoning_gym is left out: a part of it (pycosat) needs a C compiler (details in $log)" >&2
  fi
  "$venv/bin/python" -m swarm.ledger.toolchain >>"$log" 2>&1 || fail "$(tail -n 1 "$log")"
  echo "$wanted" >"$venv/ready"
  echo "$wanted" >"$stamp"
}

case "${1:-}" in
  test)
    shift
    set_up test
    "$venv/bin/ruff" check . && "$venv/bin/ruff" format --check . && "$venv/bin/mypy" || fail "lint or types failed: see above"
    exec "$venv/bin/python" -m pytest --numprocesses 2 --dist loadgroup "$@"
    ;;
  "") set_up ""; cd "$caller"; exec "$root/$venv/bin/swarm" demo ;;
  *) set_up ""; cd "$caller"; exec "$root/$venv/bin/swarm" "$@" ;;
esac
