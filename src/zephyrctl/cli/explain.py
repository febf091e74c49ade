"""`zephyrctl data explain`: show the history of one row, for people or as JSON."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table
from rich.text import Text

from zephyrctl.cli.screen import plain
from zephyrctl.cli.session import Session, with_session
from zephyrctl.data import explain as explaining
from zephyrctl.data.explain import RowHistory, RunRecords, TrainingUse
from zephyrctl.data.lookup import shorten
from zephyrctl.errors import UsageError, ZephyrError
from zephyrctl.rows.files import Raw

SHORT = 240
"""Characters of a text that are shown without --full."""
LISTED = 20


@with_session
def explain(
    session: Session,
    id: Annotated[str | None, typer.Argument(metavar="ID", help="Id of a prompt, or the beginning of it.")] = None,
    text: Annotated[
        str | None,
        typer.Option("--text", help="Find the row by words of the user instead of the id. Several matches are listed."),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Show whole texts, as --json always does.")] = False,
) -> None:
    """Show the history of one row: its source, the answers, the judge's replies, and the rule that chose the pair."""
    if (id is None) == (text is None):
        raise UsageError("give an id or --text", "the beginning of an id, or words of the user: --text 'some words'")
    records = RunRecords.of(session.open(session.load()))
    if text is not None:
        matches = explaining.search(records, text)
        if len(matches) != 1:
            _list(session, text, matches)
            return
        id = next(iter(matches))
    history = explaining.explain(records, explaining.find(records, id or ""))
    session.screen.show(asdict(history), *lines(history, None if full else SHORT))


def lines(history: RowHistory, most: int | None) -> Iterator[Text | Table]:
    """The history for people. Texts are cut after `most` characters."""
    for heading, part in (
        ("Prompt", _prompt(history, most)),
        ("Source", _origin(history, most)),
        ("Answers", _answers(history, most)),
        ("Ratings", _judgments(history, most)),
        ("Pairs", _pairing(history)),
        ("Training", _training(history)),
        ("Evaluation", _evaluation(history, most)),
        ("Notes", (Text(f"  {note}") for note in history.notes)),
    ):
        if shown := list(part):
            yield Text(heading if heading == "Prompt" else f"\n{heading}", "bold")
            yield from shown


def _list(session: Session, words: str, matches: Mapping[str, str]) -> None:
    """List the rows whose user says the words. Raises ZephyrError if there is none."""
    if not matches:
        raise ZephyrError(f"no user turn of this run contains {words!r}", "give fewer words; case does not matter")
    table = Table("id", "user turn", box=SIMPLE_HEAD)
    for id, text in list(zip(shorten(list(matches)), matches.values(), strict=True))[:LISTED]:
        table.add_row(id, Text(_cut(text.replace("\n", " "), 60)))
    more = [f"and {len(matches) - LISTED} more: --json lists all"] if len(matches) > LISTED else []
    session.screen.show({"matches": [{"id": id, "text": text} for id, text in matches.items()]}, table, *more)


def _prompt(history: RowHistory, most: int | None) -> Iterator[Text]:
    yield Text(f"  {history.id} ({history.split or 'unknown'} split)")
    for message in history.messages:
        yield _block(f"{message['role']}:", message["content"], most)


