"""The kinds of instruction of the tiny world: how each is asked, the facts, and how an answer is stated."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, permutations

from zephyrctl.tiny import vocabulary

ONE_SLOT_AGAIN = ("What about {0}?", "And {0}?", "And what about {0}?")
TWO_SLOT_AGAIN = ("What about {0} and {1}?", "And {0} and {1}?", "Now do {0} and {1}.")


@dataclass(frozen=True)
class Fact:
    """What an instruction is about (`slots`), and its bare answers.

    Writers use any of `answers`, the first being the usual one; `accepted` are right too, and occur only in
    the plain text that the base model is trained on.
    """

    slots: tuple[str, ...]
    answers: tuple[str, ...]
    accepted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """One kind of instruction.

    `phrasings` ask for a fact, `again` asks for another fact of the same family in a second turn, and
    `statement` is the full sentence, which ends in the answer.
    """

    name: str
    phrasings: tuple[str, ...]
    statement: str
    facts: tuple[Fact, ...]
    again: tuple[str, ...] = ONE_SLOT_AGAIN
    keeps_case: bool = False


def state(family: Family, slots: tuple[str, ...], answer: str) -> str:
    """The full sentence of a family with the given answer, true or not."""
    return family.statement.format(*slots, answer=answer)


def facts_of(table: dict[str, str]) -> tuple[Fact, ...]:
    """One fact for each entry of a table."""
    return tuple(Fact((key,), (value,)) for key, value in table.items())


def capital() -> Family:
    """Countries, asked for their capital."""
    return Family(
        "capital",
        (
            "What is the capital of {0}?",
            "Which city is the capital of {0}?",
            "Tell me the capital of {0}.",
            "Name the capital of {0}.",
            "What is the capital city of {0}?",
            "{0}: what is its capital?",
        ),
        "The capital of {0} is {answer}.",
        facts_of(vocabulary.CAPITALS),
        ("What about {0}?", "And the capital of {0}?", "And for {0}?"),
    )


def country() -> Family:
    """Capitals, asked for their country."""
    return Family(
        "country",
        (
            "Which country has the capital {0}?",
            "{0} is the capital of which country?",
            "Of which country is {0} the capital?",
            "Name the country whose capital is {0}.",
            "Tell me which country has {0} as its capital.",
        ),
        "The country with the capital {0} is {answer}.",
        facts_of({city: land for land, city in vocabulary.CAPITALS.items()}),
    )


def opposite() -> Family:
    """Adjectives, asked for their opposite."""
    return Family(
        "opposite",
        (
            "What is the opposite of {0}?",
            "Give me the opposite of {0}.",
            "Name a word that means the opposite of {0}.",
            "Which word is the opposite of {0}?",
            "Tell me the opposite of {0}.",
            "Find the opposite of {0}.",
        ),
        "The opposite of {0} is {answer}.",
        facts_of(vocabulary.opposites()),
        ("What about {0}?", "And the opposite of {0}?", "And of {0}?"),
    )


def colour() -> Family:
    """Things, asked for their colour."""
    return Family(
        "colour",
        (
            "What colour is {0}?",
            "What is the colour of {0}?",
            "Tell me the colour of {0}.",
            "Which colour does {0} have?",
            "Name the colour of {0}.",
        ),
        "The colour of {0} is {answer}.",
        facts_of(vocabulary.COLOURS),
    )


def sound() -> Family:
    """Animals, asked for their sound."""
    return Family(
        "sound",
        (
            "What sound does a {0} make?",
            "What does a {0} say?",
            "Which sound does a {0} make?",
            "Tell me the sound of a {0}.",
            "Write the sound that a {0} makes.",
        ),
        "The sound of a {0} is {answer}.",
        facts_of(vocabulary.SOUNDS),
        ("What about a {0}?", "And a {0}?", "And the sound of a {0}?"),
    )


def sum_of_two() -> Family:
    """Two small numbers to add."""
    pairs = [(first, second) for first in range(1, 13) for second in range(1, 13)]
    return Family(
        "sum",
        (
            "What is {0} plus {1}?",
            "Add {0} and {1}.",
            "How much is {0} + {1}?",
            "Compute {0} + {1}.",
            "What is the sum of {0} and {1}?",
            "Tell me what {0} plus {1} makes.",
        ),
        "The sum of {0} and {1} is {answer}.",
        tuple(Fact((str(a), str(b)), (str(a + b),)) for a, b in pairs),
        ("What about {0} plus {1}?", "And {0} plus {1}?", "Now add {0} and {1}."),
    )


def difference() -> Family:
    """A number to take from a larger one."""
    pairs = [(first, second) for first in range(2, 16) for second in range(1, first)]
    return Family(
        "difference",
        (
            "What is {0} minus {1}?",
            "Take {1} away from {0}.",
            "Subtract {1} from {0}.",
            "How much is {0} - {1}?",
            "Compute {0} - {1}.",
        ),
        "The difference between {0} and {1} is {answer}.",
        tuple(Fact((str(a), str(b)), (str(a - b),)) for a, b in pairs),
        ("What about {0} minus {1}?", "And {0} minus {1}?", "Now take {1} away from {0}."),
    )


def bigger() -> Family:
    """Two numbers, asked for the bigger one."""
    return Family(
        "bigger",
        (
            "Which is bigger, {0} or {1}?",
            "Which number is bigger, {0} or {1}?",
            "Tell me the bigger number: {0} or {1}.",
            "Name the bigger of {0} and {1}.",
            "Is {0} or {1} the bigger number?",
        ),
        "The bigger of {0} and {1} is {answer}.",
        tuple(Fact((str(a), str(b)), (str(max(a, b)),)) for a, b in permutations(range(1, 21), 2)),
        TWO_SLOT_AGAIN,
    )


def smaller() -> Family:
    """Two numbers, asked for the smaller one."""
    return Family(
        "smaller",
        (
            "Which is smaller, {0} or {1}?",
            "Which number is smaller, {0} or {1}?",
            "Tell me the smaller number: {0} or {1}.",
            "Name the smaller of {0} and {1}.",
            "Is {0} or {1} the smaller number?",
        ),
        "The smaller of {0} and {1} is {answer}.",
        tuple(Fact((str(a), str(b)), (str(min(a, b)),)) for a, b in permutations(range(1, 21), 2)),
        TWO_SLOT_AGAIN,
    )


def larger_animal() -> Family:
    """Two animals, asked for the larger one."""
    order = vocabulary.ANIMALS_BY_SIZE
    pairs = permutations(order, 2)
    return Family(
        "larger_animal",
        (
            "Which animal is larger, a {0} or a {1}?",
            "Who is larger, a {0} or a {1}?",
            "Name the larger animal: a {0} or a {1}.",
            "Which of the two is larger, the {0} or the {1}?",
            "Tell me whether a {0} or a {1} is larger.",
        ),
        "The larger one of the {0} and the {1} is the {answer}.",
        tuple(Fact((a, b), (max(a, b, key=order.index),)) for a, b in pairs),
        ("What about a {0} and a {1}?", "And a {0} and a {1}?", "Now compare a {0} and a {1}."),
    )


def spelling() -> Family:
    """Words to spell."""
    return Family(
        "spelling",
        (
            "Spell {0}.",
            "Spell the word {0}.",
            "How do you spell {0}?",
            "How is the word {0} spelled?",
            "Write {0} letter by letter.",
            "Which letters make the word {0}?",
        ),
        "The word {0} is spelled {answer}.",
        tuple(Fact((word,), (" ".join(word),)) for word in vocabulary.spellable()),
        ("What about {0}?", "And {0}?", "Now spell {0}."),
    )


def backwards() -> Family:
    """Short words to spell from the last letter to the first."""
    short = [word for word in vocabulary.nouns() if len(word) <= 5]
    return Family(
        "backwards",
        (
            "Spell {0} backwards.",
            "Spell the word {0} backwards.",
            "How do you spell {0} backwards?",
            "Write the letters of {0} backwards.",
            "Reverse the letters of {0}.",
        ),
        "The word {0} spelled backwards is {answer}.",
        tuple(Fact((word,), (" ".join(reversed(word)),)) for word in short),
        ("What about {0}?", "And {0}?", "Now do {0}."),
    )


def length() -> Family:
    """Words to count the letters of."""
    return Family(
        "length",
        (
            "How many letters does {0} have?",
            "How many letters are in the word {0}?",
            "Count the letters of {0}.",
            "Count the letters in the word {0}.",
            "How long is the word {0}?",
        ),
        "The number of letters in {0} is {answer}.",
        tuple(Fact((word,), (str(len(word)),)) for word in vocabulary.nouns()),
    )


def first_letter() -> Family:
    """Words, asked for their first letter."""
    return Family(
        "first_letter",
        (
            "What is the first letter of {0}?",
            "Which letter does {0} start with?",
            "Tell me the first letter of {0}.",
            "Give me the first letter of the word {0}.",
            "With which letter does the word {0} begin?",
        ),
        "The first letter of {0} is {answer}.",
        tuple(Fact((word,), (word[0],)) for word in vocabulary.nouns()),
    )


def last_letter() -> Family:
    """Words, asked for their last letter."""
    return Family(
        "last_letter",
        (
            "What is the last letter of {0}?",
            "Which letter does {0} end with?",
            "Tell me the last letter of {0}.",
            "Give me the last letter of the word {0}.",
            "With which letter does the word {0} end?",
        ),
        "The last letter of {0} is {answer}.",
        tuple(Fact((word,), (word[-1],)) for word in vocabulary.nouns()),
    )


def uppercase() -> Family:
    """Words to rewrite in capital letters."""
    return Family(
        "uppercase",
        (
            "Write {0} in capital letters.",
            "Put {0} in capital letters.",
            "Write the word {0} in capitals.",
            "Turn {0} into capital letters.",
            "How does {0} look in capital letters?",
        ),
        "The word {0} in capital letters is {answer}.",
        tuple(Fact((word,), (word.upper(),)) for word in vocabulary.spellable()),
        keeps_case=True,
    )


def plural() -> Family:
    """Nouns to put in the plural."""
    return Family(
        "plural",
        (
            "What is the plural of {0}?",
            "Give me the plural of {0}.",
            "Write the plural of {0}.",
            "Put {0} in the plural.",
            "Tell me the plural of the word {0}.",
            "One {0}, two of what?",
        ),
        "The plural of {0} is {answer}.",
        facts_of(vocabulary.plurals()),
    )


def past_tense() -> Family:
    """Verbs to put in the past tense."""
    return Family(
        "past_tense",
        (
            "What is the past tense of {0}?",
            "Give me the past tense of {0}.",
            "Write the past tense of {0}.",
            "Put {0} in the past tense.",
            "Tell me the past tense of the verb {0}.",
            "Today I {0}. What did I do yesterday?",
        ),
        "The past tense of {0} is {answer}.",
        facts_of(vocabulary.PAST_TENSES),
    )


def repeating() -> Family:
    """Words to write several times."""
    pairs = [(word, count) for word in vocabulary.nouns() for count in vocabulary.COUNT_WORDS]
    return Family(
        "repeating",
        (
            "Write {0} {1} times.",
            "Repeat the word {0} {1} times.",
            "Say {0} {1} times.",
            "Write the word {0} {1} times.",
            "Repeat {0} {1} times, please.",
        ),
        "The word {0} written {1} times is {answer}.",
        tuple(Fact((word, vocabulary.COUNT_WORDS[n]), (" ".join([word] * n),)) for word, n in pairs),
        ("Now {0} {1} times.", "And {0} {1} times?", "What about {0}, {1} times?"),
    )


def sorting() -> Family:
    """Three numbers to sort."""
    return Family(
        "sorting",
        (
            "Sort {0}, {1} and {2}.",
            "Sort these numbers: {0}, {1}, {2}.",
            "Put {0}, {1} and {2} in order.",
            "Put these numbers in order: {0}, {1}, {2}.",
            "Order the numbers {0}, {1} and {2}.",
        ),
        "The numbers {0}, {1} and {2} in order are {answer}.",
        tuple(sorted_fact(numbers) for numbers in permutations(range(1, 11), 3)),
        ("And {0}, {1}, {2}?", "What about {0}, {1} and {2}?", "Now sort {0}, {1}, {2}."),
    )


def sorted_fact(numbers: tuple[int, ...]) -> Fact:
    """Three numbers and their order from the smallest to the largest; 'and' or a comma before the last."""
    low, middle, high = sorted(numbers)
    return Fact(tuple(map(str, numbers)), (f"{low}, {middle}, {high}", f"{low}, {middle} and {high}"))


def examples() -> Family:
    """Groups, asked for some of their members."""
    pairs = [(count, group) for group in vocabulary.GROUPS for count in (2, 3)]
    return Family(
        "examples",
        (
            "Name {0} {1}.",
            "Give me {0} {1}.",
            "List {0} {1}.",
            "Tell me the names of {0} {1}.",
            "Can you name {0} {1}?",
            "I need {0} examples of {1}.",
        ),
        "The names of {0} {1} are {answer}.",
        tuple(examples_fact(count, group) for count, group in pairs),
        ("Now name {0} {1}.", "And {0} {1}?", "What about {0} {1}?"),
    )


def examples_fact(count: int, group: str) -> Fact:
    """Every choice of `count` members of a group, written in the group's order and accepted in any."""
    names = vocabulary.members(group)
    return Fact(
        (vocabulary.COUNT_WORDS[count], group),
        tuple(enumerate_words(chosen) for chosen in combinations(names, count)),
        tuple(enumerate_words(chosen) for chosen in permutations(names, count)),
    )


