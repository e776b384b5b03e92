"""A service manager in little: it starts a program, writes down what the program tells it
(sd_notify(3)), keeps the sockets that the program gives it (FDSTORE=1), and hands them to the next
run (sd_listen_fds(3)).

    supervise.py SOCKET LOG PROGRAM [ARGUMENT...]

On standard input, a word a line, each answered with one: "start", "term", "kill", "abrt", "kept".
"""

import array
import fcntl
import os
import select
import signal
import socket
import sys

path, log_path, *command = sys.argv[1:]
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.bind(path)
log = open(log_path, "a", buffering=1)
kept = {}
child = None


def start():
    global child
    child = os.fork()
    if child:
        return "started"
    # Out of the way first: the numbers that are handed over may be in use.
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 1000) for fd in kept.values()]
    for number, fd in enumerate(high, 3):
        os.dup2(fd, number, inheritable=True)
    os.closerange(3 + len(high), 4096)
    os.environ |= {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "400000"}
    if high:
        os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(high))}
    os.execv(command[0], command)


def end(how):
    global child
    os.kill(child, how)
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if select.select([notify], [], [], 0.01)[0]:
            hear()
    child = None
    return "ended"


def hear():
    text, control, _, _ = notify.recvmsg(4096, socket.CMSG_SPACE(256 * 4))
    for level, kind, data in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            for fd in array.array("i", data):
                if kept.setdefault(os.fstat(fd).st_ino, fd) != fd:
                    os.close(fd)
    print(text.decode().replace("\n", " "), file=log)


while True:
    readable = select.select([notify, sys.stdin], [], [])[0]
    if notify in readable:
        hear()
    if sys.stdin in readable:
        word = sys.stdin.readline().strip()
        if not word:
            sys.exit()
        acts = {
            "start": start,
            "term": lambda: end(signal.SIGTERM),
            "kill": lambda: end(signal.SIGKILL),
            "abrt": lambda: end(signal.SIGABRT),
            "kept": lambda: str(len(kept)),
        }
        print(acts[word](), flush=True)
