"""Packets that no honest program sends, from an agent that is root. Each carries a marker.

Arguments: the gateway's MAC address, and the battery. Prints how many frames were sent.
"""
import struct
import sys
import time

from scapy.all import (
    AH, ARP, BOOTP, DHCP, DNS, DNSQR, Dot1AD, Dot1Q, ESP, Ether, GRE, ICMP, IP, IPOption,
    IPOption_LSRR, IPOption_RR, IPOption_Router_Alert, IPOption_SSRR, IPv6,
    IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop, IPv6ExtHdrRouting,
    IPv6ExtHdrSegmentRouting, Raw, SCTP, SCTPChunkInit, TCP, UDP, conf, fragment, fragment6,
    get_if_hwaddr,
    ICMPv6DestUnreach, ICMPv6EchoReply, ICMPv6EchoRequest, ICMPv6MLReport2, ICMPv6ND_NA,
    ICMPv6ND_NS, ICMPv6ND_RA, ICMPv6ND_RS, ICMPv6ND_Redirect, ICMPv6NDOptPrefixInfo,
    HBHOptUnknown, ICMPv6PacketTooBig, Jumbo, PadN, RouterAlert,
)

GATEWAY_MAC, BATTERY = sys.argv[1:]
MARK = Raw(b"STRAY-PACKET")
ME, ME6 = "192.0.2.10", "2001:db8:a::10"
API, API6 = "198.51.100.10", "2001:db8:e::10"
EVIL, EVIL6 = "198.51.100.66", "2001:db8:e::66"
MAC = get_if_hwaddr("eth0")
ETHER = Ether(src=MAC, dst=GATEWAY_MAC)
PORTS = [1, 22, 53, 80, 123, 443, 853, 3478, 4500, 8200, 8443, 15001, 51820, 65535]


def v4(**fields):
    return IP(**{"src": ME, "dst": API, **fields})


def v6(**fields):
    return IPv6(**{"src": ME6, "dst": API6, **fields})


def inner():
    """Returns packets that are carried: new connections to a port that is captured and to others, and datagrams."""
    for port in (443, 22):
        yield TCP(sport=4000, dport=port, flags="S", seq=1) / MARK
    for port in (443, 53, 9):
        yield UDP(sport=4000, dport=port) / MARK


def extension_headers():
    chains = [
        lambda: IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0" * 4)]),
        lambda: IPv6ExtHdrHopByHop(options=[RouterAlert()]),
        lambda: IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 4)]),
        lambda: IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt(),
        lambda: IPv6ExtHdrDestOpt() / IPv6ExtHdrHopByHop(),
        lambda: IPv6ExtHdrRouting(type=0, segleft=1, addresses=[EVIL6]),
        lambda: IPv6ExtHdrRouting(type=2, segleft=1, addresses=[EVIL6]),
        lambda: IPv6ExtHdrRouting(type=0, segleft=0, addresses=[EVIL6]),
        lambda: IPv6ExtHdrSegmentRouting(addresses=[EVIL6, API6], segleft=1),
        lambda: IPv6ExtHdrFragment(),
        lambda: AH(spi=1, payloadlen=4, icv=b"\0" * 12),
    ]
    for chain in chains:
        for destination in (API6, EVIL6, "2001:db8:a::1", "2001:db8:b::10"):
            for payload in inner():
                yield v6(dst=destination) / chain() / payload
    many = IPv6ExtHdrDestOpt()
    for _ in range(20):
        many = many / IPv6ExtHdrDestOpt()
    for payload in inner():
        yield v6() / many / payload
    for number in (59, 135, 139, 140, 253, 254, 255):
        yield v6(nh=number) / MARK
        yield v6() / IPv6ExtHdrDestOpt(nh=number) / MARK
    for destination in ("::ffff:198.51.100.10", "64:ff9b::c633:640a", "2002:c633:640a::1",
                        "::198.51.100.10", "ff02::1", "ff05::2", "fe80::1", "::1", "::"):
        for payload in inner():
            yield v6(dst=destination) / payload


