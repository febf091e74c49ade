"""`zephyrctl chat`: talk to checkpoints in the terminal, in a pipe, or once."""

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
    from zephyrctl.chat.conversation import Answer, Talk
    from zephyrctl.chat.input_lines import Line


def chat(
    who: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[STAGE|DIR]...",
            help="A checkpoint's name, 'base', a folder or a Hub id; else the last finished checkpoint. Several with "
            "--prompt.",
            autocompletion=checkpoints,
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="Ask this, print the answers, and end.")] = None,
    system: Annotated[str, typer.Option("--system", help="The system message.")] = "",
    temperature: Annotated[
        float, typer.Option("--temperature", min=0, max=5, help="0 takes the likeliest token every time.")
    ] = 0.7,
    top_p: Annotated[
        float, typer.Option("--top-p", min=0, max=1, help="Draw from the likeliest tokens of this share.")
    ] = 1.0,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="The longest answer.")] = 512,
    seed: Annotated[int, typer.Option("--seed", help="Of the draws: the same gives the same answers.")] = 0,
    run: Annotated[
        str | None, typer.Option("--run", help="Folder of the run, or its name below runs/.", autocompletion=runs)
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe", help="Shipped recipe or YAML file; else zephyrctl.yaml, else tiny.", autocompletion=recipes
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout: the answers by checkpoint.")] = False,
) -> None:
    """Talk to a checkpoint in the terminal; /base, /sft and /dpo answer the same side by side.

    Lines of a pipe are prompts too. /help lists what can be typed; Ctrl-C stops an answer and Ctrl-D ends.
    """
    from zephyrctl.chat.conversation import Manner, Talk, Workers
    from zephyrctl.chat.speakers import choose, speakers
    from zephyrctl.cli.session import Session

    session = Session(run, recipe, [], dry_run=False, json=json, quiet=False, fresh=False)
    loaded = session.load()
    folder = session.open(loaded)
    known = speakers(loaded.recipe, folder)
    named: list[str | None] = [*who] if who else [None]
    chosen = [choose(name, known, loaded.recipe, folder) for name in named]
    known |= {speaker.name: speaker for speaker in chosen}
    prompt = _piped(prompt, json)
    if len(chosen) > 1 and prompt is None:
        raise UsageError("several models answer one --prompt", "give --prompt, or name one and compare with /NAME")
    manner = Manner(temperature, top_p, max_new_tokens, seed)
    workers = Workers(lambda name: session.screen.say(f"loading {name}"))
    with Talk(chosen[0], known, workers, manner, system) as talk:
        if prompt is not None:
            _once(talk, prompt, [speaker.name for speaker in chosen], session.screen)
        elif sys.stdin.isatty():
            Terminal(talk, session.screen).run()
        else:
            for line in sys.stdin:
                if line.strip():
                    _answer(talk, line.strip(), session.screen)


def _piped(prompt: str | None, is_json: bool) -> str | None:
    """What is asked once; with --json that may be all of standard input."""
    if prompt is None and is_json:
        prompt = "" if sys.stdin.isatty() else sys.stdin.read().strip()
    if prompt is not None and not prompt.strip():
        raise UsageError("there is no prompt", "give --prompt TEXT")
    return prompt


def _once(talk: "Talk", prompt: str, names: list[str], screen: Screen) -> None:
    """Ask each of the named the same, and show the answers."""
    answers: dict[str, Answer] = {}
    for name in names:
        talk.use(name)
        talk.reset()
        answers[name] = talk.say(prompt, lambda text: None)
    told = {"prompt": prompt, "system": talk.system, "answers": {name: asdict(one) for name, one in answers.items()}}
    screen.show(told, *_shown(answers))


