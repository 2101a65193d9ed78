#!/bin/sh
# Makes this machine a node of the Cortex Mesh hub that served this script:
# fetches cortex-peer for this platform, checks its SHA-256, writes its configuration, and starts it.
#
#   curl -fsSL @HUB@/install.sh | sh -s -- --invite cxi1_...
#
# Everything is inside functions: a download that was cut short runs nothing.
set -eu

say() { printf '%s\n' "cortex: $*"; }
fail() {
    printf '%s\n' "cortex: $*" >&2
    exit 1
}

usage() {
    cat <<'USAGE'
usage: install.sh --invite cxi1_... [options]

  --invite TEXT   the invite from the hub's page; may be left out to upgrade a machine that has joined
  --hub URL       fetch from this hub (default: the one that served this script)
  --name NAME     what the hub should call this machine (default: as the invite says, or its host name)
  --service       run in the background as a systemd user service, also after a restart
  --no-start      install only
  --dir FOLDER    put the program there (default: ~/.local/bin; /usr/local/bin as root)
  --allow-root    let the peer run as root, which it refuses otherwise
USAGE
}

have() { command -v "$1" >/dev/null 2>&1; }

fetch() {
    if have curl; then
        curl -fsSL --retry 3 --retry-delay 1 -o "$2" "$1"
    elif have wget; then
        wget -q -O "$2" "$1"
    else
        fail "neither curl nor wget is here; install one of them (apt-get install curl) and try again"
    fi
}

sha256() {
    if have sha256sum; then
        sha256sum "$1" | cut -d ' ' -f 1
    elif have shasum; then
        shasum -a 256 "$1" | cut -d ' ' -f 1
    elif have openssl; then
        openssl dgst -sha256 "$1" | sed 's/^.*= *//'
    else
        fail "there is no sha256sum, shasum or openssl to check the download with; install one of them"
    fi
}

platform() {
    os=$(uname -s)
    machine=$(uname -m)
    case $os in
    Linux) os=linux ;;
    Darwin) os=macos ;;
    *) fail "there is no program for $os yet" ;;
    esac
    case $machine in
    x86_64 | amd64) machine=x86_64 ;;
    aarch64 | arm64) machine=aarch64 ;;
    *) fail "there is no program for $machine processors yet" ;;
    esac
    printf '%s-%s\n' "$os" "$machine"
}

# A YAML string: only backslash and quote need care once line breaks are refused.
yaml_string() { printf '"%s"' "$(printf '%s' "$1" | sed 's/\\/\\\\/g; s/"/\\"/g')"; }

write_configuration() {
    (
        umask 077
        mkdir -p "$(dirname "$config")"
        if [ -e "$config" ]; then
            mv -f "$config" "$config.old"
            say "kept the previous configuration as $config.old"
        fi
        {
            printf '# Configuration of cortex-peer. The invite works once and is erased when the machine has joined.\n'
            if [ -n "$name" ]; then printf 'name: %s\n' "$(yaml_string "$name")"; fi
            printf 'invite: %s\n' "$(yaml_string "$invite")"
        } >"$config.new"
        chmod 600 "$config.new"
        mv -f "$config.new" "$config"
    )
    say "wrote $config (only you can read it)"
}

start_service() {
    have systemctl && systemctl --user show-environment >/dev/null 2>&1 ||
        fail "no systemd user session answers here; run without --service, or: $program run --config $config$root_flag"
    units="${XDG_CONFIG_HOME:-$HOME/.config}/systemd/user"
    mkdir -p "$units"
    # systemd reads % in a unit as the beginning of a placeholder.
    command=$(printf '"%s" run --config "%s"%s' "$program" "$config" "$root_flag" | sed 's/%/%%/g')
    cat >"$units/cortex-peer.service" <<UNIT
[Unit]
Description=Cortex Mesh peer

[Service]
ExecStart=$command
Restart=on-failure
RestartSec=5
# 2: the configuration cannot be used; trying again will not help.
RestartPreventExitStatus=2

[Install]
WantedBy=default.target
UNIT
    systemctl --user daemon-reload
    systemctl --user enable cortex-peer.service
    systemctl --user restart cortex-peer.service
    say "the peer runs in the background; watch it with: journalctl --user -u cortex-peer -f"
    say "to keep it running while you are logged out: loginctl enable-linger"
}