def fragments():
    big = Raw(b"STRAY-PACKET" * 200)
    for destination in (API, EVIL, "192.0.2.140", "192.0.2.1"):
        for payload in (UDP(dport=443) / big, UDP(dport=53) / big, ICMP() / big,
                        TCP(dport=443, flags="S") / big, TCP(dport=22, flags="S") / big):
            whole = fragment(v4(dst=destination) / payload, fragsize=504)
            yield from whole
            yield from reversed(whole)
            yield whole[0]
            yield whole[-1]
    # The ports stand in the second fragment, or are written over by it.
    for offset in (0, 1, 2):
        yield v4(id=77 + offset, flags="MF") / TCP(dport=443, flags="S") / MARK
        yield v4(id=77 + offset, flags=0, frag=offset, proto=6) / Raw(b"\0\x16" * 20) / MARK
    header = bytes(TCP(sport=4000, dport=22, flags="S"))
    yield v4(id=90, flags="MF", proto=6) / Raw(header[:8])
    yield v4(id=90, frag=1, proto=6) / Raw(header[8:]) / MARK
    for destination in (API6, EVIL6, "2001:db8:b::10"):
        for payload in (UDP(dport=443) / big, TCP(dport=443, flags="S") / big,
                        TCP(dport=22, flags="S") / big, ICMPv6EchoRequest() / big):
            yield from fragment6(v6(dst=destination) / IPv6ExtHdrFragment(id=5) / payload, 600)
        # The header chain is not whole in the first fragment; and overlaps.
        yield v6(dst=destination) / IPv6ExtHdrFragment(id=6, m=1, nh=60) / IPv6ExtHdrDestOpt(nh=6)
        yield v6(dst=destination) / IPv6ExtHdrFragment(id=6, offset=1, nh=60) / \
            TCP(dport=443, flags="S") / MARK
        for offset in (0, 1, 2):
            yield v6(dst=destination) / IPv6ExtHdrFragment(id=7, m=1, nh=17) / \
                UDP(dport=443) / Raw(b"STRAY-PACKET" * 2)
            yield v6(dst=destination) / IPv6ExtHdrFragment(id=7, offset=offset, nh=17) / MARK


def errors():
    """Packets that the kernel answers with an error which quotes them, from sources of others."""
    forged = (EVIL6, API6, "2001:db8:b::10", "2001:db8:dead::1", "2001:db8:f::2")
    for source in (*forged, ME6):
        for destination in (API6, EVIL6, "2001:db8:a::1", "2001:db8:b::10"):
            for number in (0x9e, 0xde):
                unknown = IPv6ExtHdrHopByHop(options=[HBHOptUnknown(otype=number, optdata=b"\0" * 4)])
                yield v6(src=source, dst=destination) / unknown / UDP(sport=4000, dport=443) / MARK
            for length in (10, 70000):
                jumbo = IPv6ExtHdrHopByHop(options=[Jumbo(jumboplen=length)])
                yield v6(src=source, dst=destination) / jumbo / UDP(dport=443) / MARK
            yield v6(src=source, dst=destination, hlim=1) / UDP(dport=443) / MARK
            yield v6(src=source, dst=destination, nh=253) / MARK
            solicits = ICMPv6ND_NS(tgt=destination) / MARK
            yield v6(src=source, dst=destination, hlim=255) / solicits
            yield v6(src="fe80::b", dst=destination, hlim=255) / solicits
            # The rest never comes.
            yield v6(src=source, dst=destination) / IPv6ExtHdrFragment(id=99, m=1, nh=17) / \
                UDP(dport=443) / Raw(b"STRAY-PACKET" * 4)
    for source in (EVIL, API, "192.0.2.140", ME):
        for destination in (API, "192.0.2.1", "203.0.113.2"):
            yield v4(src=source, dst=destination, id=99, flags="MF") / UDP(dport=443) / \
                Raw(b"STRAY-PACKET" * 4)
            yield v4(src=source, dst=destination, ttl=1) / UDP(dport=443) / MARK
            yield v4(src=source, dst=destination, proto=253) / MARK
            # A pointer beyond the option.
            broken = IPOption(b"\x07\x07\x03\0\0\0\0\0")
            yield v4(src=source, dst=destination, options=[broken]) / UDP(dport=443) / MARK


