"""Frames that a bound agent must not send, from an agent that is root. Each carries a marker.

Arguments: the gateway's MAC address, and the battery. Prints how many frames were sent.
"""
import sys
from scapy.all import (
    ARP, Dot1AD, Dot1Q, Ether, ICMP, IP, IPv6, LLC, Raw, SNAP, TCP, UDP, conf,
    ICMPv6EchoRequest, ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6ND_RA, ICMPv6ND_Redirect,
    ICMPv6NDOptDstLLAddr, ICMPv6NDOptSrcLLAddr, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment,
)

GATEWAY_MAC, BATTERY = sys.argv[1:]
MARK = Raw(b"STRAY-PACKET")
MINE, OTHER, NOBODY = "02:00:00:00:00:10", "02:00:00:00:00:11", "02:00:00:00:00:99"
IP4, IP6 = "192.0.2.10", "2001:db8:a::10"
OTHER4, OTHER6 = "192.0.2.11", "2001:db8:a::11"
FREE4, FREE6 = "192.0.2.12", "2001:db8:a::12"
GATEWAY4, GATEWAY6 = "192.0.2.1", "2001:db8:a::1"
API, API6 = "198.51.100.10", "2001:db8:e::10"


def ether(mac=MINE, dst=GATEWAY_MAC):
    return Ether(src=mac, dst=dst)


def v4(source, destination=API):
    for payload in (TCP(sport=4000, dport=443, flags="S"), UDP(dport=53) / MARK,
                    UDP(dport=443) / MARK, ICMP() / MARK):
        yield IP(src=source, dst=destination) / payload


def v6(source, destination=API6):
    for payload in (TCP(sport=4000, dport=443, flags="S"), UDP(dport=53) / MARK,
                    UDP(dport=443) / MARK, ICMPv6EchoRequest() / MARK):
        yield IPv6(src=source, dst=destination) / payload


def addresses():
    """Another's MAC, another's address, and both wrong."""
    for mac, source, source6 in ((NOBODY, IP4, IP6), (OTHER, IP4, IP6), (MINE, OTHER4, OTHER6),
                                 (MINE, FREE4, FREE6), (NOBODY, FREE4, FREE6),
                                 (MINE, GATEWAY4, GATEWAY6), (MINE, "0.0.0.0", "::"),
                                 (NOBODY, "198.51.100.66", "2001:db8:e::66")):
        for packet in (*v4(source), *v6(source6), *v4(source, GATEWAY4), *v6(source6, GATEWAY6)):
            yield ether(mac) / packet


def tagged():
    """The right MAC and the right address, in a frame with one tag or more, or of another kind."""
    for packet in (*v4(IP4), *v6(IP6)):
        for vlan in (0, 1, 5, 4095):
            for priority in (0, 7):
                yield ether() / Dot1Q(vlan=vlan, prio=priority) / packet
            yield ether() / Dot1AD(vlan=vlan) / packet
            yield ether() / Dot1AD(vlan=vlan) / Dot1Q(vlan=0) / packet
            yield ether() / Dot1AD(vlan=0) / Dot1Q(vlan=vlan) / packet
            yield ether() / Dot1Q(vlan=0) / Dot1Q(vlan=vlan) / packet
        kind = 0x0800 if IP in packet else 0x86dd
        llc = LLC(dsap=0xaa, ssap=0xaa, ctrl=3) / SNAP(OUI=0, code=kind) / packet
        yield ether() / llc
        yield Ether(src=MINE, dst=GATEWAY_MAC, type=len(llc)) / llc
        for kind in (0x8847, 0x8863, 0x8864, 0x9100, 0x88e5, 0x0806, 0x9000, 0x88cc):
            yield Ether(src=MINE, dst=GATEWAY_MAC, type=kind) / Raw(bytes(packet))
    yield ether() / Dot1Q(vlan=0) / ARP(op=2, hwsrc=MINE, psrc=IP4, pdst=GATEWAY4)


def claims():
    """ARP and neighbour advertisements that say for somebody else's address: that is me."""
    for mac, card, address in ((MINE, MINE, OTHER4), (MINE, OTHER, OTHER4), (MINE, MINE, GATEWAY4),
                               (MINE, GATEWAY_MAC, GATEWAY4), (MINE, NOBODY, IP4),
                               (NOBODY, MINE, IP4), (OTHER, OTHER, IP4), (MINE, MINE, FREE4),
                               (NOBODY, NOBODY, IP4), (NOBODY, NOBODY, FREE4)):
        for kind in (1, 2):
            for target in (GATEWAY4, address):
                for destination in (GATEWAY_MAC, "ff:ff:ff:ff:ff:ff"):
                    yield ether(mac, destination) / ARP(op=kind, hwsrc=card, psrc=address,
                                                        hwdst=GATEWAY_MAC, pdst=target)
    for mac, source in ((MINE, IP6), (MINE, "fe80::10"), (MINE, OTHER6), (NOBODY, IP6),
                        (NOBODY, "fe80::10")):
        for override in (0, 1):
            for destination in (GATEWAY6, "ff02::1"):
                advert = ICMPv6ND_NA(tgt=OTHER6, O=override, S=1, R=1)
                yield ether(mac) / IPv6(src=source, dst=destination, hlim=255) / advert / \
                    ICMPv6NDOptDstLLAddr(lladdr=mac)
    for source in (OTHER6, FREE6, GATEWAY6):
        solicit = ICMPv6ND_NS(tgt=GATEWAY6) / ICMPv6NDOptSrcLLAddr(lladdr=MINE)
        yield ether() / IPv6(src=source, dst=GATEWAY6, hlim=255) / solicit
    for source in ("fe80::10", "fe80::1"):
        router = ICMPv6ND_RA(routerlifetime=9000) / ICMPv6NDOptSrcLLAddr(lladdr=MINE)
        yield ether() / IPv6(src=source, dst="ff02::1", hlim=255) / router
        redirect = ICMPv6ND_Redirect(tgt="fe80::10", dst=API6)
        yield ether() / IPv6(src=source, dst=GATEWAY6, hlim=255) / redirect


def pieces():
    """Advertisements for another's address that come in two fragments, whose target is in the
    second, from a source that is the agent's own."""
    number = 0
    for source in (IP6, "fe80::10"):
        for flags in ({"O": 0, "S": 1}, {"O": 1, "S": 0}, {"O": 1, "S": 1}):
            for destination in (GATEWAY6, "ff02::1"):
                for options in (b"", bytes(IPv6ExtHdrDestOpt(nh=58))):
                    number += 1
                    advert = IPv6(src=source, dst=destination, hlim=255) / ICMPv6ND_NA(
                        tgt=OTHER6, R=1, **flags) / ICMPv6NDOptDstLLAddr(lladdr=MINE)
                    whole = options + bytes(advert)[40:]
                    for offset in (0, len(options) + 8):
                        last = offset > 0
                        piece = Raw(whole[offset:] if last else whole[:len(options) + 8])
                        yield ether() / IPv6(src=source, dst=destination, hlim=255) / \
                            IPv6ExtHdrFragment(nh=60 if options else 58, offset=offset // 8,
                                               m=0 if last else 1, id=number) / piece


def send(frames):
    socket, count = conf.L2socket(iface="eth0"), 0
    for frame in frames:
        socket.send(frame)
        count += 1
    print(count)


send(globals()[BATTERY]())
