"""`zephyrctl data explain`: one row's whole history, for people or as JSON."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table
from rich.text import Text

from zephyrctl.cli.screen import plain
from zephyrctl.cli.session import Session, with_session
from zephyrctl.data import explain as explaining
from zephyrctl.data.explain import RowHistory, RunRecords
from zephyrctl.data.lookup import shortest
from zephyrctl.errors import UsageError, ZephyrError

SHORT = 240
"""Characters of a text that are shown without --full."""
LISTED = 20


@with_session
def explain(
    session: Session,
    id: Annotated[str | None, typer.Argument(metavar="ID", help="Id of a prompt, or its beginning.")] = None,
    text: Annotated[
        str | None,
        typer.Option("--text", help="Words that its user says, in place of the id; several rows are listed."),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Show whole texts; --json always does.")] = False,
) -> None:
    """Tell one row's whole history: where it came from, who answered, the judge's words, the rule that chose."""
    if (id is None) == (text is None):
        raise UsageError("which row?", "give the beginning of its id, or words that its user says: --text 'some words'")
    records = RunRecords.of(session.open(session.load()))
    if text is not None:
        found = explaining.search(records, text)
        if len(found) != 1:
            _list(session, text, found)
            return
        id = next(iter(found))
    history = explaining.explain(records, explaining.find(records, id or ""))
    session.screen.show(asdict(history), *lines(history, None if full else SHORT))


def lines(history: RowHistory, most: int | None) -> Iterator[Text | Table]:
    """The history for people; texts of more than `most` characters are cut."""
    for heading, part in (
        ("Asked", _asked(history, most)),
        ("Where it came from", _origin(history, most)),
        ("Who answered", _answers(history, most)),
        ("What the judge said", _judgments(history, most)),
        ("The rule that chose", _rule(history)),
        ("Who trained on it", _training(history)),
        ("What was answered in eval", _evaluation(history, most)),
        ("To know", (Text(f"  {note}") for note in history.notes)),
    ):
        if shown := list(part):
            yield Text(heading if heading == "Asked" else f"\n{heading}", "bold")
            yield from shown


def _list(session: Session, words: str, found: Mapping[str, str]) -> None:
    """The rows in which the words were said. Raises ZephyrError where there is none."""
    if not found:
        raise ZephyrError(f"no user of this run says {words!r}", "give fewer words; their case does not matter")
    table = Table("id", "its user says", box=SIMPLE_HEAD)
    for id, said in list(zip(shortest(list(found)), found.values(), strict=True))[:LISTED]:
        table.add_row(id, Text(_cut(said.replace("\n", " "), 60)))
    more = [f"and {len(found) - LISTED} more: --json lists all"] if len(found) > LISTED else []
    session.screen.show({"matches": [{"id": id, "text": said} for id, said in found.items()]}, table, *more)


def _asked(history: RowHistory, most: int | None) -> Iterator[Text]:
    yield Text(f"  {history.id} ({history.split or 'unknown'} side)")
    for message in history.messages:
        yield _block(f"{message['role']}:", message["content"], most)


def _origin(history: RowHistory, most: int | None) -> Iterator[Text]:
    if history.source:
        yield Text(f"  source of this run: {_settings(history.source)}")
    for row in history.rows:
        place = f", row {row['row']} of the input" if row["row"] is not None else ""
        one = row["kind"].removesuffix("s")
        yield Text(plain(f"  {one} on the {row['split']} side, from {row['source']} ({row['origin'] or '?'}){place}"))
    for change in history.changes:
        yield Text(f"  turn {change['turn']} of row {change['row']} was changed by the rule {change['rule']}")
        yield _block("before:", change["before"], most)
        yield _block("after:", "(cut off)" if change["after"] is None else change["after"], most)
    for dropped in history.dropped:
        yield Text(plain(f"  row {dropped['row']} was left out by the rule {dropped['rule']}{_why(dropped)}"))
        turns = json.loads(dropped["content"]).get("messages")
        for turn in turns or ({"role": "it said", "content": dropped["content"]},):
            yield _block(f"{turn['role']}:", turn["content"], most, "    ")
    for hit in history.contamination:
        shared = f" by {hit['ngram']!r}" if hit["ngram"] else ""
        yield Text(plain(f"  turn {hit['turn']} holds what {hit['benchmark']} asks ({hit['kind']} match{shared})"))
        yield _block("it says:", hit["text"], most)
        yield _block("the benchmark asks:", hit["benchmark_text"], most)


def _why(dropped: Mapping[str, Any]) -> str:
    if dropped["like"]:
        alike = "" if dropped["similarity"] in (None, 1) else f", {100 * dropped['similarity']:.0f} % alike"
        return f": it repeats {dropped['like']}{alike}"
    return f": {dropped['details']}" if dropped["details"] else ""


def _answers(history: RowHistory, most: int | None) -> Iterator[Text | Table]:
    if history.answers:
        yield _marks(history)
    for answer in history.answers:
        ended = f", cut ({answer['finish_reason']})" if answer["finish_reason"] == "length" else ""
        principle = f", under the principle {answer['principle']}" if answer["principle"] else ""
        yield _block(f"{answer['place'] + 1}. {answer['model']}{principle}{ended}:", answer["text"], most)
        if answer["critique"]:
            yield _block("critique:", answer["critique"], most, "      ")
    for failure in history.failed:
        yield Text(plain(f"  the {failure['what']} failed for good: {failure['cause']} ({failure['problem']})"))


def _marks(history: RowHistory) -> Table:
    """Aspects down, answers across."""
    answers = history.answers
    table = Table(
        "", *(Column(f"answer {answer['place'] + 1}", justify="right") for answer in answers), box=SIMPLE_HEAD
    )
    aspects = dict.fromkeys(rating["aspect"] for answer in answers for rating in answer["ratings"])
    for aspect in aspects:
        table.add_row(Text(plain(aspect)), *(_mark(answer, aspect) for answer in answers))
    table.add_row("mean", *(_number(answer["mean_rating"]) for answer in answers))
    if any(answer["overall"] is not None for answer in answers):
        table.add_row("overall", *(_number(answer["overall"]) for answer in answers))
    if any(answer["score"] is not None for answer in answers):
        table.add_row("score by the rule", *(_number(answer["score"]) for answer in answers))
    if history.pairs:
        table.add_row("", *(_role(answer["place"], history.pairs) for answer in answers))
    return table


def _mark(answer: Mapping[str, Any], aspect: str) -> str:
    rating = next((rating for rating in answer["ratings"] if rating["aspect"] == aspect), None)
    if not rating or rating["value"] is None:
        return "missing"
    spread = f" ± {rating['spread']:.2g}" if rating["spread"] else ""
    return f"{_number(rating['value'])}{spread}"


def _role(place: int, pairs: Sequence[Mapping[str, Any]]) -> str:
    roles = [name for name in ("chosen", "rejected") if any(pair[f"{name}_place"] == place for pair in pairs)]
    return ", ".join(roles)


def _judgments(history: RowHistory, most: int | None) -> Iterator[Text]:
    aspects = [rating["aspect"] for answer in history.answers for rating in answer["ratings"]]
    for aspect in dict.fromkeys([*aspects, *(call["aspect"] for call in history.judgments)]):
        yield Text(plain(f"  {aspect}"))
        for call in history.judgments:
            if call["aspect"] == aspect:
                yield _block(_call(call), call["text"] or "(rules, without words)", most, "    ")
        for answer in history.answers:
            for rating in answer["ratings"]:
                if rating["aspect"] == aspect and rating["rationale"]:
                    said = f"of answer {answer['place'] + 1}, {_mark(answer, aspect)}:"
                    yield _block(said, rating["rationale"], most, "    ")


def _call(call: Mapping[str, Any]) -> str:
    """What a call was shown, and the marks that were read out of it, both in the order of the places."""
    shown = ", ".join(str(place + 1) for place in call["order"])
    repeat = f"repeat {call['repeat'] + 1}, " if call["repeat"] else ""
    again = f"asked again ({call['ask']}), " if call["ask"] else ""
    places = f"answer {shown}" if len(call["order"]) == 1 else f"answers in the order {shown}"
    marks = ", ".join(_number(value) for value in call["values"])
    return f"{repeat}{again}{call['rater'] or '?'} was shown {places}; by place it gave {marks}:"


def _rule(history: RowHistory) -> Iterator[Text]:
    if history.rule:
        yield Text(plain(f"  {_settings(history.rule)}"))
    if history.noted:
        noted = (f"{name.replace('_', ' ')}{f' ({count})' * (count > 1)}" for name, count in history.noted.items())
        yield Text(plain(f"  on the way: {', '.join(noted)}"))
    for pair in history.pairs:
        sides = (
            f"{name}: {_place(pair[f'{name}_place'])}{pair[f'{name}_model'] or '?'} ({_number(pair[f'score_{name}'])})"
            for name in ("chosen", "rejected")
        )
        yield Text(plain(f"  {'; '.join(sides)}"))
    if history.rule and not history.pairs:
        yield Text(plain(f"  no pair: {history.cause or 'no cause is on record for this prompt'}"))


def _place(place: int | None) -> str:
    return "" if place is None else f"answer {place + 1}, "


def _training(history: RowHistory) -> Iterator[Text]:
    for one in history.training:
        yield Text(plain(f"  {one['name']} ({one['stage']} on {one['data']}): {_trained(one)}"))


def _trained(one: Mapping[str, Any]) -> str:
    if one["train"] is None:
        return f"not known, as it read {one['read']}, which is not what lies there now"
    if one["train"]:
        steps = f", in {one['steps']} steps" if one["steps"] else ""
        return f"yes, {one['train']} of its {one['training_rows']} training rows{steps}{_lost(one['dropped'])}"
    if one["left_out"]:
        return f"no, left out: {', '.join(dict.fromkeys(one['left_out']))}"
    return "no, on the test side" if one["test"] else "no, not among its rows"


def _lost(dropped: Mapping[str, int]) -> str:
    lost = ", ".join(f"{rows} x {cause}" for cause, rows in dropped.items())
    return f" (it dropped {lost})" if lost else ""


def _evaluation(history: RowHistory, most: int | None) -> Iterator[Text]:
    for answer in history.evaluation:
        head = f"{answer['model']}, turn {answer['turn']}, score {_number(answer['score'])} by {answer['judge']}:"
        yield _block(head, answer["answer"], most)


def _settings(settings: Mapping[str, Any]) -> str:
    given = {key: value for key, value in settings.items() if value not in (None, {}, [], "")}
    return ", ".join(f"{key} {_short(value)}" for key, value in given.items())


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"({_settings(value)})"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def _block(head: str, text: str, most: int | None, indent: str = "  ") -> Text:
    """A head and what was said, below it where that takes more than a line."""
    said = plain(_cut(text, most)).strip("\n") or "(nothing)"
    inside = f"{indent}  "
    if "\n" in said or len(said) > 80:
        said = "\n" + "\n".join(f"{inside}{line}" for line in said.split("\n"))
    else:
        said = f" {said}"
    return Text.assemble((f"{indent}{plain(head)}", "italic"), said)


def _cut(text: str, most: int | None) -> str:
    if most is None or len(text) <= most:
        return text
    return f"{text[:most].rstrip()}... ({len(text) - most} more characters)"
