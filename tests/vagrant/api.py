#!/usr/bin/env python3
"""The APIs of the lab, a host that is let through, and the attacker's: each answers, and writes down what it was sent."""

import json
import ssl
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LOG = "/var/log/origin.jsonl"
# No longer body is read.
MOST = 1 << 20


class Origin(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        length = min(int(self.headers.get("content-length") or 0), MOST)
        body = self.rfile.read(length).decode("utf-8", "replace")
        received = {
            "address": self.connection.getsockname()[0],
            "request": self.requestline,
            "headers": [f"{name}: {value}" for name, value in self.headers.items()],
            "body": body,
        }
        with open(LOG, "a", encoding="utf-8") as log:
            log.write(json.dumps(received) + "\n")
        credential = self.headers.get("authorization") or self.headers.get("x-api-key") or "nothing"
        text = f"you sent {credential}\n" if self.path == "/reflect" else '{"object":"list"}\n'
        answer = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_PUT = do_DELETE = answer

    def log_message(self, *_):
        pass


def main(certificate, key):
    server = ThreadingHTTPServer(("", 443), Origin)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    # This runs in the thread of the connection, so that a silent connection keeps nobody waiting.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.serve_forever()


main(*sys.argv[1:])
