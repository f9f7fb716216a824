"""The commands of a chat, by Ollama's names: `/set`, `/show`, `/list`, `/load`, `/save`, `/clear`, `/?`."""

from typing import Any

import click

from vmm_server.cli.conversation import Conversation, parse_option, read_format
from vmm_server.cli.terminal import LineReader
from vmm_server.errors import InvalidRequest
from vmm_server.models.parameters import check_parameters

HELP = {
    "": '''/set            change how the model is asked
/show           show what is known of the model
/list           the models that are installed
/load MODEL     go on with another model, and forget the conversation
/save NAME      make a model of the conversation so far and its settings
/clear          forget the conversation so far
/bye            leave (or Ctrl-D)
/?, /help       this list; /? set, /? show and /? shortcuts say more

"""             begin and end a message of several lines
/path/to/file   a picture (.jpg, .png, .webp) that belongs to the message''',
    "set": """/set parameter NAME VALUE...   an option, such as temperature 0.2, num_ctx 8192 or stop END
/set system TEXT               the system message
/set history, nohistory        keep what is typed, or do not
/set wordwrap, nowordwrap      break lines between words, or leave them to the terminal
/set format json               answer in JSON, or as a JSON schema says: its text, or its file
/set noformat                  answer freely
/set verbose, quiet            print the timings after each answer, or do not
/set think [low|medium|high]   think first
/set nothink                   answer at once""",
    "show": """/show info         size, capabilities, context
/show license      the licence
/show modelfile    the Modelfile
/show parameters   the options of the model and of this conversation
/show system       the system message
/show template     the template of the prompt""",
    "shortcuts": """Ctrl-A, Ctrl-E     to the beginning, to the end of the line
Alt-B, Alt-F       a word back, a word on
Ctrl-K, Ctrl-U     delete what follows, what is before
Ctrl-W             delete the word before
Up, Down           what was typed before
Ctrl-R             search in it
Ctrl-L             clear the screen
Ctrl-G             write the message in your editor ($VISUAL, $EDITOR)
Ctrl-C             stop the answer, or give up the line
Ctrl-D             leave""",
}

_SWITCHES: dict[str, tuple[str, object]] = {
    "wordwrap": ("word_wrap", True),
    "nowordwrap": ("word_wrap", False),
    "verbose": ("verbose", True),
    "quiet": ("verbose", False),
    "nothink": ("think", False),
    "noformat": ("format", None),
}
"""Settings without a value → the field of the session that they set."""


_NUM_NAMES = {"/load": "one name", "/save": "one name", "/clear": "nothing after it", "/list": "nothing after it"}


def run_command(line: str, conversation: Conversation, reader: LineReader) -> None:
    """Do what a line that begins with a slash says. Raises `VMMError` where it cannot be done."""
    name, *words = line.split()
    rest = line.partition(name)[2].strip()
    match name, words:
        case "/set", [setting, *values]:
            _set(setting, values, rest.removeprefix(setting).strip(), conversation, reader)
        case "/show", [what]:
            click.echo(_shown(what, conversation))
        case "/list", []:
            names = [model["name"] for model in conversation.client.installed()]
            click.echo("\n".join(names))
        case "/load", [model]:
            conversation.load(model)
            click.echo(f"Loaded {model}.")
        case "/save", [model]:
            conversation.save(model)
            click.echo(f"Created model {model}.")
        case "/clear", []:
            conversation.clear()
            click.echo("The conversation begins anew.")
        case (("/help" | "/?"), _):
            click.echo(HELP.get(_topic(words), HELP[""]))
        case (("/set" | "/show"), _):
            click.echo(HELP[name[1:]])
        case (("/list" | "/load" | "/save" | "/clear"), _):
            raise InvalidRequest(f"{name} takes {_NUM_NAMES[name]}", hint="/? lists what there is")
        case _:
            raise InvalidRequest(f"there is no {name}", hint="/? lists what there is")


def _topic(words: list[str]) -> str:
    topic = words[0].removeprefix("/") if words else ""
    return "shortcuts" if topic == "shortcut" else topic


def _set(setting: str, values: list[str], text: str, conversation: Conversation, reader: LineReader) -> None:
    session = conversation.session
    match setting, values:
        case "parameter", [name, _, *_]:
            session.options |= check_parameters({name: parse_option(name, values[1:])})
        case "system", [_, *_]:
            session.system = text
        case "format", [_, *_]:
            session.format = read_format(text)
        case (("history" | "nohistory"), []):
            reader.keeps_history = setting == "history"
        case "think", ([] | [_]):
            _check_thinking(conversation)
            session.think = values[0] if values else True
        case name, [] if name in _SWITCHES:
            setattr(session, *_SWITCHES[name])
        case (("parameter" | "system" | "format" | "think"), _):
            click.echo(HELP["set"])
            return
        case _:
            raise InvalidRequest(f"there is no /set {setting}", hint="/? set lists what there is")
    click.echo(f"Set {setting}{' ' if text else ''}{text}")


def _check_thinking(conversation: Conversation) -> None:
    model = conversation.session.model
    if "thinking" not in conversation.client.show(model).get("capabilities", ()):
        raise InvalidRequest(f"{model} does not support thinking", param="think")


def _shown(what: str, conversation: Conversation) -> str:
    session = conversation.session
    shown = conversation.client.show(session.model)
    match what:
        case "info":
            return describe(shown)
        case "parameters":
            own = "\n".join(f"{name:<30} {value}" for name, value in session.options.items())
            return f"of the model:\n{shown.get('parameters') or 'none'}\n\nset here:\n{own or 'none'}"
        case "system":
            return session.system or shown.get("system") or "The model has no system message."
        case "license" | "modelfile" | "template":
            return str(shown.get(what) or f"The model has no {what}.")
    raise InvalidRequest(f"there is no /show {what}", hint="/? show lists what there is")


def describe(shown: dict[str, Any]) -> str:
    """The facts that `/api/show` tells, one a line."""
    details, info = shown["details"], shown["model_info"]
    family = info.get("general.architecture", details.get("family"))
    facts = {
        "family": family,
        "parameters": details.get("parameter_size"),
        "quantization": details.get("quantization_level"),
        "format": details.get("format"),
        "context length": info.get(f"{family}.context_length"),
        "embedding length": info.get(f"{family}.embedding_length"),
        "capabilities": ", ".join(shown.get("capabilities", ())),
        "license": str(shown.get("license") or "").strip().partition("\n")[0],
    }
    return "\n".join(f"{label + ':':<18}{value}" for label, value in facts.items() if value)