def _shown(answers: "dict[str, Answer]") -> "Iterator[Text | Table]":
    """One answer as it is, several side by side."""
    if len(answers) == 1:
        yield from (Text(plain(answer.text)) for answer in answers.values())
        return
    heads = (f"{name}, cut" if answer.finish_reason == "length" else name for name, answer in answers.items())
    table = Table(*heads, expand=True)
    for column in table.columns:
        column.ratio = 1
    table.add_row(*(Text(plain(answer.text) or "(nothing)") for answer in answers.values()))
    yield table


def _answer(talk: "Talk", text: str, screen: Screen) -> None:
    """Have something answered, and write the answer as it comes."""

    def write(piece: str) -> None:
        sys.stdout.write(plain(piece))
        sys.stdout.flush()

    answer = talk.say(text, write)
    sys.stdout.write("\n")
    sys.stdout.flush()
    if answer.finish_reason == "length":
        screen.say(f"(cut at {answer.tokens} tokens: --max-new-tokens)")
    elif answer.finish_reason == "stopped":
        screen.say("(stopped)")


class Terminal:
    """A person at a terminal: what is typed is said or done until Ctrl-D, and an error ends nothing."""

    def __init__(self, talk: "Talk", screen: Screen) -> None:
        self.talk = talk
        self.screen = screen

    def run(self) -> None:
        """Ask and answer until the end."""
        with_editing()
        self.screen.say(f"{self.talk.speaker.name}: say something; /help lists commands, Ctrl-D ends")
        while (text := self._next()) is not None:
            if text.strip() and not self._do(text.strip()):
                return

    def _next(self) -> str | None:
        """The next line; None at the end. Ctrl-C empties the line."""
        while True:
            try:
                return input(f"{self.talk.speaker.name}> ")
            except KeyboardInterrupt:
                self.screen.say("\n(Ctrl-D ends)")
            except EOFError:
                self.screen.err.print()
                return None

    def _do(self, text: str) -> bool:
        """Do what a line says; False where it ends the chat."""
        from zephyrctl.chat.input_lines import read_line

        try:
            line = read_line(text, self.talk.known)
            if line.verb == "quit":
                return False
            self._act(line)
        except ZephyrError as error:
            self.screen.err.print(Text.assemble(("error: ", "bold red"), error.problem))
            self.screen.err.print(Text.assemble(("  try: ", "bold"), error.remedy))
        except OSError as error:
            self.screen.err.print(Text.assemble(("error: ", "bold red"), f"{error.strerror}: {error.filename}"))
        return True

    def _act(self, line: "Line") -> None:
        from zephyrctl.chat.input_lines import temperature

        acts: dict[str, Callable[[], None]] = {
            "say": lambda: _answer(self.talk, line.text, self.screen),
            "compare": lambda: self._compare(line.names),
            "use": lambda: self.talk.use(line.names[0]),
            "system": lambda: setattr(self.talk, "system", line.text),
            "reset": self.talk.reset,
            "undo": self.talk.undo,
            "temperature": lambda: self.talk.warm(temperature(line.text)),
            "save": lambda: self._save(Path(line.text).expanduser()),
            "help": self._help,
        }
        acts[line.verb]()

    def _compare(self, names: tuple[str, ...]) -> None:
        """Answers to the last prompt side by side, those that were given and those that are asked for."""
        for name in names:
            self.talk.compare(name, lambda text: None)
        for shown in _shown(self.talk.answers):
            self.screen.out.print(shown)

    def _save(self, path: Path) -> None:
        self.talk.save(path)
        self.screen.say(f"added to {path}")

    def _help(self) -> None:
        from zephyrctl.chat.input_lines import HELP

        width = max(map(len, HELP))
        for usage, does in HELP.items():
            self.screen.say(f"  {usage:<{width}}  {does}")
        self.screen.say(f"  to ask: {', '.join(self.talk.known)}")


def with_editing() -> None:
    """Arrow keys edit the line and bring earlier ones back, where this Python has readline."""
    try:
        import readline  # noqa: F401  it works by being imported
    except ImportError:
        return
