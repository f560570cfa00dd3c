#!/usr/bin/env bash
# What a bare Debian or Ubuntu machine needs, in three parts. As root the missing packages are installed; otherwise the
# exact command is printed.
#   machine.sh python VENV   a virtual environment at VENV, a C compiler, Python's headers   (fails when it cannot)
#   machine.sh tpm           a software TPM, for the demo (without it the demo says that it simulates)
#   machine.sh tools         that, and what tests and benchmarks use: nginx, load generators
#                            (missing ones are named; tests that want them skip, unless CUBE_MESH_REQUIRE=all)
set -euo pipefail

say() { printf '== %s\n' "$*" >&2; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

may_install() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }

apt_install() {
    say "installing $*"
    if [ -z "${apt_updated:-}" ]; then
        apt-get update -qq || say "apt-get update failed; trying with the lists at hand"
        apt_updated=yes
    fi
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 install -y -qq --no-install-recommends "$@" </dev/null >/dev/null
}

usable() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

pick_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if usable "$candidate"; then echo "$candidate"; return; fi
    done
    return 1
}

headers() { "$1" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))'; }

make_python() {
    local venv=$1 python
    if ! command -v "${CC:-gcc}" >/dev/null; then
        may_install || fail "no C compiler, and cube-mesh compiles one extension. Run: sudo apt-get install gcc libc6-dev"
        apt_install gcc libc6-dev
    fi
    if ! python=$(pick_python); then
        [ -z "${PYTHON:-}" ] || fail "PYTHON=$PYTHON is not a Python 3.11 or later that can make virtual environments"
        may_install || fail "no Python 3.11 or later with venv. Run: sudo apt-get install python3 python3-venv python3-dev"
        apt_install python3 python3-venv python3-dev
        python=$(pick_python) || fail "this system's python3 is older than 3.11; install one and say PYTHON=/path/to/python3"
    fi
    if ! headers "$python"; then
        may_install || fail "Python.h is missing. Run: sudo apt-get install python3-dev"
        apt_install python3-dev
        headers "$python" || fail "Python.h of $python is still missing; install its development package"
    fi
    if [ ! -x "$venv/bin/python" ]; then
        say "making $venv with $("$python" --version)"
        "$python" -m venv "$venv"
    fi
}

# program:package
TPM="swtpm:swtpm swtpm_setup:swtpm-tools tpm2_quote:tpm2-tools"
TOOLS="$TPM nginx:nginx-light wrk:wrk h2load:nghttp2-client promtool:prometheus clang-14:clang-14 clang-14:libclang-rt-14-dev"
TCTI=libtss2-tcti-swtpm0

missing() {
    local pair
    for pair in "$@"; do
        PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%:*}" >/dev/null || echo "${pair##*:}"
    done
    compgen -G "/usr/lib/*/libtss2-tcti-swtpm.so*" >/dev/null || compgen -G "/usr/lib*/libtss2-tcti-swtpm.so*" >/dev/null ||
        echo "$TCTI"
}

make_tools() {
    local packages
    packages=$(missing "$@" | tr '\n' ' ')
    [ -n "$packages" ] || return 0
    if may_install; then
        # shellcheck disable=SC2086
        apt_install $packages || say "apt-get install failed"
        packages=$(missing "$@" | tr '\n' ' ')
    fi
    [ -z "$packages" ] || say "not on this machine: $packages; run: sudo apt-get install $packages"
}

case "${1:-}" in
    python) make_python "${2:?where to}" ;;
    # shellcheck disable=SC2086
    tpm) make_tools $TPM ;;
    # shellcheck disable=SC2086
    tools) make_tools $TOOLS ;;
    *) fail "usage: machine.sh python VENV | machine.sh tpm | machine.sh tools" ;;
esac