def source_routes():
    for option in (IPOption_LSRR(routers=[EVIL]), IPOption_SSRR(routers=[EVIL, API]),
                   IPOption_RR(), IPOption_Router_Alert(), IPOption(b"\x44\x0c\x05\0" + b"\0" * 8)):
        for destination in (API, EVIL, "192.0.2.1"):
            for payload in inner():
                yield v4(dst=destination, options=[option]) / payload


def spoofed_sources():
    for source in ("192.0.2.140", "192.0.2.1", "192.0.2.129", "203.0.113.2", "203.0.113.53", API,
                   EVIL, "10.1.2.3", "0.0.0.0", "127.0.0.1", "169.254.1.1", "224.0.0.1",
                   "240.0.0.1", "255.255.255.255", "192.0.2.127"):
        for destination in (API, EVIL, "192.0.2.1", "192.0.2.140"):
            for payload in (*inner(), ICMP() / MARK):
                yield v4(src=source, dst=destination) / payload
    for source in ("2001:db8:b::10", "2001:db8:a::1", "2001:db8:f::2", API6, EVIL6, "fd00::1",
                   "::", "::1", "ff02::1", "fe80::1", "::ffff:192.0.2.10", "64:ff9b::c000:20a"):
        for destination in (API6, EVIL6, "2001:db8:a::1", "2001:db8:b::10"):
            for payload in (*inner(), ICMPv6EchoRequest() / MARK):
                yield v6(src=source, dst=destination) / payload


def protocols():
    for packet in (v4, v6):
        hidden = lambda: packet() / next(inner())
        for payload in (GRE() / hidden(), ESP(spi=1, seq=1) / MARK, AH(spi=1) / next(inner()),
                        SCTP(dport=443) / SCTPChunkInit() / MARK, hidden(),
                        v4(dst=EVIL) / next(inner()), v6(dst=EVIL6) / next(inner())):
            yield packet() / payload
        for number in (*range(2, 6), *range(7, 17), *range(18, 43), 46, 47, 48, 55, 89, 103, 112,
                       115, 132, 136, 137, 143, 253, 254, 255):
            key = "proto" if packet is v4 else "nh"
            yield packet(**{key: number}) / MARK
    for destination in (API, EVIL, "192.0.2.1", "192.0.2.140", "192.0.2.127", "255.255.255.255",
                        "224.0.0.1", "239.1.2.3", "203.0.113.200", "169.254.169.254"):
        for kind in (0, 3, 4, 5, 8, 9, 10, 11, 13, 15, 17):
            yield v4(dst=destination) / ICMP(type=kind) / MARK
        yield v4(dst=destination) / ICMP(type=3, code=4) / v4() / next(inner())
        yield v4(dst=destination) / ICMP(type=5, code=1, gw=ME) / v4() / next(inner())
        for port in PORTS:
            yield v4(dst=destination) / UDP(sport=port, dport=port) / MARK
    for destination in (API6, EVIL6, "2001:db8:a::1", "2001:db8:b::10", "ff02::1", "ff02::2"):
        for payload in (ICMPv6EchoRequest(), ICMPv6EchoReply(), ICMPv6DestUnreach(),
                        ICMPv6PacketTooBig(mtu=1280), ICMPv6ND_RS(), ICMPv6MLReport2(),
                        ICMPv6ND_RA(routerlifetime=9000) /
                        ICMPv6NDOptPrefixInfo(prefix="2001:db8:dead::", prefixlen=64),
                        ICMPv6ND_Redirect(tgt="fe80::bad", dst=EVIL6),
                        ICMPv6ND_NS(tgt="2001:db8:f::2"), ICMPv6ND_NA(tgt="2001:db8:f::1")):
            for limit in (64, 255):
                for source in (ME6, "fe80::1234"):
                    yield v6(src=source, dst=destination, hlim=limit) / payload / MARK
        for port in PORTS:
            yield v6(dst=destination) / UDP(sport=port, dport=port) / MARK
    yield v4(dst="255.255.255.255") / UDP(sport=68, dport=67) / BOOTP() / DHCP() / MARK
    for server in ("203.0.113.53", "192.0.2.1", EVIL):
        name = DNSQR(qname="STRAY-PACKET.attacker.example")
        yield v4(dst=server) / UDP(sport=4000, dport=53) / DNS(qd=name)


