"""An agent's programs on TLS libraries other than those of curl, git and Python.

    tls_stacks.py wolfssl NAME CAFILE    asks NAME for / and prints what comes
    tls_stacks.py pygit2 URL CAFILE      lists what the repository has (mbed TLS, in Debian's libgit2)

Exits 1 and says why where the library does not believe the certificate.
"""

import ctypes
import ctypes.util
import socket
import sys


def wolfssl(name, cafile):
    lib = ctypes.CDLL(ctypes.util.find_library("wolfssl"))
    for function in ("wolfTLSv1_2_client_method", "wolfSSL_CTX_new", "wolfSSL_new"):
        getattr(lib, function).restype = ctypes.c_void_p
    lib.wolfSSL_Init()
    ctx = ctypes.c_void_p(lib.wolfSSL_CTX_new(ctypes.c_void_p(lib.wolfTLSv1_2_client_method())))
    if lib.wolfSSL_CTX_load_verify_locations(ctx, cafile.encode(), None) != 1:
        sys.exit("the CA file is not taken")
    ssl = ctypes.c_void_p(lib.wolfSSL_new(ctx))
    host = name.encode()
    lib.wolfSSL_UseSNI(ssl, 0, host, ctypes.c_ushort(len(host)))
    lib.wolfSSL_check_domain_name(ssl, host)
    with socket.create_connection((name, 443), timeout=20) as connection:
        connection.settimeout(None)
        lib.wolfSSL_set_fd(ssl, connection.fileno())
        if lib.wolfSSL_connect(ssl) != 1:
            sys.exit(f"refused: {lib.wolfSSL_get_error(ssl, -1)}")
        request = b"GET / HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n\r\n"
        lib.wolfSSL_write(ssl, request, len(request))
        answer = ctypes.create_string_buffer(4096)
        length = lib.wolfSSL_read(ssl, answer, 4096)
        print(answer.raw[: max(length, 0)].decode())


def pygit2(url, cafile):
    import tempfile

    import pygit2 as git

    git.option(git.GIT_OPT_SET_SSL_CERT_LOCATIONS, cafile, None)
    callbacks = git.RemoteCallbacks(credentials=git.UserPass("agent", "GIT_TOKEN"))
    with tempfile.TemporaryDirectory() as folder:
        remote = git.init_repository(folder).remotes.create("origin", url)
        try:
            print([head["name"] for head in remote.ls_remotes(callbacks=callbacks)])
        except git.GitError as error:
            sys.exit(f"refused: {error}")


{"wolfssl": wolfssl, "pygit2": pygit2}[sys.argv[1]](*sys.argv[2:])