def enumerate_words(names: Sequence[str]) -> str:
    """Some words as a list: `apple, pear and plum`."""
    return f"{', '.join(names[:-1])} and {names[-1]}"


def category() -> Family:
    """Words, asked for the group they belong to."""
    return Family(
        "category",
        (
            "To which group does {0} belong?",
            "Which group does the word {0} belong to?",
            "Put {0} in a group.",
            "Name the group of {0}.",
            "Tell me the group that {0} belongs to.",
        ),
        "The group of {0} is {answer}.",
        tuple(Fact((word,), (group,)) for group in vocabulary.GROUPS for word in vocabulary.members(group)),
    )


def neighbours() -> Iterator[tuple[str, str, str]]:
    """(kind, item, the item after it) for days, months and letters; days and months wrap around."""
    for kind, cycle in (("day", vocabulary.DAYS), ("month", vocabulary.MONTHS)):
        yield from ((kind, item, cycle[(i + 1) % len(cycle)]) for i, item in enumerate(cycle))
    yield from (
        ("letter", item, after) for item, after in zip(vocabulary.LETTERS, vocabulary.LETTERS[1:], strict=False)
    )


def following() -> Family:
    """Days, months and letters, asked for the next one."""
    return Family(
        "following",
        (
            "Which {0} comes after {1}?",
            "What {0} follows {1}?",
            "Name the {0} after {1}.",
            "Tell me the {0} that comes after {1}.",
            "What is the {0} after {1}?",
        ),
        "The {0} after {1} is {answer}.",
        tuple(Fact((kind, item), (after,)) for kind, item, after in neighbours()),
        ("And after {1}?", "What about the {0} after {1}?", "And the {0} after {1}?"),
    )


def preceding() -> Family:
    """Days, months and letters, asked for the one before."""
    return Family(
        "preceding",
        (
            "Which {0} comes before {1}?",
            "What {0} is right before {1}?",
            "Name the {0} before {1}.",
            "Tell me the {0} that comes before {1}.",
            "What is the {0} before {1}?",
        ),
        "The {0} before {1} is {answer}.",
        tuple(Fact((kind, after), (item,)) for kind, item, after in neighbours()),
        ("And before {1}?", "What about the {0} before {1}?", "And the {0} before {1}?"),
    )


@cache
def families() -> dict[str, Family]:
    """Every family by name, in a fixed order."""
    made = (
        capital(),
        country(),
        opposite(),
        colour(),
        sound(),
        sum_of_two(),
        difference(),
        bigger(),
        smaller(),
        larger_animal(),
        spelling(),
        backwards(),
        length(),
        first_letter(),
        last_letter(),
        uppercase(),
        plural(),
        past_tense(),
        repeating(),
        sorting(),
        examples(),
        category(),
        following(),
        preceding(),
    )
    return {family.name: family for family in made}
