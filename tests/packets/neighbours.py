"""Neighbour solicitations from ever new link-local sources, for some seconds.

Arguments: the gateway's MAC address, its IPv6 address, seconds. Prints how many were sent.
"""
import socket
import sys
import time
from scapy.all import Ether, ICMPv6ND_NS, ICMPv6NDOptSrcLLAddr, IPv6, get_if_hwaddr

mac, gateway, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
mine = get_if_hwaddr("eth0")
frames = [bytes(Ether(src=mine, dst=mac) / IPv6(src=f"fe80::bad:{n:x}", dst=gateway, hlim=255)
                / ICMPv6ND_NS(tgt=gateway) / ICMPv6NDOptSrcLLAddr(lladdr=mine))
          for n in range(1, 3000)]
wire, count, end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW), 0, time.time() + seconds
wire.bind(("eth0", 0))
print("ready", flush=True)
while time.time() < end:
    for frame in frames:
        wire.send(frame)
        count += 1
        if count % 5 == 0:
            time.sleep(0.0005)
print(count)
