"""`zephyrctl chat`: chat with checkpoints in the terminal, through a pipe, or with a single prompt."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from zephyrctl.cli.completion import checkpoints, recipes, runs
from zephyrctl.cli.screen import Screen, plain
from zephyrctl.errors import UsageError, ZephyrError

if TYPE_CHECKING:
    from zephyrctl.chat.commands import ChatInput
    from zephyrctl.chat.session import ChatAnswer, ChatSession


def chat(
    who: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[STAGE|DIR]...",
            help="A checkpoint's name, 'base', a folder or a Hub id. Default: the last finished checkpoint. "
            "With --prompt you can name several.",
            autocompletion=checkpoints,
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="Answer this prompt and exit.")] = None,
    system: Annotated[str, typer.Option("--system", help="The system message.")] = "",
    temperature: Annotated[
        float, typer.Option("--temperature", min=0, max=5, help="0 always takes the most likely token.")
    ] = 0.7,
    top_p: Annotated[
        float,
        typer.Option("--top-p", min=0, max=1, help="Sample from the most likely tokens with this total probability."),
    ] = 1.0,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Maximum length of an answer, in tokens.")
    ] = 512,
    seed: Annotated[int, typer.Option("--seed", help="Random seed: the same seed gives the same answers.")] = 0,
    run: Annotated[
        str | None, typer.Option("--run", help="Run folder, or its name in runs/.", autocompletion=runs)
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            help="Name of a shipped recipe, or a YAML file. Default: zephyrctl.yaml, else tiny.",
            autocompletion=recipes,
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object with the answers by checkpoint.")] = False,
) -> None:
    """Chat with a checkpoint in the terminal. Type /base, /sft or /dpo to compare their answers side by side.

    Lines from a pipe are prompts too. /help lists the commands. Ctrl-C stops an answer, Ctrl-D quits.
    """
    from zephyrctl.chat.models import chat_models, choose
    from zephyrctl.chat.session import ChatSampling, ChatSession, ModelWorkers
    from zephyrctl.cli.session import Session

    session = Session(run, recipe, [], dry_run=False, json=json, quiet=False, fresh=False)
    loaded = session.load()
    folder = session.open(loaded)
    known = chat_models(loaded.recipe, folder)
    named: list[str | None] = [*who] if who else [None]
    chosen = [choose(name, known, loaded.recipe, folder) for name in named]
    known |= {model.name: model for model in chosen}
    prompt = _piped(prompt, json)
    if len(chosen) > 1 and prompt is None:
        raise UsageError(
            "several models need a --prompt", "add --prompt TEXT, or name one model and compare with /NAME"
        )
    sampling = ChatSampling(temperature, top_p, max_new_tokens, seed)
    workers = ModelWorkers(lambda name: session.screen.say(f"loading {name}"))
    with ChatSession(chosen[0], known, workers, sampling, system) as chat_session:
        if prompt is not None:
            _once(chat_session, prompt, [model.name for model in chosen], session.screen)
        elif sys.stdin.isatty():
            Terminal(chat_session, session.screen).run()
        else:
            for line in sys.stdin:
                if line.strip():
                    _answer(chat_session, line.strip(), session.screen)


def _piped(prompt: str | None, is_json: bool) -> str | None:
    """The single prompt, if there is one; with --json it may be all of standard input."""
    if prompt is None and is_json:
        prompt = "" if sys.stdin.isatty() else sys.stdin.read().strip()
    if prompt is not None and not prompt.strip():
        raise UsageError("there is no prompt", "give --prompt TEXT")
    return prompt


def _once(chat_session: "ChatSession", prompt: str, names: list[str], screen: Screen) -> None:
    """Let each named model answer the prompt, and show the answers."""
    answers: dict[str, ChatAnswer] = {}
    for name in names:
        chat_session.use(name)
        chat_session.reset()
        answers[name] = chat_session.say(prompt, lambda text: None)
    result = {
        "prompt": prompt,
        "system": chat_session.system,
        "answers": {name: asdict(answer) for name, answer in answers.items()},
    }
    screen.show(result, *_shown(answers))


def _shown(answers: "dict[str, ChatAnswer]") -> "Iterator[Text | Table]":
    """One answer as plain text, several side by side in a table."""
    if len(answers) == 1:
        yield from (Text(plain(answer.text)) for answer in answers.values())
        return
    heads = (f"{name}, cut" if answer.finish_reason == "length" else name for name, answer in answers.items())
    table = Table(*heads, expand=True)
    for column in table.columns:
        column.ratio = 1
    table.add_row(*(Text(plain(answer.text) or "(empty)") for answer in answers.values()))
    yield table


def _answer(chat_session: "ChatSession", text: str, screen: Screen) -> None:
    """Send a prompt and print the answer while it is generated."""

    def write(piece: str) -> None:
        sys.stdout.write(plain(piece))
        sys.stdout.flush()

    answer = chat_session.say(text, write)
    sys.stdout.write("\n")
    sys.stdout.flush()
    if answer.finish_reason == "length":
        screen.say(f"(cut off at {answer.tokens} tokens: raise --max-new-tokens)")
    elif answer.finish_reason == "stopped":
        screen.say("(stopped)")


class Terminal:
    """An interactive chat: reads prompts and commands until Ctrl-D. An error does not end it."""

    def __init__(self, chat_session: "ChatSession", screen: Screen) -> None:
        self.chat_session = chat_session
        self.screen = screen

    def run(self) -> None:
        """Read and answer until the user quits."""
        with_editing()
        self.screen.say(f"{self.chat_session.model.name}: type a prompt; /help lists commands, Ctrl-D quits")
        while (text := self._next()) is not None:
            if text.strip() and not self._do(text.strip()):
                return

    def _next(self) -> str | None:
        """The next line; None at the end of input. Ctrl-C clears the line."""
        while True:
            try:
                return input(f"{self.chat_session.model.name}> ")
            except KeyboardInterrupt:
                self.screen.say("\n(Ctrl-D quits)")
            except EOFError:
                self.screen.err.print()
                return None

    def _do(self, text: str) -> bool:
        """Handle one line; False if it ends the chat."""
        from zephyrctl.chat.commands import parse_line

        try:
            line = parse_line(text, self.chat_session.known)
            if line.verb == "quit":
                return False
            self._act(line)
        except ZephyrError as error:
            self.screen.err.print(Text.assemble(("error: ", "bold red"), error.problem))
            self.screen.err.print(Text.assemble(("  try: ", "bold"), error.remedy))
        except OSError as error:
            self.screen.err.print(Text.assemble(("error: ", "bold red"), f"{error.strerror}: {error.filename}"))
        return True

    def _act(self, line: "ChatInput") -> None:
        from zephyrctl.chat.commands import temperature

        acts: dict[str, Callable[[], None]] = {
            "say": lambda: _answer(self.chat_session, line.text, self.screen),
            "compare": lambda: self._compare(line.names),
            "use": lambda: self.chat_session.use(line.names[0]),
            "system": lambda: setattr(self.chat_session, "system", line.text),
            "reset": self.chat_session.reset,
            "undo": self.chat_session.undo,
            "temperature": lambda: self.chat_session.set_temperature(temperature(line.text)),
            "save": lambda: self._save(Path(line.text).expanduser()),
            "help": self._help,
        }
        acts[line.verb]()

    def _compare(self, names: tuple[str, ...]) -> None:
        """Show the answers to the last prompt side by side, generating those that are missing."""
        for name in names:
            self.chat_session.compare(name, lambda text: None)
        for shown in _shown(self.chat_session.answers):
            self.screen.out.print(shown)

    def _save(self, path: Path) -> None:
        self.chat_session.save(path)
        self.screen.say(f"saved to {path}")

    def _help(self) -> None:
        from zephyrctl.chat.commands import HELP

        width = max(map(len, HELP))
        for usage, does in HELP.items():
            self.screen.say(f"  {usage:<{width}}  {does}")
        self.screen.say(f"  models: {', '.join(self.chat_session.known)}")


def with_editing() -> None:
    """Enable line editing and history with the arrow keys, if this Python has readline."""
    try:
        import readline  # noqa: F401  importing it is enough
    except ImportError:
        return
