"""Packets for the gateway's own services, from an agent that is root.

Arguments: the gateway's MAC address, and what to send. Prints how many frames were sent.
"""
import sys
from scapy.all import BOOTP, DHCP, ICMP, IP, UDP, Ether, IPv6, ICMPv6EchoRequest, Raw, conf, \
    get_if_hwaddr

GATEWAY_MAC, BATTERY = sys.argv[1:]
MAC = get_if_hwaddr("eth0")


def flood():
    v4 = Ether(src=MAC, dst=GATEWAY_MAC) / IP(src="192.0.2.10", dst="192.0.2.1") / ICMP() / \
        Raw(b"x" * 64)
    v6 = Ether(src=MAC, dst=GATEWAY_MAC) / IPv6(src="2001:db8:a::10", dst="2001:db8:a::1") / \
        ICMPv6EchoRequest(data=b"x" * 64)
    for frame in (bytes(v4), bytes(v6)):
        for _ in range(400):
            yield frame


def discover(times=3):
    for _ in range(times):
        yield bytes(Ether(src=MAC, dst="ff:ff:ff:ff:ff:ff") /
                    IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67) /
                    BOOTP(chaddr=bytes(6)) / DHCP(options=[("message-type", "discover"), "end"]))


def for_others():
    """Questions whose answer would go where they say: at a relay, and to an address that is said."""
    ask = DHCP(options=[("message-type", "discover"), "end"])
    broadcast = IP(src="0.0.0.0", dst="255.255.255.255")
    own = IP(src="192.0.2.10", dst="192.0.2.1")
    for address in ("203.0.113.200", "192.0.2.140", "198.51.100.66"):
        for packet, fields in ((broadcast, {"giaddr": address}), (own, {"giaddr": address}),
                               (broadcast, {"ciaddr": address})):
            yield bytes(Ether(src=MAC, dst="ff:ff:ff:ff:ff:ff" if packet is broadcast else GATEWAY_MAC) /
                        packet / UDP(sport=68, dport=67) / BOOTP(chaddr=bytes(6), **fields) / ask)


def services():
    """Time over IPv4 and IPv6, a renewed address, and an address for a card that has none."""
    v4, v6 = IP(src="192.0.2.10", dst="192.0.2.1"), IPv6(src="2001:db8:a::10", dst="2001:db8:a::1")
    for packet, port in ((v4, 123), (v6, 123), (v4, 67)):
        frame = bytes(Ether(src=MAC, dst=GATEWAY_MAC) / packet / UDP(sport=4000, dport=port) /
                      Raw(b"now?"))
        for _ in range(400):
            yield frame
    yield from discovers()


def discovers():
    yield from [next(discover())] * 400


def many():
    """Time, from more IPv6 prefixes than a meter has room for, three times each."""
    base = IPv6(src="2001:db8:a:0:ffff::10", dst="2001:db8:a::1")
    frame = bytes(Ether(src=MAC, dst=GATEWAY_MAC) / base / UDP(sport=4000, dport=123) /
                  Raw(b"now?"))
    for number in range(12_000):
        # Two halves that cancel each other out leave the checksum as it is.
        halves = number.to_bytes(2, "big") + (number ^ 0xffff).to_bytes(2, "big")
        yield from [frame[:28] + halves + frame[32:]] * 3


socket, count = conf.L2socket(iface="eth0"), 0
for frame in globals()[BATTERY]():
    socket.send(frame)
    count += 1
print(count)