def _origin(history: RowHistory, most: int | None) -> Iterator[Text]:
    if history.source:
        yield Text(f"  source of this run: {_settings(history.source)}")
    for row in history.rows:
        place = f", row {row['row']} of the input" if row["row"] is not None else ""
        kind = row["kind"].removesuffix("s")
        yield Text(plain(f"  {kind} in the {row['split']} split, from {row['source']} ({row['origin'] or '?'}){place}"))
    for change in history.changes:
        yield Text(f"  turn {change['turn']} of row {change['row']} was changed by the rule {change['rule']}")
        yield _block("before:", change["before"], most)
        yield _block("after:", "(cut off)" if change["after"] is None else change["after"], most)
    for dropped in history.dropped:
        yield Text(plain(f"  row {dropped['row']} was dropped by the rule {dropped['rule']}{_why(dropped)}"))
        turns = json.loads(dropped["content"]).get("messages")
        for turn in turns or ({"role": "content", "content": dropped["content"]},):
            yield _block(f"{turn['role']}:", turn["content"], most, "    ")
    for turn in history.contamination:
        shared = f" by {turn['ngram']!r}" if turn["ngram"] else ""
        claim = f"turn {turn['turn']} contains a prompt of {turn['benchmark']} ({turn['kind']} match{shared})"
        yield Text(plain(f"  {claim}"))
        yield _block("the turn:", turn["text"], most)
        yield _block("the benchmark:", turn["benchmark_text"], most)


def _why(dropped: Raw) -> str:
    if dropped["like"]:
        is_exact = dropped["similarity"] in (None, 1)
        similarity = "" if is_exact else f", {100 * dropped['similarity']:.0f} % similar"
        return f": it repeats {dropped['like']}{similarity}"
    return f": {dropped['details']}" if dropped["details"] else ""


def _answers(history: RowHistory, most: int | None) -> Iterator[Text | Table]:
    if history.answers:
        yield _rating_table(history)
    for answer in history.answers:
        ended = f", cut ({answer['finish_reason']})" if answer["finish_reason"] == "length" else ""
        principle = f", under the principle {answer['principle']}" if answer["principle"] else ""
        yield _block(f"{answer['place'] + 1}. {answer['model']}{principle}{ended}:", answer["text"], most)
        if answer["critique"]:
            yield _block("critique:", answer["critique"], most, "      ")
    for failure in history.failed:
        yield Text(plain(f"  the {failure['what']} failed: {failure['cause']} ({failure['problem']})"))


def _rating_table(history: RowHistory) -> Table:
    """A row for each aspect, and a column for each answer."""
    answers = history.answers
    table = Table(
        "", *(Column(f"answer {answer['place'] + 1}", justify="right") for answer in answers), box=SIMPLE_HEAD
    )
    for aspect in dict.fromkeys(_aspects(history)):
        table.add_row(Text(plain(aspect)), *(_rating_value(answer, aspect) for answer in answers))
    table.add_row("mean", *(_number(answer["mean_rating"]) for answer in answers))
    if any(answer["overall"] is not None for answer in answers):
        table.add_row("overall", *(_number(answer["overall"]) for answer in answers))
    if any(answer["score"] is not None for answer in answers):
        table.add_row("score by the rule", *(_number(answer["score"]) for answer in answers))
    if history.pairs:
        table.add_row("", *(_role(answer["place"], history.pairs) for answer in answers))
    return table


def _aspects(history: RowHistory) -> Iterator[str]:
    """The aspect of each rating, answer after answer."""
    for answer in history.answers:
        yield from (rating["aspect"] for rating in answer["ratings"])


def _rating_value(answer: Raw, aspect: str) -> str:
    rating = next((rating for rating in answer["ratings"] if rating["aspect"] == aspect), None)
    if not rating or rating["value"] is None:
        return "missing"
    spread = f" ± {rating['spread']:.2g}" if rating["spread"] else ""
    return f"{_number(rating['value'])}{spread}"


def _role(place: int, pairs: Sequence[Raw]) -> str:
    roles = [name for name in ("chosen", "rejected") if any(pair[f"{name}_place"] == place for pair in pairs)]
    return ", ".join(roles)


def _judgments(history: RowHistory, most: int | None) -> Iterator[Text]:
    for aspect in dict.fromkeys([*_aspects(history), *(call["aspect"] for call in history.judgments)]):
        yield Text(plain(f"  {aspect}"))
        for call in history.judgments:
            if call["aspect"] == aspect:
                yield _block(_call(call), call["text"] or "(rules, without words)", most, "    ")
        for answer in history.answers:
            for rating in answer["ratings"]:
                if rating["aspect"] == aspect and rating["rationale"]:
                    heading = f"answer {answer['place'] + 1}, {_rating_value(answer, aspect)}:"
                    yield _block(heading, rating["rationale"], most, "    ")


