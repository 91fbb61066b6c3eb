#!/usr/bin/env bash
# Installs what tests and the demo need and this machine lacks: Debian packages, and the two virtual environments. With the
# argument `bench` also the programs that the bench compares with.
# A second run finds the stamps and does nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# What must be there, and the package that brings it: a program in PATH or a path.
needed=(
    "qemu-img qemu-utils"
    "xorriso xorriso"
    "bindfs bindfs"
    "fusermount3 fuse3"
    "/usr/lib/postgresql/*/bin/initdb postgresql"
    "memcached memcached"
    "chromium chromium"
    "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf fonts-dejavu-core"
    "ip iproute2"
    "cc gcc"
    "/usr/include/stdio.h libc6-dev"
)
[[ ${1:-} == bench ]] && needed+=("rclone rclone")

find_python() {
    local candidate
    for candidate in python3.11 python3 /usr/bin/python3.11 /usr/bin/python3; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "Python 3.11 is missing. On Debian 12: apt-get install python3.11 python3.11-venv" >&2
    return 1
}

missing_packages() {
    local what package
    for entry in "${needed[@]}"; do
        read -r what package <<<"$entry"
        if [[ $what == /* ]]; then
            compgen -G "$what" >/dev/null || echo "$package"
        else
            PATH="$PATH:/usr/sbin:/sbin" command -v "$what" >/dev/null || echo "$package"
        fi
    done
    "$python" -c 'import ensurepip, venv' 2>/dev/null || echo python3.11-venv
}

install_packages() {
    local packages
    mapfile -t packages < <(missing_packages)
    [[ ${#packages[@]} -gt 0 ]] || return 0
    local install="apt-get install -y --no-install-recommends ${packages[*]}" as_root=()
    if [[ $(id -u) -ne 0 ]]; then
        if ! sudo -n true 2>/dev/null; then
            echo "Debian packages are missing. Run this once, then try again:" >&2
            echo "sudo sh -c 'apt-get update && $install'" >&2
            return 1
        fi
        as_root=(sudo -n)
    fi
    if ! command -v apt-get >/dev/null; then
        echo "These programs are missing and there is no apt-get to install them with: ${packages[*]}" >&2
        return 1
    fi
    echo "Installing Debian packages: ${packages[*]}"
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -qq
    # shellcheck disable=SC2086
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive $install -qq >/dev/null
}

# A stamp holds the digest of what it stands for, so that a changed pin or another Python builds anew.
digest() { { cat "$@"; "$python" -VV; pwd; } | sha256sum | cut -d' ' -f1; }

make_environment() {
    local folder=$1
    shift
    local wanted files=() file
    wanted=$(digest "$@")
    if [[ -x $folder/bin/python && -f $folder/stamp && $(<"$folder/stamp") == "$wanted" ]]; then
        return
    fi
    for file in "$@"; do files+=(-r "$file"); done
    echo "Installing Python packages into $folder"
    # An environment made by another Python or at another place cannot be mended; one whose pins changed can.
    if ! "$folder/bin/python" -m pip --version >/dev/null 2>&1; then
        rm -rf "$folder"
        "$python" -m venv "$folder"
    fi
    # What is never imported need not be compiled; Python compiles the rest when it imports it.
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "${files[@]}"
    echo "$wanted" >"$folder/stamp"
}

python=$(find_python)
install_packages
# Both at once; when this script ends early, the other ends too.
set -m
make_environment .venv-servers tests/servers/requirements.txt &
servers=$!
set +m
trap 'kill -- "-$servers" 2>/dev/null || true' EXIT
make_environment .venv requirements.txt requirements-dev.txt
wait "$servers"
