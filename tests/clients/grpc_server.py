"""A gRPC server for tests of the gateway: bytes in, bytes out, without a schema.

    grpc_server.py ADDRESS CERTIFICATE KEY SEEN SECRET

Each call adds a line to the file SEEN: its method, and "once" where `authorization` was the secret, exactly
once, and nothing said the placeholder. The call `slow` adds "cancelled" when its client has gone.
"""

import sys
import threading
from concurrent import futures

import grpc

ADDRESS, CERTIFICATE, KEY, SEEN, SECRET = sys.argv[1:]
LOCK = threading.Lock()


def see(*words):
    with LOCK, open(SEEN, "a") as file:
        print(*words, file=file)


def credential(context):
    return [value for name, value in context.invocation_metadata() if name == "authorization"]


def seen(method):
    """Returns the method, which notes each of its calls first."""

    def noted(asked, context):
        told = any(b"GRPC_API_KEY" in str(value).encode() for _, value in context.invocation_metadata())
        once = credential(context) == [f"Bearer {SECRET}"] and not told
        see(method.__name__, "once" if once else "otherwise")
        return method(asked, context)

    return noted


@seen
def unary(message, context):
    return message


@seen
def down(message, context):
    for number in range(int(message)):
        yield b"message %d" % number


@seen
def up(messages, context):
    return b"%d" % sum(len(message) for message in messages)


@seen
def both(messages, context):
    yield from messages


@seen
def tell(message, context):
    """Says the credential in each way that a server has."""
    (own,) = credential(context)
    context.send_initial_metadata([("x-told", own)])
    context.set_trailing_metadata([("x-told-too", own)])
    for split in (b"", b"x" * 16_370, b"y" * 65_500):
        yield split + b"<" + own.encode() + b">"
    context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"you sent {own}")


@seen
def tell_in_binary(message, context):
    (own,) = credential(context)
    context.send_initial_metadata([("x-told-bin", own.encode())])
    return b""


@seen
def fail(message, context):
    context.set_trailing_metadata([("x-lab", "a coat"), ("x-lab-bin", b"\0\1\xff")])
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no coat: é")


@seen
def slow(message, context):
    gone = threading.Event()
    context.add_callback(gone.set)
    if gone.wait(30):
        see("cancelled")
    return b"late"


KINDS = {
    grpc.unary_unary_rpc_method_handler: [unary, fail, slow, tell_in_binary],
    grpc.unary_stream_rpc_method_handler: [down, tell],
    grpc.stream_unary_rpc_method_handler: [up],
    grpc.stream_stream_rpc_method_handler: [both],
}
NAMES = ["unary", "fail", "slow", "tell_in_binary", "down", "tell", "up", "both"]
METHODS = [kind(method) for kind, methods in KINDS.items() for method in methods]
server = grpc.server(
    futures.ThreadPoolExecutor(80),
    options=[("grpc.max_receive_message_length", -1), ("grpc.max_metadata_size", 65_536)],
)
server.add_generic_rpc_handlers(
    [grpc.method_handlers_generic_handler("lab.Calls", dict(zip(NAMES, METHODS)))]
)
with open(KEY, "rb") as key, open(CERTIFICATE, "rb") as certificate:
    identity = grpc.ssl_server_credentials([(key.read(), certificate.read())])
server.add_secure_port(ADDRESS, identity)
server.start()
see("ready")
server.wait_for_termination()
