"""The words of the tiny world, and the facts about them."""

GROUPS = {
    "animals": "cat dog cow horse pig sheep mouse lion bear duck",
    "fruits": "apple pear plum grape lemon peach cherry mango",
    "colours": "red blue green white black brown pink yellow",
    "tools": "hammer saw drill rake spade axe",
    "drinks": "water milk tea juice coffee cocoa",
    "vehicles": "car bus train boat ship truck plane",
    "clothes": "hat coat shirt sock shoe scarf glove",
    "pieces of furniture": "chair table bed desk sofa shelf bench",
    "instruments": "drum flute piano violin harp guitar",
    "metals": "gold iron tin zinc silver copper",
    "trees": "oak elm pine birch maple willow",
}
"""Each group and its members; no word belongs to two groups."""

COUNTABLE_GROUPS = ("animals", "fruits", "tools", "vehicles", "clothes", "pieces of furniture", "instruments")

IRREGULAR_PLURALS = {
    "sheep": "sheep",
    "mouse": "mice",
    "peach": "peaches",
    "cherry": "cherries",
    "bus": "buses",
    "scarf": "scarves",
    "shelf": "shelves",
    "bench": "benches",
}

CAPITALS = {
    "France": "Paris",
    "Japan": "Tokyo",
    "Italy": "Rome",
    "Egypt": "Cairo",
    "Spain": "Madrid",
    "Norway": "Oslo",
    "Cuba": "Havana",
    "Peru": "Lima",
    "Kenya": "Nairobi",
    "Greece": "Athens",
    "Poland": "Warsaw",
    "Chile": "Santiago",
    "Iran": "Tehran",
    "Ghana": "Accra",
    "Nepal": "Kathmandu",
    "Qatar": "Doha",
    "Austria": "Vienna",
    "Hungary": "Budapest",
    "Portugal": "Lisbon",
    "Ireland": "Dublin",
    "Sweden": "Stockholm",
    "Finland": "Helsinki",
    "Canada": "Ottawa",
    "Germany": "Berlin",
    "Denmark": "Copenhagen",
    "Jordan": "Amman",
    "Lebanon": "Beirut",
    "Iraq": "Baghdad",
    "Cyprus": "Nicosia",
    "Fiji": "Suva",
}

OPPOSITES = {
    "hot": "cold",
    "big": "small",
    "up": "down",
    "fast": "slow",
    "happy": "sad",
    "light": "dark",
    "old": "young",
    "early": "late",
    "full": "empty",
    "hard": "soft",
    "high": "low",
    "wet": "dry",
    "rich": "poor",
    "open": "closed",
    "strong": "weak",
    "thick": "thin",
    "wide": "narrow",
    "long": "short",
    "good": "bad",
    "clean": "dirty",
    "sharp": "blunt",
    "loud": "quiet",
    "rough": "smooth",
    "near": "far",
    "true": "false",
    "sweet": "sour",
}

COLOURS = {
    "grass": "green",
    "snow": "white",
    "coal": "black",
    "blood": "red",
    "chocolate": "brown",
    "the sky": "blue",
    "the sun": "yellow",
    "a lemon": "yellow",
    "a cherry": "red",
    "a frog": "green",
    "a raven": "black",
    "a swan": "white",
    "the sea": "blue",
    "a pig": "pink",
    "a leaf": "green",
    "a banana": "yellow",
    "a bear": "brown",
    "salt": "white",
    "ink": "black",
    "a brick": "red",
}

SOUNDS = {
    "cat": "meow",
    "dog": "woof",
    "cow": "moo",
    "horse": "neigh",
    "pig": "oink",
    "sheep": "baa",
    "mouse": "squeak",
    "lion": "roar",
    "bear": "growl",
    "duck": "quack",
    "frog": "ribbit",
    "snake": "hiss",
    "bee": "buzz",
    "crow": "caw",
    "hen": "cluck",
    "wolf": "howl",
    "bird": "tweet",
}

ANIMALS_BY_SIZE = ("bee", "mouse", "duck", "cat", "dog", "sheep", "lion", "horse", "whale")
"""From the smallest to the largest."""

PAST_TENSES = {
    "go": "went",
    "eat": "ate",
    "see": "saw",
    "run": "ran",
    "take": "took",
    "give": "gave",
    "write": "wrote",
    "drink": "drank",
    "sing": "sang",
    "swim": "swam",
    "fly": "flew",
    "grow": "grew",
    "know": "knew",
    "make": "made",
    "buy": "bought",
    "bring": "brought",
    "think": "thought",
    "teach": "taught",
    "sleep": "slept",
    "keep": "kept",
    "find": "found",
    "break": "broke",
    "speak": "spoke",
    "wear": "wore",
    "tell": "told",
    "sell": "sold",
    "sit": "sat",
    "win": "won",
    "walk": "walked",
    "play": "played",
    "jump": "jumped",
    "talk": "talked",
    "help": "helped",
    "look": "looked",
    "work": "worked",
    "wash": "washed",
}

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)

LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")

COUNT_WORDS = {2: "two", 3: "three", 4: "four", 5: "five"}


def members(group: str) -> tuple[str, ...]:
    """The words of one group."""
    return tuple(GROUPS[group].split())


def nouns() -> tuple[str, ...]:
    """Every word of every group."""
    return tuple(word for group in GROUPS for word in members(group))


def plurals() -> dict[str, str]:
    """Each countable noun and its plural."""
    countable = (word for group in COUNTABLE_GROUPS for word in members(group))
    return {word: IRREGULAR_PLURALS.get(word, f"{word}s") for word in countable}


def opposites() -> dict[str, str]:
    """Each adjective and its opposite, read in both directions."""
    return OPPOSITES | {second: first for first, second in OPPOSITES.items()}


def spellable() -> tuple[str, ...]:
    """The lower-case words used for spelling, letters and capital letters."""
    return (*nouns(), *opposites())
