"""The ends of the Autobahn test suite in the lab.

    autobahn.py echo ADDRESS:PORT DIR                     a server that says back what it hears
    autobahn.py client NAME:PORT DIR KEY MANY             a client that says back what it hears
    autobahn.py fuzz-server NAME:PORT DIR KEY MANY CASES  fuzzes a server, and prints outcomes
    autobahn.py fuzz-client ADDRESS:PORT DIR CASES        fuzzes a client, and prints outcomes

The first two are `websockets`, the others kosoku. DIR holds certificates; CASES are patterns, of
which MANY run at once.
"""

import asyncio
import json
import ssl
import sys


def split(address):
    host, port = address.rsplit(":", 1)
    return host, int(port)


def trusting(folder):
    return ssl.create_default_context(cafile=f"{folder}/agents.pem")


def serving(folder):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{folder}/measured.pem", f"{folder}/measured.key")
    return context


async def say_back(socket):
    from websockets.exceptions import ConnectionClosed

    try:
        async for message in socket:
            await socket.send(message)
    except ConnectionClosed:
        pass


async def echo(address, folder):
    from websockets.asyncio.server import serve

    host, port = split(address)
    async with serve(say_back, host, port, ssl=serving(folder), max_size=None):
        print("ready", flush=True)
        await asyncio.get_running_loop().create_future()


async def client(address, folder, key, many):
    from websockets.asyncio.client import connect

    def to(target):
        fields = {"Authorization": f"Bearer {key}"}
        uri = f"wss://{address}{target}"
        return connect(uri, additional_headers=fields, ssl=trusting(folder), max_size=None)

    async with to("/getCaseCount") as socket:
        count = int(await socket.recv())
    places = asyncio.Semaphore(int(many))

    async def one(case):
        async with places:
            try:
                async with to(f"/runCase?case={case}&agent=websockets") as socket:
                    await say_back(socket)
            except Exception as error:  # The suite sees what came of it.
                print(case, repr(error), flush=True)

    await asyncio.gather(*(one(case) for case in range(1, count + 1)))
    async with to("/updateReports?agent=websockets") as socket:
        await say_back(socket)
    print(count, "cases", flush=True)


async def copy(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except (OSError, ssl.SSLError):
        pass
    finally:
        writer.close()


async def relay(reader, writer, open_other, change):
    """Carries a connection over to another, with a change to what comes first."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        other_reader, other_writer = await open_other()
    except (OSError, ssl.SSLError, asyncio.IncompleteReadError):
        writer.close()
        return
    other_writer.write(change(head))
    await asyncio.gather(copy(reader, other_writer), copy(other_reader, writer))


async def fuzz_server(address, folder, key, many, cases):
    import kosoku

    host, port = split(address)

    def change(head):
        first, *fields = head.split(b"\r\n")
        fields = [line for line in fields if not line.lower().startswith(b"host:")]
        own = [f"Host: {address}".encode(), f"Authorization: Bearer {key}".encode()]
        return b"\r\n".join([first, *own, *fields])

    async def open_other():
        return await asyncio.open_connection(host, port, ssl=trusting(folder), server_hostname=host)

    front = await asyncio.start_server(
        lambda reader, writer: relay(reader, writer, open_other, change), "127.0.0.1", 0
    )
    at = front.sockets[0].getsockname()[1]
    url, cases = f"ws://127.0.0.1:{at}/", cases.split(",")
    await outcomes(kosoku.run_fuzzingclient(url, cases, concurrency=int(many)))


async def fuzz_client(address, folder, cases):
    import kosoku

    host, port = split(address)
    async with kosoku.run_fuzzingserver(cases.split(","), host="127.0.0.1", port=0) as server:

        async def open_other():
            return await asyncio.open_connection(server.address, server.port)

        await asyncio.start_server(
            lambda reader, writer: relay(reader, writer, open_other, lambda head: head),
            host,
            port,
            ssl=serving(folder),
        )
        print("ready", flush=True)
        await outcomes(server.get_result())


async def outcomes(run):
    from kosoku import FailureError

    try:
        results = await run
    except FailureError as failure:
        results = failure.results
    told = {it.case_id: f"{it.behavior.value} / {it.behavior_close.value}" for it in results}
    print(json.dumps(told), flush=True)


COMMANDS = {
    "echo": echo,
    "client": client,
    "fuzz-server": fuzz_server,
    "fuzz-client": fuzz_client,
}
asyncio.run(COMMANDS[sys.argv[1]](*sys.argv[2:]))
