"""Generates tasks with exact answers: arithmetic, units, sorting, reversing, dates."""

import hashlib
from collections.abc import Callable
from random import Random

Task = tuple[str, str]
"""A prompt and its one right answer."""

MONTHS = {
    "January": 31, "February": 28, "March": 31, "April": 30, "May": 31, "June": 30,
    "July": 31, "August": 31, "September": 30, "October": 31, "November": 30, "December": 31,
}  # fmt: skip
WORDS = (
    "apple river stone cloud tiger lemon bread paper light house garden music silver winter forest candle "
    "bridge orange window planet rocket button engine mirror pencil carpet dragon island monkey ladder"
).split()
UNITS = [
    ("kilometers", "meters", "000"), ("meters", "centimeters", "00"), ("centimeters", "millimeters", "0"),
    ("kilograms", "grams", "000"), ("liters", "milliliters", "000"), ("grams", "milligrams", "000"),
    ("seconds", "milliseconds", "000"), ("kilowatts", "watts", "000"),
]  # fmt: skip


def add(rng: Random) -> Task:
    a, b = rng.randint(0, 49), rng.randint(0, 49)
    ask = rng.choice(["What is {a} + {b}?", "Add {a} and {b}.", "{a} + {b} = ?", "Calculate {a} + {b}."])
    return ask.format(a=a, b=b), f"{a} + {b} = {a + b}."


def subtract(rng: Random) -> Task:
    a, b = sorted((rng.randint(0, 49), rng.randint(0, 49)), reverse=True)
    ask = rng.choice(["What is {a} - {b}?", "Subtract {b} from {a}.", "{a} - {b} = ?", "Calculate {a} - {b}."])
    return ask.format(a=a, b=b), f"{a} - {b} = {a - b}."


def double(rng: Random) -> Task:
    a = rng.randint(1, 199)
    return rng.choice(["Double {a}.", "What is twice {a}?"]).format(a=a), f"Twice {a} is {2 * a}."


def convert(rng: Random) -> Task:
    large, small, zeros = rng.choice(UNITS)
    n = rng.randint(2, 999)
    ask = rng.choice(["Convert {n} {large} to {small}.", "How many {small} are {n} {large}?"])
    return ask.format(n=n, large=large, small=small), f"{n} {large} are {n}{zeros} {small}."


def sort_numbers(rng: Random) -> Task:
    numbers = rng.sample(range(100), rng.randint(3, 4))
    ask = rng.choice(["Sort {l}.", "Sort these numbers: {l}", "Put {l} in ascending order."])
    return ask.format(l=_list(numbers)), f"Sorted: {_list(sorted(numbers))}."


def largest(rng: Random) -> Task:
    numbers = rng.sample(range(100), rng.randint(3, 4))
    ask = rng.choice(["Which is the largest of {l}?", "Find the largest number: {l}"])
    return ask.format(l=_list(numbers)), f"The largest is {max(numbers)}."


def reverse_words(rng: Random) -> Task:
    words = rng.sample(WORDS, rng.randint(3, 5))
    ask = rng.choice(["Reverse the order of: {l}", "Say these words backwards: {l}"])
    return ask.format(l=" ".join(words)), " ".join(reversed(words)) + "."


def sort_words(rng: Random) -> Task:
    words = rng.sample(WORDS, rng.randint(3, 4))
    ask = rng.choice(["Sort these words: {l}", "Put in alphabetical order: {l}"])
    return ask.format(l=" ".join(words)), " ".join(sorted(words)) + "."


def day_after(rng: Random) -> Task:
    month, day = _date(rng)
    following = list(MONTHS)[(list(MONTHS).index(month) + 1) % 12]
    answer = f"{day + 1} {month}" if day < MONTHS[month] else f"1 {following}"
    ask = rng.choice(["What date comes after {d} {m}?", "Which day follows {d} {m}?"])
    return ask.format(d=day, m=month), f"The day after {day} {month} is {answer}."


def day_before(rng: Random) -> Task:
    month, day = _date(rng)
    previous = list(MONTHS)[list(MONTHS).index(month) - 1]
    answer = f"{day - 1} {month}" if day > 1 else f"{MONTHS[previous]} {previous}"
    ask = rng.choice(["What date comes before {d} {m}?", "Which day precedes {d} {m}?"])
    return ask.format(d=day, m=month), f"The day before {day} {month} is {answer}."


TASKS: dict[str, Callable[[Random], Task]] = {
    f.__name__: f
    for f in (
        add, subtract, double, convert, sort_numbers, largest, reverse_words, sort_words, day_after, day_before,
    )
}  # fmt: skip


def sample(kind: str, rng: Random, held_out: bool) -> Task:
    """Draws one task of `kind` with training operands, or with those of the held-out tenth."""
    while True:
        prompt, answer = TASKS[kind](rng)
        if is_held_out(answer) == held_out:
            return prompt, answer


def is_held_out(answer: str) -> bool:
    """Whether a task belongs to the held-out tenth. The answer decides, so that no wording of it is trained on."""
    return hashlib.sha256(answer.encode()).digest()[0] < 26


def _date(rng: Random) -> tuple[str, int]:
    month = rng.choice(list(MONTHS))
    return month, rng.randint(1, MONTHS[month])


def _list(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
