#!/bin/sh
# firewalld beside a transparent proxy, with the client's interface in the zone "trusted". Over IPv4 the client
# reaches the proxy. Over IPv6 it does not: firewalld's IPv6_rpfilter=yes, the default, looks for the way back to
# the source with the packet's mark ("fib saddr . mark . iif oif missing drop"), and the mark by which the proxy
# captures selects the routing table whose only route is a local one, which counts as none. IPv6_rpfilter=loose
# leaves out the interface and not the mark, and drops as well; only "no" lets the client through. Nothing is
# logged, and IPv4 has no such check.
#
# Prints the version and the connections that the proxy got; fails where that changes. Needs root and mmdebstrap.
set -eu

version=2.3.1-1+deb13u1
work=$(mktemp -d)
trap 'rm -rf --one-file-system "$work"' EXIT
mmdebstrap --quiet --variant=minbase --include="firewalld=$version,nftables,iproute2,python3,dbus" trixie "$work/root" \
    "${CLOAKROOM_DEBIAN:-http://deb.debian.org/debian}" 2>/dev/null

cat >"$work/root/root/proxy.py" <<'PROXY'
import socket, sys
listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
listener.setsockopt(socket.SOL_IP, 19, 1)       # IP_TRANSPARENT
listener.setsockopt(socket.IPPROTO_IPV6, 75, 1)     # IPV6_TRANSPARENT
listener.bind(("::", 8443))
listener.listen()
print("listens", flush=True)
while True:
    connection, _ = listener.accept()
    connection.sendall(b"proxy")
    connection.close()
PROXY
cat >"$work/root/root/client.py" <<'CLIENT'
import socket, sys
for address in sys.argv[1:]:
    try:
        with socket.create_connection((address, 443), timeout=4) as connection:
            print(connection.recv(5).decode(), end=" ")
    except OSError:
        print("nothing", end=" ")
CLIENT
cat >"$work/root/root/rules.nft" <<'RULES'
table inet capture {
    chain prerouting {
        type filter hook prerouting priority mangle; policy accept;
        iifname != "agents0" accept
        meta nfproto ipv4 tcp dport 443 tproxy ip to 127.0.0.1:8443 meta mark set 0x1 accept
        meta nfproto ipv6 tcp dport 443 tproxy ip6 to [::1]:8443 meta mark set 0x1 accept
    }
}
RULES

# CHECK: the answers over IPv4 and IPv6 with that value of IPv6_rpfilter.
try() {
    unshare --mount --net --pid --fork sh -euc '
        # `ip netns` needs a root that is a mount itself.
        mount --bind "$1/root" "$1/root"
        cd "$1/root"
        mount -t proc proc proc
        mount -t sysfs -o ro sys sys
        mount --bind /dev dev
        mount -t tmpfs tmpfs run
        mkdir -p run/dbus run/netns
        sed -i "s/^IPv6_rpfilter=.*/IPv6_rpfilter=$2/" etc/firewalld/firewalld.conf
        exec chroot . sh -euc "$3"
    ' sh "$work" "$1" '
        ip link set lo up
        ip netns add client
        ip link add agents0 type veth peer name eth0 netns client
        ip addr add 192.0.2.1/24 dev agents0
        ip addr add 2001:db8:a::1/64 dev agents0 nodad
        ip link set agents0 up
        ip -n client addr add 192.0.2.2/24 dev eth0
        ip -n client addr add 2001:db8:a::2/64 dev eth0 nodad
        ip -n client link set eth0 up
        ip -n client route add default via 192.0.2.1
        ip -n client route add default via 2001:db8:a::1
        ip rule add fwmark 1 lookup 100
        ip -6 rule add fwmark 1 lookup 100
        ip route add local default dev lo table 100
        ip -6 route add local default dev lo table 100
        nft -f /root/rules.nft
        python3 /root/proxy.py >/run/proxy &
        dbus-daemon --system --fork
        firewalld --nofork --nopid >/dev/null 2>&1 &
        for i in $(seq 60); do
            firewall-cmd --state >/dev/null 2>&1 && grep -q listens /run/proxy && break
            sleep 0.5
        done
        firewall-cmd --quiet --zone=trusted --add-interface=agents0
        ip netns exec client python3 /root/client.py 198.51.100.10 2001:db8:e::10
    '
}

echo "firewalld $version: an answer over IPv4, and over IPv6"
seen=
for check in yes loose no; do
    got=$(try "$check")
    echo "IPv6_rpfilter=$check: $got"
    seen="$seen$check: $got|"
done
[ "$seen" = "yes: proxy nothing |loose: proxy nothing |no: proxy proxy |" ] || {
    echo "This has changed"
    exit 1
}