def _call(call: Raw) -> str:
    """One line on a rating call: the order in which it saw the answers, and the ratings by answer."""
    shown = ", ".join(str(place + 1) for place in call["order"])
    repeat = f"repeat {call['repeat'] + 1}, " if call["repeat"] else ""
    again = f"attempt {call['ask'] + 1}, " if call["ask"] else ""
    answers = f"answer {shown}" if len(call["order"]) == 1 else f"the answers in the order {shown}"
    ratings = ", ".join(_number(value) for value in call["values"])
    return f"{repeat}{again}{call['rater'] or '?'} saw {answers}; ratings by answer: {ratings}"


def _pairing(history: RowHistory) -> Iterator[Text]:
    if history.rule:
        yield Text(plain(f"  {_settings(history.rule)}"))
    if history.noted:
        noted = (f"{name.replace('_', ' ')}{f' ({count})' * (count > 1)}" for name, count in history.noted.items())
        yield Text(plain(f"  noted: {', '.join(noted)}"))
    for pair in history.pairs:
        sides = (
            f"{name}: {_place(pair[f'{name}_place'])}{pair[f'{name}_model'] or '?'} ({_number(pair[f'score_{name}'])})"
            for name in ("chosen", "rejected")
        )
        yield Text(plain(f"  {'; '.join(sides)}"))
    if history.rule and not history.pairs:
        yield Text(plain(f"  no pair: {history.cause or 'no cause was recorded for this prompt'}"))


def _place(place: int | None) -> str:
    return "" if place is None else f"answer {place + 1}, "


def _training(history: RowHistory) -> Iterator[Text]:
    for usage in history.training:
        yield Text(plain(f"  {usage['name']} ({usage['stage']} on {usage['data']}): {_trained(usage)}"))


def _trained(usage: TrainingUse) -> str:
    if usage["train"] is None:
        return f"unknown, as it read {usage['read']}, which is not the current data"
    if usage["train"]:
        steps = f", in {usage['steps']} steps" if usage["steps"] else ""
        return f"yes, {usage['train']} of its {usage['training_rows']} training rows{steps}{_dropped(usage['dropped'])}"
    if usage["left_out"]:
        return f"no, left out: {', '.join(dict.fromkeys(usage['left_out']))}"
    return "no, it is in the test split" if usage["test"] else "no, it is not among its rows"


def _dropped(dropped: Mapping[str, int]) -> str:
    causes = ", ".join(f"{rows} x {cause}" for cause, rows in dropped.items())
    return f" (of all rows it dropped {causes})" if causes else ""


def _evaluation(history: RowHistory, most: int | None) -> Iterator[Text]:
    for answer in history.evaluation:
        head = f"{answer['model']}, turn {answer['turn']}, score {_number(answer['score'])} by {answer['judge']}:"
        yield _block(head, answer["answer"], most)


def _settings(settings: Mapping[str, object]) -> str:
    stated = {key: value for key, value in settings.items() if value not in (None, {}, [], "")}
    return ", ".join(f"{key} {_short(value)}" for key, value in stated.items())


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        return f"({_settings(value)})"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def _block(head: str, text: str, most: int | None, indent: str = "  ") -> Text:
    """A heading and a text, which begins on the next line if it needs more than one."""
    shown = plain(_cut(text, most)).strip("\n") or "(empty)"
    if "\n" in shown or len(shown) > 80:
        shown = "\n" + "\n".join(f"{indent}  {line}" for line in shown.split("\n"))
    else:
        shown = f" {shown}"
    return Text.assemble((f"{indent}{plain(head)}", "italic"), shown)


def _cut(text: str, most: int | None) -> str:
    if most is None or len(text) <= most:
        return text
    return f"{text[:most].rstrip()}... ({len(text) - most} more characters)"
