#!/bin/sh
# systemd-networkd on a machine that has no /etc/machine-id, with a .network file that says one static
# IPv4 address and nothing else. Where a file does not say IPv6AcceptRA=no, networkd gets a DHCPv6 client
# ready, for routers that may speak up; the client needs an identifier (DUID), and that the machine's id.
# There is none, so the interface "failed", and the IPv4 address is never set. With an id, or with
# IPv6AcceptRA=no, it is.
#
# An image whose root cannot be written and which lacks even an empty /etc/machine-id is such a machine.
#
# Prints the version and what was seen; fails where that changes. Needs root and mmdebstrap.
set -eu

version=257.13-1~deb13u1
work=$(mktemp -d)
trap 'rm -rf --one-file-system "$work"' EXIT
mmdebstrap --quiet --variant=minbase --include="systemd=$version,iproute2" trixie "$work/root" \
    "${CLOAKROOM_DEBIAN:-http://deb.debian.org/debian}" 2>/dev/null

# FILE ID: networkd in namespaces of its own for eight seconds, and the address that it has set.
try() {
    unshare --mount --net --pid --fork sh -euc '
        cd "$1/root"
        user=$(sed -n "s/^systemd-network:x:\([0-9]*\):.*/\1/p" etc/passwd)
        printf "%s" "$3" >etc/machine-id
        [ -n "$3" ] || rm etc/machine-id
        mount -t proc proc proc
        mount -t sysfs -o ro sys sys
        mount --bind /dev dev
        mount -t tmpfs tmpfs run
        mkdir -p run/systemd/netif run/systemd/network
        chown "$user:$user" run/systemd/netif
        printf "$2" >run/systemd/network/10-probe.network
        ip link add probe0 type veth peer name probe1
        ip link set probe1 up
        SYSTEMD_LOG_TARGET=console chroot . timeout 8 /usr/lib/systemd/systemd-networkd >"$1/log" 2>&1 || true
        if ip -brief address show probe0 | grep -q 192.0.2.1/24; then
            echo set
        elif grep -q "probe0: Failed to configure DHCPv6 client" "$1/log"; then
            echo "not set, Failed to configure DHCPv6 client"
        else
            echo "not set"
        fi
    ' sh "$work" "$1" "$2"
}

static='[Match]\nName=probe0\n[Network]\nAddress=192.0.2.1/24\n'
id=0123456789abcdef0123456789abcdef
echo "systemd $version"
without=$(try "$static" "")
with=$(try "$static" "$id")
quiet=$(try "${static}IPv6AcceptRA=no\n" "")
echo "no machine id: $without"
echo "a machine id: $with"
echo "no machine id, IPv6AcceptRA=no: $quiet"
[ "$without|$with|$quiet" = "not set, Failed to configure DHCPv6 client|set|set" ] || {
    echo "This has changed"
    exit 1
}
