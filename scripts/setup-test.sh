#!/bin/sh
# Installs what the tests need and the machine lacks. Debian packages need root; nothing is installed twice.
set -eu

packages=""
need() { # need PROGRAM PACKAGE
    command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ] || packages="$packages $2"
}
need cc gcc
need make make
need curl curl
need ip iproute2
need nft nftables
need conntrack conntrack
need chromium chromium
need Xvfb xvfb
need xwininfo x11-utils
need dash dash
need tinyproxy tinyproxy
need microsocks microsocks
need nginx nginx-light
need faketime faketime
need node nodejs
need npm npm

if [ -n "$packages" ]; then
    if [ "$(id -u)" != 0 ]; then
        echo "The tests need these Debian packages:$packages" >&2
        echo "Run: sudo apt-get install -y --no-install-recommends$packages" >&2
        exit 1
    fi
    echo "Installing:$packages"
    # Servers are started by the tests that need them, and by nothing else.
    if [ -d /usr/sbin ] && [ ! -e /usr/sbin/policy-rc.d ]; then
        printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
        chmod +x /usr/sbin/policy-rc.d
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    apt-get update -qq
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -y -qq --no-install-recommends $packages
fi

if ! command -v cargo-nextest >/dev/null 2>&1; then
    cargo install --locked cargo-nextest
fi

# Vite and the types' generator need it; a distribution may have an older one.
if [ "$(node -p 'Number(process.versions.node.split(".")[0])')" -lt 20 ]; then
    echo "The web page needs Node.js 20 or later; this is $(node --version). See https://nodejs.org" >&2
    exit 1
fi
