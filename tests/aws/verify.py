"""Says whether a request as it arrived is signed with the real keys: by botocore's own signers.

As a program: reads one request as JSON from standard input, with its body in base64, and the keys
from the variables AWS_*; prints what is wrong, and ends with 1 where anything is.
"""

import base64
import datetime
import hashlib
import json
import os
import re
import sys
from urllib.parse import parse_qsl

from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth, SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

FIELD = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/, ]+)/(\d{8})/([^/]+)/([^/]+)/aws4_request, ?"
    r"SignedHeaders=([a-z0-9;-]+), ?Signature=([0-9a-f]{64})"
)
UNHASHED = ("UNSIGNED-PAYLOAD", "STREAMING-UNSIGNED-PAYLOAD-TRAILER")
MINUTES = datetime.timedelta(minutes=5)


def fault(method, target, host, headers, body, keys):
    """Returns the fault of the signature, or None. `headers` is a list of pairs."""
    own = [value for name, value in headers if name.lower() == "authorization"]
    query = target.partition("?")[2]
    params = dict(parse_qsl(query, keep_blank_values=True))
    tokens = [value for name, value in headers if name.lower() == "x-amz-security-token"]
    if "X-Amz-Signature" in params:
        if own or tokens:
            return "two signatures"
        key, day, region, service, _ = params["X-Amz-Credential"].split("/")
        names, signature = params["X-Amz-SignedHeaders"], params["X-Amz-Signature"]
        date, life = params["X-Amz-Date"], int(params["X-Amz-Expires"])
        if life > 300:
            return f"a link that is good for {life} s"
        tokens = [params["X-Amz-Security-Token"]] if "X-Amz-Security-Token" in params else []
        target = re.sub(r"&?X-Amz-Signature=[^&]*", "", target)
        signers = (S3SigV4QueryAuth, SigV4QueryAuth)
    else:
        found = FIELD.fullmatch(own[0]) if len(own) == 1 else None
        if not found:
            return f"no signature: {own}"
        key, day, region, service, names, signature = found.groups()
        date = dict((name.lower(), value) for name, value in headers).get("x-amz-date", "")
        signers = (S3SigV4Auth, SigV4Auth)
    now = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)
    if abs(now - datetime.datetime.strptime(date, "%Y%m%dT%H%M%SZ")) > MINUTES or day != date[:8]:
        return f"another time: {date}, {day}"
    if key != keys.access_key:
        return "another access key"
    if tokens != ([keys.token] if keys.token else []):
        return "another session"
    signed = names.split(";")
    unsigned = [
        name
        for name, _ in headers
        if name.lower().startswith("x-amz-") and name.lower() not in signed
    ]
    if unsigned or "host" not in signed:
        return f"not signed: {unsigned or 'host'}"
    signer = signers[0 if service == "s3" else 1](keys, service, region)
    request = AWSRequest(method, f"https://{host}{target}", data=body)
    for name, value in headers:
        if name.lower() in signed and name.lower() != "host":
            request.headers.add_header(name, value)
    request.context["timestamp"] = date
    hashes = [value for name, value in headers if name.lower() == "x-amz-content-sha256"]
    if service == "s3" and own and not hashes:
        return "no hash of the body"
    if hashes and hashes[0] not in UNHASHED and hashes[0] != hashlib.sha256(body).hexdigest():
        return "another hash of the body"
    canonical = signer.canonical_request(request)
    expected = signer.signature(signer.string_to_sign(request, canonical), request)
    return None if signature == expected else f"another signature, for:\n{canonical}"


def keys_of_environment():
    """The real keys."""
    token = os.environ.get("AWS_SESSION_TOKEN")
    return Credentials(os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"], token)


def main():
    asked = json.load(sys.stdin)
    body = base64.b64decode(asked["body"])
    wrong = fault(
        asked["method"],
        asked["target"],
        asked["host"],
        [tuple(pair) for pair in asked["headers"]],
        body,
        keys_of_environment(),
    )
    sys.exit(wrong)


if __name__ == "__main__":
    main()
