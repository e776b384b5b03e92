#!/bin/sh
# Starts the world of the lab, from the folder that `prepare` made: a resolver, the hosts of the APIs, and a
# Vault that holds their keys. Vault is in development mode: it forgets everything when it ends.
set -eu
folder=$(cd "$(dirname "$0")" && pwd)
link=${1:-eth1}
# Waits until a command succeeds, half a minute at most.
until_it() {
    for _ in $(seq 150); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.2
    done
    echo "world: $* did not succeed" >&2
    exit 1
}

ip address replace 203.0.113.1/24 dev "$link"
ip link set "$link" up
for address in 203.0.113.53 203.0.113.200 198.51.100.10 198.51.100.11 198.51.100.30 198.51.100.66; do
    ip address replace "$address/32" dev lo
done
ip link set lo up

dnsmasq --no-resolv --no-hosts --bind-interfaces --listen-address=203.0.113.53 --pid-file= \
    --address=/api.openai.example/198.51.100.10 --address=/api.anthropic.example/198.51.100.11 \
    --address=/pypi.example/198.51.100.30 --address=/attacker.example/198.51.100.66
setsid python3 "$folder/api.py" "$folder/api.pem" "$folder/api.key" </dev/null >>/var/log/origin.log 2>&1 &

cat >"$folder/vault.hcl" <<HCL
listener "tcp" {
  address       = "203.0.113.200:8200"
  tls_cert_file = "$folder/vault.pem"
  tls_key_file  = "$folder/vault.key"
}
HCL
setsid "$folder/vault" server -dev -dev-root-token-id=root -dev-listen-address=127.0.0.1:8200 -dev-no-store-token \
    -config="$folder/vault.hcl" </dev/null >/var/log/vault.log 2>&1 &

export VAULT_ADDR=http://127.0.0.1:8200 VAULT_TOKEN=root PATH="$folder:$PATH"
until_it vault status
vault secrets enable -path=kv -version=2 kv
vault kv put -mount=kv agents/openai api_key=sk-lab-openai-0d9f27b1c6e84a35
vault kv put -mount=kv agents/anthropic api_key=sk-ant-lab-5b7e90c2f1d64838
# The root that agents trust signs the issuing CAs; the plan finds its engine there.
vault secrets enable -path=pki pki
vault secrets tune -max-lease-ttl=8760h pki
cat "$folder/agents.pem" "$folder/agents.key" | vault write pki/config/ca pem_bundle=-
sh "$folder/plan.sh"
vault write auth/approle/role/cloakroom-gateway/custom-secret-id secret_id=- <"$folder/secret-id" >/dev/null
# `sudo lab-vault policy list` and the like are for changes of policies by hand.
cat >/usr/local/bin/lab-vault <<HAND
#!/bin/sh
VAULT_ADDR=$VAULT_ADDR VAULT_TOKEN=$VAULT_TOKEN exec $folder/vault "\$@"
HAND
chmod 0755 /usr/local/bin/lab-vault
echo "world: Vault, the resolver and the APIs are there"
