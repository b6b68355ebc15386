"""A grammar of reviews whose meaning depends on the order of their words.

Each review has one meaning, negative (0) or positive (1), which its text determines:

- a clause says its adjective, noun or verb, and negation turns it: "hardly a triumph" is negative;
- "not only dull but clumsy" is no negation;
- of a contrast the main clause counts: "dull, but moving" and "moving, although dull" are positive;
- other people's opinions count as far as the reviewer agrees, expectations not at all;
- of two that only stand side by side, the stronger counts: "slightly dull and deeply moving" is positive.

Sentences without opinion stand around it, some with a "not" or "but" of their own. A bag of words therefore
sees good and bad words together, and cannot tell which of them count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, count
from typing import NamedTuple, TypeVar

import numpy as np

from castiron_recipes.lstm_sentiment import review_words as words

T = TypeVar("T")


class Draws:
    """Random choices made of PCG64's raw output, the same on every machine and under every NumPy version."""

    def __init__(self, seed: int) -> None:
        bits = np.random.PCG64(np.random.SeedSequence(seed))
        blocks = (bits.random_raw(8192).tolist() for _ in count())
        self.raw: Callable[[], int] = chain.from_iterable(blocks).__next__
        """64 random bits."""

    def below(self, count: int) -> int:
        return self.raw() % count

    def chance(self, probability: float) -> bool:
        return self.raw() < probability * 2.0**64

    def pick(self, choices: Sequence[T]) -> T:
        return choices[self.raw() % len(choices)]


class Review(NamedTuple):
    text: str
    meaning: int
    """0 negative, 1 positive: what a reader who knows the grammar understands."""
    strength: int
    """1 to 3: how strongly the clause that counts is put."""


class _Clause(NamedTuple):
    text: str
    strength: int


def review(draws: Draws) -> Review:
    """One review, negative or positive with equal chance."""
    meaning = draws.below(2)
    film = draws.chance(0.5)
    aspects = words.FILM if film else words.PRODUCT
    opinion, strength = draws.pick(_PATTERNS)(draws, meaning, aspects)
    sentences = [_sentence(opinion)]
    if draws.chance(0.6):
        sentences.insert(0, _neutral(draws, film))
    if draws.chance(0.4):
        sentences.append(_neutral(draws, film))
    return Review(" ".join(sentences), meaning, strength)


# --- opinions: from a meaning to the words of it -----------------------------------------------------


def _plain(draws: Draws, meaning: int, aspects: Sequence[str]) -> _Clause:
    return _clause(draws, meaning, aspects)


def _agreeing(draws: Draws, meaning: int, aspects: Sequence[str]) -> _Clause:
    first, second = _clause(draws, meaning, aspects), _clause(draws, meaning, aspects)
    return _Clause(f"{first.text}, and {second.text}", max(first.strength, second.strength))


def _contrast(draws: Draws, meaning: int, aspects: Sequence[str]) -> _Clause:
    aside, main = _clause(draws, 1 - meaning, aspects), _clause(draws, meaning, aspects)
    joined = draws.pick((", but ", ", yet ", ". However, ", "; still, ", ", but in the end "))
    return _Clause(f"{aside.text}{joined}{main.text}", main.strength)


def _concession_first(draws: Draws, meaning: int, aspects: Sequence[str]) -> _Clause:
    aside, main = _clause(draws, 1 - meaning, aspects), _clause(draws, meaning, aspects)
    return _Clause(f"{draws.pick(_CONCESSIONS)} {aside.text}, {main.text}", main.strength)


def _concession_last(draws: Draws, meaning: int, aspects: Sequence[str]) -> _Clause:
    aside, main = _clause(draws, 1 - meaning, aspects), _clause(draws, meaning, aspects)
    return _Clause(f"{main.text}, {draws.pick(_CONCESSIONS)} {aside.text}", main.strength)


def _opinion_of_others(draws: Draws, meaning: int, aspects: Sequence[str]) -> _Clause:
    agrees = draws.chance(0.5)
    said = _clause(draws, meaning if agrees else 1 - meaning, aspects)
    who, verb = draws.pick(words.PEOPLE), draws.pick(("says", "thinks", "wrote", "told us"))
    answer = draws.pick(_AGREEMENT if agrees else _DISAGREEMENT)
    return _Clause(f"{who} {verb} that {said.text}. {answer}", said.strength)


def _expectation(draws: Draws, meaning: int, aspects: Sequence[str]) -> _Clause:
    hoped, got = draws.pick(words.NOUNS[1 - meaning]), draws.pick(words.NOUNS[meaning])
    form = draws.pick(
        (
            "I expected {hoped} and got {got}",
            "it turned out to be {got}, and I had been promised {hoped}",
            "everybody calls it {hoped}, and to me it is {got}",
            "what they sell as {hoped} is really {got}",
            "it is {got} that pretends to be {hoped}",
        )
    )
    return _Clause(form.format(hoped=hoped, got=got), 2)


