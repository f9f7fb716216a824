"""The command line. `main` is the console command `vmm`; the commands live in the modules `COMMANDS` names.

What a command was asked for goes to stdout; progress, logs and errors go to stderr. Exit codes: 0 done, 1 failed,
2 wrong usage or setting, 130 interrupted.
"""

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

import click

from vmm_adapters.errors import AdapterError
from vmm_server import __version__
from vmm_server.errors import AddressInUse, SettingsError, VMMError

COMMANDS: dict[str, tuple[str, str]] = {
    "serve": ("vmm_server.cli.serve:serve", "Start the server"),
    "run": ("vmm_server.cli.run:run", "Ask a model, or chat with it"),
    "transcribe": ("vmm_server.cli.transcribe:transcribe", "Write speech down"),
    "detect": ("vmm_server.cli.detect:detect", "Find things in pictures"),
    "classify": ("vmm_server.cli.classify:classify", "Name what pictures show"),
    "embed": ("vmm_server.cli.embed:embed", "Make vectors of texts and pictures"),
    "create": ("vmm_server.cli.create:create", "Create a model from a Modelfile"),
    "quantize": ("vmm_server.cli.quantize:quantize", "Make a smaller variant of a model"),
    "show": ("vmm_server.cli.show:show", "Show what is known of a model"),
    "pull": ("vmm_server.cli.models:pull", "Fetch a model"),
    "push": ("vmm_server.cli.models:push", "Send a model to another server"),
    "list": ("vmm_server.cli.models:list_models", "List the models that are installed"),
    "ps": ("vmm_server.cli.loaded:ps", "List the models that are loaded"),
    "stop": ("vmm_server.cli.loaded:stop", "Unload a model"),
    "cp": ("vmm_server.cli.models:copy", "Give a model a second name"),
    "rm": ("vmm_server.cli.models:remove", "Remove models"),
    "keys": ("vmm_server.cli.keys:keys", "Make, list and revoke keys"),
    "release": ("vmm_server.cli.release:release", "Say which version a model's name means"),
    "bench": ("vmm_server.cli.bench:bench", "Measure a model wherever it can run here"),
    "status": ("vmm_server.cli.status:status", "Show how a running server is"),
    "reload": ("vmm_server.cli.status:reload_server", "Have a running server read its settings again"),
    "devices": ("vmm_server.cli.devices:devices", "List the processors of this machine"),
    "doctor": ("vmm_server.cli.doctor:doctor", "Say what is wrong here, and what mends it"),
    "help": ("vmm_server.cli:help_command", "Explain a command"),
}
"""Command → (`module:object`, one line of help). A module is imported when its command is asked for, so that
`vmm --version` and a shell's completion do not wait for a runtime."""
ALIASES = {"start": "serve", "ls": "list"}
"""Other names, as Ollama's command line has them."""
MEANT = {
    "remove": "rm",
    "delete": "rm",
    "copy": "cp",
    "models": "list",
    "download": "pull",
    "chat": "run",
    "unload": "stop",
    "kill": "stop",
    "version": "--version",
}
"""What people type who do not find a command, and what they look for."""
OF_A_CLOUD = ("signin", "signout", "login", "logout", "whoami")
"""Commands of Ollama's that have nothing to do here."""


class CommandTable(click.Group):
    """The commands of `COMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command. Raises `click.UsageError` for one that there is not."""
        cmd_name = ALIASES.get(cmd_name, cmd_name)
        if cmd_name in OF_A_CLOUD:
            raise click.UsageError(f"there is no {cmd_name}: models run here, and nobody needs an account for it")
        if cmd_name not in COMMANDS:
            near = get_close_matches(cmd_name, [*COMMANDS, *ALIASES], 1)
            meant = MEANT.get(cmd_name) or next(iter(near), None)
            suggestion = f". Did you mean {meant!r}?" if meant else ""
            raise click.UsageError(f"there is no command {cmd_name!r}{suggestion}")
        # httpx's own command line: 4 MB of highlighters and tables in every process; it does without, and says so
        sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
        module, name = COMMANDS[cmd_name][0].split(":")
        command = getattr(import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, from the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.command(cls=CommandTable, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-v", "--version", prog_name="vmm", message="%(prog)s %(version)s")
def vmm() -> None:
    """Runs AI models on whatever hardware is there, behind the OpenAI and Ollama APIs."""


@click.command("help")
@click.argument("name", metavar="[COMMAND]", required=False)
@click.pass_context
def help_command(context: click.Context, name: str | None) -> None:
    """Explain a command, or list them all."""
    root = context.find_root()
    if name is None:
        click.echo(root.get_help())
        return
    command = vmm.get_command(root, name)
    assert command is not None
    click.echo(command.get_help(click.Context(command, parent=root, info_name=name)))


def print_error(message: str, hint: str | None) -> None:
    """One `error:` line, and a `hint:` line with the mend where there is one."""
    click.echo(f"error: {message}", err=True)
    if hint:
        click.echo(f"hint: {hint}", err=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    try:
        result = vmm.main(arguments, prog_name="vmm", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "vmm"
        print_error(error.format_message(), f"{path} --help")
        return error.exit_code
    except click.ClickException as error:
        print_error(error.format_message(), None)
        return error.exit_code
    except click.Abort:
        return 130
    except (VMMError, AdapterError) as error:
        print_error(error.message, error.hint)
        return 2 if isinstance(error, SettingsError) and not isinstance(error, AddressInUse) else 1
    return result if isinstance(result, int) else 0