def flags():
    for value in range(256):
        for port in (22, 443):
            yield v4() / TCP(sport=5000 + value, dport=port, flags=value, seq=1, ack=1) / MARK
            yield v6() / TCP(sport=5000 + value, dport=port, flags=value, seq=1, ack=1) / MARK
    for port in PORTS:
        for value in ("", "S", "A", "SA", "F", "R", "FPU", "SF", "SR", "SAFRPUEC"):
            for destination in (API, EVIL, "192.0.2.1", "192.0.2.140", "203.0.113.2"):
                yield v4(dst=destination) / TCP(sport=4001, dport=port, flags=value) / MARK
            for destination in (API6, "2001:db8:a::1", "2001:db8:b::10"):
                yield v6(dst=destination) / TCP(sport=4001, dport=port, flags=value) / MARK


def every_port():
    """Frames as bytes. The sequence number takes back what the port adds to the checksum."""
    for packet in (v4, v6):
        for value in ("", "S", "FPU", "SAFRPUEC"):
            segment = TCP(sport=4002, dport=0, flags=value, seq=0xffff)
            frame = bytearray(bytes(ETHER / packet() / segment / MARK))
            at = len(frame) - len(MARK) - 20
            for port in range(1, 65536):
                struct.pack_into("!H", frame, at + 2, port)
                struct.pack_into("!H", frame, at + 6, 0xffff - port)
                yield frame


def malformed():
    for payload in inner():
        for fields in ({"ttl": 0}, {"ttl": 1}, {"ihl": 3}, {"ihl": 15}, {"version": 5}, {"len": 10},
                       {"len": 60000}, {"chksum": 1}, {"flags": 4}):
            yield v4(**fields) / payload
        for fields in ({"hlim": 0}, {"hlim": 1}, {"version": 4}, {"plen": 0}, {"plen": 60000}):
            yield v6(**fields) / payload
    for length in range(0, 60, 3):
        yield Raw(bytes(v4() / next(inner()))[:length])


def tagged():
    """Frames with a VLAN tag, two of them, or the wrong type; with true and spoofed sources."""
    packets = [v4() / next(inner()), v4(src="192.0.2.140") / next(inner()),
               v4(src=EVIL) / UDP(dport=443) / MARK, v4(dst="192.0.2.140") / ICMP() / MARK,
               v4(dst=EVIL) / TCP(dport=22, flags="S") / MARK]
    packets6 = [v6() / UDP(dport=443) / MARK, v6(src="2001:db8:b::10") / next(inner()),
                v6(dst=EVIL6) / ICMPv6EchoRequest() / MARK]
    for packet in packets + packets6:
        for vlan in (0, 1, 5, 4095):
            yield Dot1Q(vlan=vlan, prio=7) / packet
            yield Dot1AD(vlan=vlan) / Dot1Q(vlan=0) / packet
            yield Dot1Q(vlan=vlan) / Dot1Q(vlan=0) / packet
            yield Dot1AD(vlan=0) / Dot1AD(vlan=vlan) / Dot1Q(vlan=vlan) / packet


def send(packets):
    socket, count = conf.L2socket(iface="eth0"), 0
    for packet in packets:
        if isinstance(packet, bytearray):
            count += socket.outs.send(packet) > 0
            # No more at once than the queues on the way hold.
            if count % 64 == 0:
                time.sleep(0.001)
            continue
        ether = ETHER.copy()
        if isinstance(packet, Raw):
            ether.type = 0x0800
        try:
            # Longer ones do not fit the link; what is malformed on purpose is sent as it is.
            socket.send(ether / packet)
        except OSError:
            continue
        count += 1
    print(count)


send(globals()[BATTERY]())