main() {
    hub='@HUB@' invite='' name='' dir='' service='' start=yes root_flag=''
    while [ $# -gt 0 ]; do
        case $1 in
        --invite | --hub | --name | --dir)
            [ $# -ge 2 ] || fail "$1 needs a value; see --help"
            case $1 in
            --invite) invite=$2 ;;
            --hub) hub=${2%/} ;;
            --name) name=$2 ;;
            --dir) dir=$2 ;;
            esac
            shift 2
            ;;
        --service) service=yes && shift ;;
        --no-start) start='' && shift ;;
        --allow-root) root_flag=' --allow-root' && shift ;;
        -h | --help) usage && exit 0 ;;
        *) usage >&2 && fail "unknown option: $1" ;;
        esac
    done

    root=''
    if [ "$(id -u)" -eq 0 ]; then root=yes; fi
    [ -n "${HOME:-}" ] || fail "HOME is not set"
    if [ -z "$dir" ]; then
        if [ -n "$root" ]; then dir=/usr/local/bin; else dir=$HOME/.local/bin; fi
    fi
    config="${XDG_CONFIG_HOME:-$HOME/.config}/cortex-peer/peer.yaml"
    program=$dir/cortex-peer

    case $invite in
    '') [ -e "$config" ] || fail "an invite is needed: --invite cxi1_... (get one at $hub/download)" ;;
    *[!A-Za-z0-9_-]*) fail "this is not a whole invite; copy it again from $hub/download" ;;
    cxi1_?*) ;;
    *) fail "this is not an invite: it begins with cxi1_; copy it again from $hub/download" ;;
    esac
    case $name in
    *[[:cntrl:]]*) fail "a name has no line breaks or control characters" ;;
    esac

    platform=$(platform)
    file=cortex-peer-$platform
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    trap 'exit 130' INT TERM

    say "fetching $file from $hub"
    fetch "$hub/dist/SHA256SUMS" "$work/SHA256SUMS" || fail "cannot reach $hub; is the address right, and the hub running?"
    wanted=$(sed -n "s/^\([0-9a-f]\{64\}\)  $file\$/\1/p" "$work/SHA256SUMS")
    [ -n "$wanted" ] || fail "this hub has no program for $platform; it has: $(sed 's/^.*cortex-peer-//' "$work/SHA256SUMS" | tr '\n' ' ')"
    fetch "$hub/dist/$file" "$work/cortex-peer" || fail "the download of $hub/dist/$file failed; try again"
    got=$(sha256 "$work/cortex-peer")
    [ "$got" = "$wanted" ] || fail "the download is damaged or was altered (SHA-256 $got, expected $wanted); nothing was installed"
    say "checksum is right: $wanted"

    mkdir -p "$dir" || fail "cannot make $dir; choose another folder with --dir"
    # Beside its place first: a program that runs is replaced whole, or not at all.
    cp "$work/cortex-peer" "$program.new" || fail "cannot write to $dir; choose another folder with --dir"
    chmod 755 "$program.new"
    mv -f "$program.new" "$program"
    say "installed $program"
    case ":${PATH:-}:" in
    *":$dir:"*) ;;
    *) say "note: $dir is not in your PATH" ;;
    esac

    if [ -n "$invite" ]; then write_configuration; fi
    rm -rf "$work"

    if [ -z "$start" ]; then
        say "start it with: $program run --config $config$root_flag"
    elif [ -n "$root" ] && [ -z "$root_flag" ]; then
        say "not started: the peer does not run as root. Run this script as the user whose machine it is, or add --allow-root"
    elif [ -n "$service" ]; then
        start_service
    else
        say "starting; Ctrl-C stops the peer"
        # shellcheck disable=SC2086 # the flag is one word or none
        exec "$program" run --config "$config" $root_flag </dev/null
    fi
}

main "$@"
