"""Agents from npm, run as a person would. The environment says where things are: LAB_NODE and LAB_AGENTS
(their node_modules), and LAB_HOME, a folder to be made for them.

    agents.py claude          Claude Code in a terminal, for the first time, until it asks something
    agents.py claude-print    Claude Code with one question, and no terminal
    agents.py codex           codex with one question, and no terminal

Prints what they show, without the terminal's own codes.
"""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

HOME = os.environ.pop("LAB_HOME")
NODE = os.environ.pop("LAB_NODE")
AGENTS = os.environ.pop("LAB_AGENTS")
CLAUDE = [NODE, f"{AGENTS}/@anthropic-ai/claude-code/cli-wrapper.cjs"]
CODEX = [NODE, f"{AGENTS}/@openai/codex/bin/codex.js"]
# Seconds. Both are there within three on a machine that does nothing else.
LONGEST = 60


def environment():
    os.makedirs(HOME, exist_ok=True)
    own = {"HOME": HOME, "TERM": "xterm-256color", "PATH": f"{os.path.dirname(NODE)}:{os.environ['PATH']}"}
    return {**os.environ, **own}


def shown(screen):
    """Words, whatever the terminal does between them."""
    text = screen.decode(errors="replace")
    return " ".join(re.sub(r"\x1b(\[[0-9;?<>=]*[a-zA-Z]|\][^\x07\x1b]*(\x07|\x1b\\)|[()=>78].?)", " ", text).split())


def in_a_terminal(command, until):
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(HOME)
        os.execvpe(command[0], command, environment())
    screen, end = b"", time.monotonic() + LONGEST
    while time.monotonic() < end and not any(word in shown(screen) for word in until):
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                screen += os.read(terminal, 65536)
            except OSError:
                break
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return shown(screen)


def alone(command):
    done = subprocess.run(
        command, env=environment(), cwd=HOME, stdin=subprocess.DEVNULL, timeout=LONGEST,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )
    return shown(done.stdout)


def claude():
    return in_a_terminal(CLAUDE, ["Unable to connect", "Choose the text style"])


def claude_print():
    return alone([*CLAUDE, "-p", "Hello"])


def codex():
    os.environ["CODEX_API_KEY"] = "OPENAI_API_KEY"
    return alone([*CODEX, "exec", "--skip-git-repo-check", "Hello"])


os.makedirs(HOME, exist_ok=True)
print({"claude": claude, "claude-print": claude_print, "codex": codex}[sys.argv[1]]())
