#!/bin/sh
# Semgrep's engine on PyPI is a program of OCaml that sends its traces by ocaml-tls. With the engine of
# 1.160.0 (x509 1.0) a server whose chain has an issuing CA with critical name constraints is refused,
# although the constraints permit the server's name; with that of 1.185.0 (x509 1.2) it is reached. Both
# reach it where the same constraints are not critical. RFC 5280, section 4.2.1.10, wants them critical,
# and section 4.2 has a reader refuse what is critical and not known to it.
#
# Prints versions and what was seen; fails where that changes. Fetches 150 MB. Needs openssl and python3
# with venv; everything stays on loopback.
set -eu

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
for version in 1.160.0 1.185.0; do
    venv/bin/pip -q install --disable-pip-version-check --no-deps --no-compile --only-binary :all: \
        --target "$version" "semgrep==$version"
done

key() { openssl ecparam -genkey -name prime256v1 -noout -out "$1.key"; }
key root
openssl req -x509 -new -key root.key -subj "/CN=Root" -days 10 -out root.pem \
    -addext keyUsage=critical,keyCertSign 2>/dev/null
# NAME PREFIX: a chain for localhost below a CA that may sign for localhost.
chain() {
    key "$1-ca"
    openssl req -new -key "$1-ca.key" -subj "/CN=$1" -out "$1-ca.csr"
    cat >ca.ext <<END
basicConstraints=critical,CA:TRUE,pathlen:0
keyUsage=critical,keyCertSign
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid
nameConstraints=$2permitted;DNS:localhost
END
    openssl x509 -req -in "$1-ca.csr" -CA root.pem -CAkey root.key -days 9 -extfile ca.ext \
        -out "$1-ca.pem" 2>/dev/null
    key "$1"
    openssl req -new -key "$1.key" -subj "/CN=localhost" -out leaf.csr
    cat >leaf.ext <<END
basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature
extendedKeyUsage=serverAuth
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid
subjectAltName=DNS:localhost
END
    openssl x509 -req -in leaf.csr -CA "$1-ca.pem" -CAkey "$1-ca.key" -days 8 -extfile leaf.ext \
        -out leaf.pem 2>/dev/null
    cat leaf.pem "$1-ca.pem" >"$1.pem"
}
chain critical critical,
chain noted ""

cat >serve.py <<'END'
import http.server, os, ssl, sys
chain = sys.argv[1]
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        open("reached", "w").close()
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass
class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_):
        pass
server = Server(("127.0.0.1", 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(chain + ".pem", chain + ".key")
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
with open("port.new", "w") as file:
    file.write(str(server.server_port))
os.rename("port.new", "port")
server.serve_forever()
END

echo 'rules: [{id: eval, languages: [python], message: eval, severity: ERROR, pattern: eval(...)}]' >rules.yaml
echo 'eval(1)' >searched.py
openssl version
seen=
for version in 1.160.0 1.185.0; do
    for chain in critical noted; do
        rm -f port reached
        python3 serve.py "$chain" &
        server=$!
        for _ in $(seq 50); do [ -e port ] || sleep 0.1; done
        bin=$version/semgrep/bin
        SSL_CERT_FILE=$work/root.pem LD_LIBRARY_PATH=$bin/libs OTEL_OCAML_DEBUG=1 timeout 60 \
            "$bin/semgrep-core" -lang python -trace -trace_endpoint "https://localhost:$(cat port)/v1" \
            -rules rules.yaml searched.py >said 2>&1 || :
        kill "$server"
        wait "$server" 2>/dev/null || :
        outcome=refused
        [ ! -e reached ] || outcome=reached
        why=$(grep -o 'invalid certificate chain' said | head -n 1 || :)
        echo "engine of semgrep $version, $chain name constraints: $outcome${why:+ ($why)}"
        seen="$seen $outcome"
    done
done
[ "$seen" = " refused reached reached reached" ] || {
    echo "This has changed:$seen"
    exit 1
}
