#!/bin/sh
# Makes this machine an agent of the lab: agent.sh ADDRESS GATEWAY [INTERFACE]. Its root store is
# agents-trust.pem beside this script.
set -eu
address=$1 gateway=$2 link=${3:-eth1}
ip address replace "$address" dev "$link"
ip link set "$link" up
ip route replace default via "$gateway" dev "$link"
# The file may be the link of a service, which is not asked.
rm -f /etc/resolv.conf
echo "nameserver $gateway" >/etc/resolv.conf
install -m 0644 "$(dirname "$0")/agents-trust.pem" /usr/local/share/ca-certificates/cloakroom-lab.crt
# Each root gets a file: the root that the gateway's certificates come from, and the lab's public one.
cd /usr/local/share/ca-certificates
csplit --quiet --prefix=cloakroom-lab- --suffix-format=%d.crt cloakroom-lab.crt '/BEGIN/' '{*}'
rm -f cloakroom-lab.crt
find . -name 'cloakroom-lab-*.crt' -empty -delete
update-ca-certificates >/dev/null 2>&1
cat >/etc/profile.d/cloakroom-lab.sh <<'SH'
export OPENAI_API_KEY=OPENAI_API_KEY ANTHROPIC_API_KEY=ANTHROPIC_API_KEY
export SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
SH
# Vagrant's own link is none of the agent's: it leads to the host on libvirt, and to the internet on VirtualBox.
# So only Vagrant's logins pass there. Root on this machine can take that away again.
if [ "$link" != eth0 ] && [ -e /sys/class/net/eth0 ]; then
    nft -f - <<'NFT'
table inet vagrant
delete table inet vagrant
table inet vagrant {
    chain output {
        type filter hook output priority 0
        # The state of the connection does not tell: the login that runs this began unseen.
        oifname "eth0" tcp sport 22 tcp flags & (syn | ack) != syn accept
        oifname "eth0" udp sport 68 udp dport 67 accept
        oifname "eth0" drop
    }
}
NFT
fi
