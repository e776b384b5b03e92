"""A little of Amazon S3, DynamoDB and Bedrock over HTTPS: each request is answered only where its
signature is good, which botocore's own signers say (`verify.py`).

Arguments: a certificate and its key in PEM, a file for the log, and addresses. The log has one JSON
object a request: method, target, host, fields, the length of the body, and what was wrong.
"""

import base64
import binascii
import hashlib
import http.server
import json
import socket
import ssl
import sys
import threading
from urllib.parse import parse_qs, quote, unquote, urlsplit

from verify import fault, keys_of_environment

OBJECTS, PARTS, ITEMS = {}, {}, {}
LOCK = threading.Lock()
KEYS = keys_of_environment()
LOG = None


class Server(http.server.ThreadingHTTPServer):
    """Each connection's handshake is its own thread's."""

    daemon_threads = True

    def finish_request(self, request, client_address):
        with self.context.wrap_socket(request, server_side=True) as tls:
            super().finish_request(tls, client_address)

    def handle_error(self, request, client_address):
        pass


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def handle_expect_100(self):
        self.send_response_only(100)
        self.end_headers()
        return True

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        whole = bytearray()
        while size := int(self.rfile.readline(), 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return bytes(whole)

    def any(self):
        body = self.body()
        host = self.headers["Host"]
        fields = list(self.headers.items())
        wrong = None
        if not self.headers.get("Authorization", "").startswith("Bearer "):
            wrong = fault(self.command, self.path, host, fields, body, KEYS)
        with LOCK:
            entry = [self.command, self.path, host, fields, len(body), wrong]
            print(json.dumps(entry), file=LOG, flush=True)
        if wrong:
            return self.refuse(wrong)
        try:
            if host.startswith("dynamodb."):
                return self.dynamodb(json.loads(body))
            if host.startswith("bedrock-runtime."):
                return self.bedrock(body)
            return self.s3(body)
        except ValueError as error:
            return self.refuse(f"{error}")

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = any

    def refuse(self, wrong):
        """As S3 does: with everything that went into the signature."""
        token = self.headers.get("x-amz-security-token", "")
        signature = self.headers.get("Authorization", "").rpartition("Signature=")[2]
        text = (
            f"<Error><Code>SignatureDoesNotMatch</Code><AWSAccessKeyId>{KEYS.access_key}</AWSAccessKeyId>"
            f"<SignatureProvided>{signature}</SignatureProvided>"
            f"<CanonicalRequest>x-amz-security-token:{token}</CanonicalRequest>"
            f"<StringToSign>{wrong}</StringToSign></Error>"
        )
        self.answer(403, text.encode(), {"Content-Type": "application/xml"})

    def answer(self, status, body=b"", fields=()):
        self.send_response_only(status)
        for name, value in dict(fields).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def bedrock(self, body):
        asked = json.loads(body)
        model = unquote(urlsplit(self.path).path.split("/")[2])
        answer = {"model": model, "text": f"Hello, {asked['prompt']}", "bytes": len(body)}
        self.answer(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def dynamodb(self, asked):
        operation = self.headers["X-Amz-Target"].rpartition(".")[2]
        answer = {}
        with LOCK:
            if operation == "PutItem":
                ITEMS[asked["Item"]["id"]["S"]] = asked["Item"]
            else:
                answer = {"Item": ITEMS[asked["Key"]["id"]["S"]]}
        text = json.dumps(answer).encode()
        check = {"x-amz-crc32": str(binascii.crc32(text))}
        self.answer(200, text, {"Content-Type": "application/x-amz-json-1.0", **check})

    def s3(self, body):
        target = urlsplit(self.path)
        query, name = parse_qs(target.query, keep_blank_values=True), unquote(target.path)
        if "aws-chunked" in self.headers.get("Content-Encoding", ""):
            body = plain(body, self.headers)
        tag = {"ETag": f'"{hashlib.md5(body).hexdigest()}"'}
        with LOCK:
            if "uploads" in query:
                PARTS[name] = {}
                upload = f"<Bucket>coats</Bucket><Key>{name[1:]}</Key><UploadId>1</UploadId>"
                text = f"<InitiateMultipartUploadResult>{upload}</InitiateMultipartUploadResult>"
                return self.answer(200, text.encode())
            if self.command == "PUT" and "partNumber" in query:
                PARTS[name][int(query["partNumber"][0])] = body
                return self.answer(200, fields=tag)
            if self.command == "POST" and "uploadId" in query:
                OBJECTS[name] = b"".join(part for _, part in sorted(PARTS.pop(name).items()))
                text = "<CompleteMultipartUploadResult><ETag>\"x-1\"</ETag></CompleteMultipartUploadResult>"
                return self.answer(200, text.encode())
            if self.command == "PUT":
                OBJECTS[name] = body
                return self.answer(200, fields=tag)
            if "list-type" in query:
                keys = "".join(f"<Contents><Key>{quote(key[1:])}</Key></Contents>" for key in OBJECTS)
                text = f"<ListBucketResult><EncodingType>url</EncodingType>{keys}</ListBucketResult>"
                return self.answer(200, text.encode())
            found = OBJECTS.get(name)
        if found is None:
            return self.answer(404)
        tag = {"ETag": f'"{hashlib.md5(found).hexdigest()}"', "Accept-Ranges": "bytes"}
        if span := self.headers.get("Range"):
            first, last = span.removeprefix("bytes=").split("-")
            part = found[int(first) : int(last) + 1 if last else None]
            tag["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(found)}"
            return self.answer(206, part, tag)
        checked = self.headers.get("x-amz-checksum-mode") == "ENABLED"
        return self.answer(200, found, tag | (crc32(found) if checked else {}))


def crc32(body):
    """The checksum that S3 and its clients keep by default."""
    value = binascii.crc32(body).to_bytes(4, "big")
    text = base64.b64encode(value).decode()
    return {"x-amz-checksum-crc32": text, "x-amz-checksum-type": "FULL_OBJECT"}


def plain(body, headers):
    """The body of one that is `aws-chunked`, whose checksum follows it."""
    whole, at = bytearray(), 0
    while True:
        end = body.index(b"\r\n", at)
        size = int(body[at:end], 16)
        if not size:
            break
        whole += body[end + 2 : end + 2 + size]
        at = end + 2 + size + 2
    trailer = dict(line.split(":", 1) for line in body[end + 2 :].decode().split("\r\n") if line)
    if len(whole) != int(headers["x-amz-decoded-content-length"]):
        raise ValueError("another length")
    if trailer != {"x-amz-checksum-crc32": crc32(bytes(whole))["x-amz-checksum-crc32"]}:
        raise ValueError(f"another checksum: {trailer}")
    return bytes(whole)


def main():
    global LOG
    certificate, key, log, *addresses = sys.argv[1:]
    LOG = open(log, "w")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["http/1.1"])
    servers = []
    for address in addresses:
        kind = socket.AF_INET6 if ":" in address else socket.AF_INET
        server = type("Family", (Server,), {"address_family": kind})((address, 443), Handler)
        server.context = context
        servers.append(server)
    for server in servers[1:]:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    servers[0].serve_forever()


if __name__ == "__main__":
    main()
