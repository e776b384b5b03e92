"""Calls of the server in grpc_server.py, by Python's grpc as it comes.

    grpc_client.py NAME every      each kind of call, and how many there were
    grpc_client.py NAME tell       everything that comes back of a call whose server tells its credential
    grpc_client.py NAME cancel     a call that ends by its deadline, and one that its caller cancels
    grpc_client.py NAME refused    a call with a credential of its own, and one of a path that is not listed
"""

import os
import queue
import sys
import threading

import grpc

NAME, WHAT = sys.argv[1:]
with open(os.environ["SSL_CERT_FILE"], "rb") as bundle:
    ROOTS = grpc.ssl_channel_credentials(bundle.read())
CHANNEL = grpc.secure_channel(f"{NAME}:443", ROOTS, [("grpc.max_receive_message_length", -1)])
KEY = [("authorization", "Bearer GRPC_API_KEY")]
DONE = []


def call(kind, method, asked, metadata=KEY, timeout=30):
    DONE.append(method)
    path = method if method.startswith("/") else f"/lab.Calls/{method}"
    made = getattr(CHANNEL, kind)(path, lambda it: it, lambda it: it)
    return made(asked, metadata=metadata, timeout=timeout)


def error_of(work):
    try:
        work()
    except grpc.RpcError as error:
        return error
    raise SystemExit("the call went through")


def in_turns(rounds):
    """Sends a message once the one before it has come back."""
    turns = queue.Queue()
    turns.put(b"0")
    answers = call("stream_stream", "both", iter(turns.get, None))
    for number in range(rounds):
        assert next(answers) == b"%d" % number
        turns.put(b"%d" % (number + 1) if number + 1 < rounds else None)
    assert list(answers) == []


def every():
    for message in (b"", b"\0\1\xff", os.urandom(4 << 20)):
        assert call("unary_unary", "unary", message) == message
    messages = list(call("unary_stream", "down", b"1000"))
    assert messages == [b"message %d" % number for number in range(1000)]
    assert call("stream_unary", "up", (b"x" * 1000 for _ in range(1000))) == b"1000000"
    in_turns(50)
    large = [("x-large", "v" * 8000), ("x-large-bin", bytes(range(256)))]
    assert call("unary_unary", "unary", b"large", KEY + large) == b"large"
    parallel = [threading.Thread(target=in_turns, args=(20,)) for _ in range(50)]
    for thread in parallel:
        thread.start()
    for thread in parallel:
        thread.join()
    failed = error_of(lambda: call("unary_unary", "fail", b""))
    assert (failed.code(), failed.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "no coat: é"), failed
    trailing = dict(failed.trailing_metadata())
    assert (trailing["x-lab"], trailing["x-lab-bin"]) == ("a coat", b"\0\1\xff"), trailing
    print(len(DONE))


def tell():
    answers = call("unary_stream", "tell", b"")
    print([*answers.initial_metadata()])
    messages = []
    try:
        for message in answers:
            messages.append(message)
    except grpc.RpcError as error:
        print(error.code(), error.details(), [*error.trailing_metadata()])
    for message in messages:
        print(len(message), message[message.index(b"<") :])
    # gRPC writes binary metadata in base64, of which a mask is none: the call fails.
    print(error_of(lambda: call("unary_unary", "tell_in_binary", b"")))


def cancel():
    late = error_of(lambda: call("unary_unary", "slow", b"", timeout=2))
    assert late.code() == grpc.StatusCode.DEADLINE_EXCEEDED, late
    slow = CHANNEL.unary_unary("/lab.Calls/slow", lambda it: it, lambda it: it).future(b"", metadata=KEY)
    threading.Timer(2, slow.cancel).start()
    try:
        slow.result()
        raise SystemExit("the call went through")
    except grpc.FutureCancelledError:
        pass


def refused():
    for method, metadata, word in [
        ("unary", [("authorization", "Bearer my-own")], "foreign_credential"),
        ("unary", [], "placeholder_missing"),
        ("/lab.Others/unary", KEY, "path_denied"),
    ]:
        error = error_of(lambda: call("unary_unary", method, b"Hello", metadata))
        assert error.code() == grpc.StatusCode.PERMISSION_DENIED, error
        assert word in error.details() and "flow " in error.details(), error


{"every": every, "tell": tell, "cancel": cancel, "refused": refused}[WHAT]()
