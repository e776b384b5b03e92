#!/bin/sh
# A CA that may sign for api.test and for no name below it: permitted "api.test", excluded ".api.test".
# RFC 5280, section 4.2.1.10, gives a leading dot a meaning for URIs and not for dNSName. OpenSSL takes
# the excluded form for what is meant, and pyca/cryptography's verifier refuses the whole chain, also for
# api.test itself, which the same CA without the exclusion is good for.
#
# Prints versions and what was seen; fails where that changes. Needs openssl and python3 with venv.
set -eu

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip -q install --disable-pip-version-check cryptography==50.0.2

key() { openssl ecparam -genkey -name prime256v1 -noout -out "$1.key"; }
key root
openssl req -x509 -new -key root.key -subj "/CN=Root" -days 10 -out root.pem \
    -addext keyUsage=critical,keyCertSign 2>/dev/null
# NAME CONSTRAINTS: a CA, and leaves for api.test and x.api.test below it.
chain() {
    key "$1"
    openssl req -new -key "$1.key" -subj "/CN=$1" -out "$1.csr"
    cat >ca.ext <<EOF
basicConstraints=critical,CA:TRUE,pathlen:0
keyUsage=critical,keyCertSign
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid
nameConstraints=critical,$2
EOF
    openssl x509 -req -in "$1.csr" -CA root.pem -CAkey root.key -days 9 -extfile ca.ext -out "$1.pem" 2>/dev/null
    for name in api.test x.api.test; do
        key "$1-$name"
        openssl req -new -key "$1-$name.key" -subj "/CN=$name" -out leaf.csr
        cat >leaf.ext <<EOF
basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature
extendedKeyUsage=serverAuth
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid
subjectAltName=DNS:$name
EOF
        openssl x509 -req -in leaf.csr -CA "$1.pem" -CAkey "$1.key" -days 8 -extfile leaf.ext \
            -out "$1-$name.pem" 2>/dev/null
    done
}
chain plain "permitted;DNS:api.test"
chain dotted "permitted;DNS:api.test,excluded;DNS:.api.test"

cat >verify.py <<'EOF'
import sys
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
load = lambda name: x509.load_pem_x509_certificate(open(name + ".pem", "rb").read())
ca, name = sys.argv[1:]
verifier = PolicyBuilder().store(Store([load("root")])).build_server_verifier(x509.DNSName(name))
try:
    verifier.verify(load(f"{ca}-{name}"), [load(ca)])
    print("accepted")
except VerificationError as error:
    print("refused:", error)
EOF

openssl version
venv/bin/python -c 'import cryptography; print("pyca/cryptography", cryptography.__version__)'
seen=
for ca in plain dotted; do
    for name in api.test x.api.test; do
        by_openssl=refused
        openssl verify -x509_strict -CAfile root.pem -untrusted "$ca.pem" "$ca-$name.pem" >/dev/null 2>&1 &&
            by_openssl=accepted
        by_pyca=$(venv/bin/python verify.py "$ca" "$name")
        echo "$ca, $name: OpenSSL $by_openssl; pyca/cryptography $by_pyca"
        seen="$seen $by_openssl/${by_pyca%%:*}"
    done
done
[ "$seen" = " accepted/accepted accepted/accepted accepted/refused refused/refused" ] || {
    echo "This has changed:$seen"
    exit 1
}
