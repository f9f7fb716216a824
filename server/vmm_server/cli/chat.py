"""A conversation on the terminal: messages, and commands that begin with a slash."""

import re

import click

from vmm_server.cli import print_error
from vmm_server.cli.chat_commands import run_command
from vmm_server.cli.conversation import Conversation
from vmm_server.cli.images import find_images
from vmm_server.cli.terminal import CONTINUED, PROMPT, LineReader
from vmm_server.errors import VMMError

LEAVE = ("/bye", "/exit")

QUOTES = '"""'
_QUOTED = re.compile(r'\s*(/set\s+system\s+)?"""(.*)', re.DOTALL)


def chat_loop(conversation: Conversation, read_line: LineReader) -> None:
    """Answer what is typed until `/bye` or Ctrl-D. Errors are told; they do not end the chat."""
    while True:
        try:
            text = read_message(read_line)
        except KeyboardInterrupt:
            click.echo("leave with /bye or Ctrl-D", err=True)
            continue
        except EOFError:
            return
        if text.split()[:1] in ([word] for word in LEAVE):
            return
        try:
            if is_command(text):
                run_command(text, conversation, read_line)
            elif text:
                conversation.answer(text)
        except KeyboardInterrupt:
            continue  # the stream is closed, which stops the answer
        except VMMError as error:
            print_error(error.message, error.hint)


def is_command(text: str) -> bool:
    """Whether a message is a command: it begins with a slash, and not with the path of a picture."""
    return text.startswith("/") and not any(text.startswith(typed) for typed, _ in find_images(text))


def read_message(read_line: LineReader) -> str:
    '''A line, or the lines between `"""` and `"""`, which may come after `/set system`.'''
    text = read_line(PROMPT)
    quoted = _QUOTED.match(text)
    if quoted is None:
        return text.strip()
    command, block = quoted.group(1) or "", quoted.group(2)
    while not block.rstrip().endswith(QUOTES):
        block += "\n" + read_line(CONTINUED)
    return command + block.rstrip().removesuffix(QUOTES)