def _stronger_wins(draws: Draws, meaning: int, aspects: Sequence[str]) -> _Clause:
    weak = f"{draws.pick(words.WEAK)} {draws.pick(words.ADJECTIVES[1 - meaning])}"
    strong = f"{draws.pick(words.STRONG)} {draws.pick(words.ADJECTIVES[meaning])}"
    one, other = (weak, strong) if draws.chance(0.5) else (strong, weak)
    if draws.chance(0.5):
        return _Clause(f"{draws.pick(aspects)} was {one} and {other}", 3)
    return _Clause(f"{draws.pick(aspects)} was {one} and {draws.pick(aspects)} was {other}", 3)


_CONCESSIONS = ("although", "even though", "while", "though")
_AGREEMENT = ("I agree", "I think so too", "that is true", "I could not agree more", "how right that is")
_DISAGREEMENT = (
    "I disagree",
    "I do not think so",
    "that is not true",
    "I could not agree less",
    "how wrong that is",
)

_Pattern = Callable[[Draws, int, Sequence[str]], _Clause]
_PATTERNS: tuple[_Pattern, ...] = (  # of 20: the share of each
    *[_plain] * 6, *[_agreeing] * 3, *[_contrast] * 4, *[_concession_first] * 2, *[_concession_last] * 2,
    _opinion_of_others, _expectation, _stronger_wins,
)  # fmt: skip


# --- clauses -----------------------------------------------------------------------------------------


def _clause(draws: Draws, meaning: int, aspects: Sequence[str]) -> _Clause:
    """A main clause of this meaning, three in four affirmed, one negated."""
    if draws.chance(0.75):
        degree, strength = _degree(draws)
        form = draws.pick(_AFFIRMED)
    else:
        # A negated word is the opposite, however strong the word: "not very dull" is mild praise.
        meaning = 1 - meaning
        degree, strength = draws.pick(("", "", "very ", "really ", "that ")), 1
        form = draws.pick(_NEGATED)
    text = form.format_map(_ClauseWords(draws, meaning, aspects, degree))
    return _Clause(text, strength)


class _ClauseWords(dict[str, str]):
    """Draws the words that a clause's form asks for, when it asks."""

    def __init__(self, draws: Draws, meaning: int, aspects: Sequence[str], degree: str) -> None:
        super().__init__(degree=degree)
        self._draws, self._meaning, self._aspects = draws, meaning, aspects

    def __missing__(self, key: str) -> str:
        return self._draws.pick(self._aspects if key == "aspect" else _CLAUSE_WORDS[key][self._meaning])


_CLAUSE_WORDS = {
    "adjective": words.ADJECTIVES,
    "other": words.ADJECTIVES,
    "noun": words.NOUNS,
    "past": tuple(tuple(past for past, _ in verbs) for verbs in words.VERBS),
    "infinitive": tuple(tuple(infinitive for _, infinitive in verbs) for verbs in words.VERBS),
}

_AFFIRMED = (
    "{aspect} was {degree}{adjective}",
    "{aspect} felt {degree}{adjective}",
    "{aspect} is {degree}{adjective} and {other}",
    "I found {aspect} {degree}{adjective}",
    "I think {aspect} was {degree}{adjective}",
    "I {past} {aspect}",
    "{aspect} was {noun}",
    "for me it was {noun}",
    "{aspect} was not only {adjective} but {other}",
)
_NEGATED = (
    "{aspect} was not {degree}{adjective}",
    "{aspect} wasn't {degree}{adjective} at all",
    "{aspect} was never {degree}{adjective}",
    "{aspect} was hardly {adjective}",
    "{aspect} was far from {adjective}",
    "{aspect} was neither {adjective} nor {other}",
    "I did not find {aspect} {degree}{adjective}",
    "I cannot say that {aspect} was {degree}{adjective}",
    "I don't think that {aspect} was {degree}{adjective}",
    "nobody could call {aspect} {adjective}",
    "I did not {infinitive} {aspect}",
    "{aspect} was by no means {noun}",
    "I would not call it {noun}",
)


def _degree(draws: Draws) -> tuple[str, int]:
    strength = draws.below(4)
    if strength == 0:
        return "", 2
    return (
        f"{draws.pick((words.MEDIUM, words.MEDIUM, words.STRONG)[strength - 1])} ",
        3 if strength == 3 else 2,
    )


# --- sentences ---------------------------------------------------------------------------------------


def _sentence(text: str) -> str:
    return ". ".join(part[0].upper() + part[1:] for part in text.split(". ")) + "."


def _neutral(draws: Draws, film: bool) -> str:
    text = draws.pick(words.FILM_NEUTRAL if film else words.PRODUCT_NEUTRAL).format_map(_Fillers(draws))
    return text[0].upper() + text[1:]


class _Fillers(dict[str, str]):
    """Draws a word for each place that a neutral sentence leaves open, a new one each time."""

    def __init__(self, draws: Draws) -> None:
        super().__init__()
        self._draws = draws

    def __missing__(self, key: str) -> str:
        word = self._draws.pick(_FILLERS[key])
        return f'"{word}"' if key == "title" and self._draws.chance(0.5) else word


_FILLERS = {
    "title": words.TITLES,
    "goods": words.GOODS,
    "person": words.PEOPLE,
    "day": words.DAYS,
    "month": words.MONTHS,
    "city": words.CITIES,
    "number": words.NUMBERS,
}
