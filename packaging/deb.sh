#!/bin/sh
# Makes a Debian package of each program: packaging/deb.sh [FOLDER OF PROGRAMS] [FOLDER FOR PACKAGES]
# Needs dpkg-deb and objdump (binutils). Nothing is compiled here: `make deb` does that first.
set -eu
cd "$(dirname "$0")/.."
programs=${1:-target/dist}
out=${2:-target/deb}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
architecture=$(dpkg --print-architecture)
mkdir -p "$out"

# The newest glibc that a program asks for.
glibc() {
    objdump -T "$1" | sed -n 's/.*(\{0,1\}GLIBC_\([0-9.]*\)).*/\1/p' | sort -V | tail -n 1
}

package() {
    program=$1 config=$2 example=$3 about=$4
    [ -x "$programs/$program" ] || { echo "$programs/$program is not there; run: make deb" >&2; exit 1; }
    root=$(mktemp -d)
    trap 'rm -rf "$root"' EXIT
    chmod 755 "$root"
    install -D -m 755 "$programs/$program" "$root/usr/bin/$program"
    install -D -m 644 "packaging/systemd/$program.service" "$root/usr/lib/systemd/system/$program.service"
    # May hold an invite.
    install -D -m 640 "$example" "$root/etc/$program/$config"
    [ "$program" = cortex-peer ] || chmod 644 "$root/etc/$program/$config"
    install -D -m 644 LICENSE "$root/usr/share/doc/$program/copyright"
    install -m 644 docs/operators.md docs/network.md "$root/usr/share/doc/$program/"
    mkdir "$root/DEBIAN"
    echo "/etc/$program/$config" >"$root/DEBIAN/conffiles"
    cat >"$root/DEBIAN/control" <<CONTROL
Package: $program
Version: $version
Architecture: $architecture
Maintainer: Cortex Mesh <packages@cortex-mesh.invalid>
Section: net
Priority: optional
Depends: libc6 (>= $(glibc "$programs/$program")), libgcc-s1
Installed-Size: $(du -sk "$root/usr" | cut -f 1)
Description: $about
CONTROL
    # A service that runs goes on with the new program; a new one waits until its settings are made.
    cat >"$root/DEBIAN/postinst" <<POSTINST
#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    systemctl try-restart $program.service
fi
[ -n "\${2:-}" ] || echo "$program: settings are in /etc/$program/$config; then: systemctl enable --now $program"
POSTINST
    cat >"$root/DEBIAN/prerm" <<PRERM
#!/bin/sh
set -e
if [ "\$1" = remove ] && [ -d /run/systemd/system ]; then
    systemctl disable --now $program.service
fi
PRERM
    cat >"$root/DEBIAN/postrm" <<POSTRM
#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
fi
# Keys and data in /var/lib/$program are an identity: they stay until you remove them.
POSTRM
    chmod 755 "$root/DEBIAN/postinst" "$root/DEBIAN/prerm" "$root/DEBIAN/postrm"
    dpkg-deb --root-owner-group --build "$root" "$out/${program}_${version}_$architecture.deb"
    rm -rf "$root"
    trap - EXIT
}

package cortex-relay relay.yaml relay/assets/relay.yaml "relay of Cortex Mesh: a meeting point for peers behind firewalls and their hubs"
package cortex-hub hub.yaml hub/assets/hub.yaml "hub of Cortex Mesh: people's own machines, reached from a conversation session"
package cortex-peer peer.yaml peer/assets/peer.yaml "peer of Cortex Mesh: makes this machine a node of a hub"
