"""A switch with a trunk: the ports that a booted router is plugged into.

Arguments: a folder, then what is plugged together, `NIC:VLAN:INTERFACE` each; VLAN 0 is untagged. The
router's card NIC is a Unix datagram socket of QEMU (NIC.router), this end of it NIC.switch; INTERFACE is
one of this network namespace. Tags are put on and taken off here, because the host's kernel may not know
802.1Q.
"""
import os, select, socket, struct, sys

folder, ports = sys.argv[1], [port.split(":") for port in sys.argv[2:]]
OUTGOING, ANY = 4, socket.ntohs(3)
nics, interfaces = {}, {}
for nic, vlan, name in ports:
    if nic not in nics:
        nics[nic] = end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        end.bind(os.path.join(folder, nic + ".switch"))
        end.setblocking(False)
    interfaces[name] = wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, ANY)
    wire.bind((name, 0))
    # Frames for the router's card are for nobody of this machine.
    wire.setsockopt(263, 1, struct.pack("iHH8s", socket.if_nametoindex(name), 1, 0, b""))
    wire.setblocking(False)


def from_router(nic, frame):
    tagged = frame[12:14] == b"\x81\x00"
    vlan = struct.unpack("!H", frame[14:16])[0] & 0xFFF if tagged else 0
    bare = frame[:12] + frame[16:] if tagged else frame
    for other, number, name in ports:
        if other == nic and int(number) == vlan:
            interfaces[name].send(bare)


def to_router(nic, vlan, frame):
    if vlan:
        frame = frame[:12] + struct.pack("!HH", 0x8100, vlan) + frame[12:]
    nics[nic].sendto(frame, os.path.join(folder, nic + ".router"))


poll = select.poll()
ends = {}
for nic, end in nics.items():
    ends[end.fileno()] = (end, nic, None)
    poll.register(end, select.POLLIN)
for nic, vlan, name in ports:
    ends[interfaces[name].fileno()] = (interfaces[name], nic, int(vlan))
    poll.register(interfaces[name], select.POLLIN)
print("plugged", flush=True)
while True:
    for number, _ in poll.poll():
        end, nic, vlan = ends[number]
        try:
            frame, sender = end.recvfrom(65536)
            if vlan is None:
                from_router(nic, frame)
            elif sender[2] != OUTGOING:
                to_router(nic, vlan, frame)
        except OSError:
            # The router is off, or a link is down: the frame is lost, as on a wire.
            continue
