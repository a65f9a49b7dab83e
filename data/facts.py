"""Generates the samples of labelled English text from a small grammar of facts.

    python -m polyhead.data.facts data/samples

A fact is that a person did something with a thing, at a place, on a day. The folders hold messages
and what they are about (messages), sentences with their names (names), paragraphs with questions,
a third of them without an answer (questions), pairs of sentences with the number of things that
they agree on (pairs), and a shop's reports with their summaries (reports). No text is in two
splits, and of reports, nobody has the same matter with the same thing in two splits.
"""

import json
import random
import sys
from pathlib import Path
from typing import NamedTuple

from .grammar import distinct

FIRST_NAMES = "Ada Boris Chen Dana Emil Farah Greta Hugo Ines Jonas Kira Liam Mina Noor Omar Petra"
LAST_NAMES = "Adler Brook Costa Diaz Egger Falk Grau Hill Ito Jensen"
PLACES = "Berlin|Oslo|Lima|New Haven|Cape Clear|Porto|Santa Rosa|Turin|Bergen|Little Marsh"
SHOPS = "Nordlicht Books|Ito and Sons|Blue Door|Marsh Market|Hill Brothers|Green Lamp"
COLORS = "red blue green black white yellow grey brown"
THINGS = "lamp bag chair book hat clock cup coat phone bike ring table"
VERBS = "bought sold found lost repaired painted"
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
OPENINGS = "|||Hello, |Excuse me, |Good morning, |Please help: |Hi there, "
MESSAGES = {
    "delivery": "where is my {thing}?|when will the {thing} arrive?|I still wait for the {thing}."
    "|did you send the {thing} to {place}?|the {thing} should have been here on {day}.",
    "return": "how can I send the {thing} back?|I want to return the {thing}."
    "|please take the {thing} back.|I ordered a {thing}, but I do not need it."
    "|can I bring the {thing} to your shop in {place}?",
    "fault": "the {thing} does not work.|my {thing} is broken since {day}."
    "|the {thing} fell apart in {place}.|there is a hole in the {thing}."
    "|I cannot use the {thing} any more.",
    "thanks": "thank you for the {thing}!|I love my new {thing}.|the {thing} is just perfect."
    "|everyone in {place} admires my {thing}.|the {thing} came on {day}, well done!",
}
# What happened in a shop, and the summary: {a} is a customer, {b} works there.
MATTERS = {
    "repaired": (
        "{a} brought back a {thing}, because it was broken.|{b} looked at it for a while."
        "|In the end {b} repaired it for {price} euros.",
        "{b} repaired the {thing} of {a} for {price} euros",
    ),
    "replaced": (
        "{a} came with a {thing} and said that it had a hole.|Nobody could repair it."
        "|So {a} took a new one, which {b} had found in the cellar.",
        "{b} replaced the {thing} of {a}",
    ),
    "refunded": (
        "{a} did not like the {thing} any more.|It had cost {price} euros."
        "|{b} took it back and returned the money.",
        "{a} returned the {thing} and got {price} euros back",
    ),
    "sold": (
        "{a} looked at a {thing} for an hour.|{b} showed two others, which were too small."
        "|After that {a} bought it for {price} euros.",
        "{b} sold the {thing} to {a} for {price} euros",
    ),
    "found": (
        "At noon a {thing} was missing.|It belonged to {a}, who had ordered it."
        "|{b} found it under a table in the evening.",
        "{b} found the lost {thing} of {a}",
    ),
}
ASIDES = (
    "The morning was quiet.|It rained until noon.|{number} visitors came.|The door was painted."
    "|{other} was ill and stayed at home.|A letter came from {place}.|We cleaned all windows."
    "|{other} asked for a {thing}, but there was none.|The new {thing} is still in its box."
    "|{number} letters were written.|Nobody ordered a {thing}.|{other} will come on {day}."
)


class Fact(NamedTuple):
    person: str
    verb: str
    thing: str
    place: str
    day: str


class World:
    """Samples facts, and what is said about them."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def pick(self, words):
        return self.random.choice(words.split("|") if "|" in words else words.split())

    def person(self):
        last = f" {self.pick(LAST_NAMES)}" if self.random.random() < 0.4 else ""
        return self.pick(FIRST_NAMES) + last

    def thing(self):
        return f"{self.pick(COLORS)} {self.pick(THINGS)}"

    def fact(self):
        place, day = self.pick(PLACES), self.pick(DAYS)
        return Fact(self.person(), self.pick(VERBS), self.thing(), place, day)

    def message(self):
        """A message and what it is about."""
        label = self.random.choice(sorted(MESSAGES))
        text = self.pick(MESSAGES[label])
        text = text.format(thing=self.thing(), place=self.pick(PLACES), day=self.pick(DAYS))
        opening = self.pick(OPENINGS)
        return (opening + text if opening else text[0].upper() + text[1:]), label

    def names(self):
        """A sentence as (word, tag) pairs."""
        f, other = self.fact(), self.person()
        place, shop = (f.place, "place"), (self.pick(SHOPS), "shop")
        person, other = (f.person, "person"), (other, "person")
        parts = self.random.choice(
            [
                [person, f"{f.verb} a {f.thing} in", place, "."],
                [f"On {f.day}", person, f"{f.verb} the {f.thing} at", shop, "."],
                [person, "and", other, "work for", shop, "in", place, "."],
                [shop, f"sends a {f.thing} to", person, ",", place, "."],
                [f"The {f.thing} is not from", shop, ", says", person, "."],
                ["It rains in", place, f"on {f.day} ."],
            ]
        )
        words = []
        for part in parts:
            text, kind = part if isinstance(part, tuple) else (part, None)
            for i, word in enumerate(text.split()):
                words.append((word, f"{'I' if i else 'B'}-{kind}" if kind else "O"))
        return words

    def paragraph(self):
        """A paragraph of SQuAD's format."""
        facts = {}
        while len(facts) < 4:  # no two of them about one person or thing
            f = self.fact()
            if not any({f.person, f.thing, f.place} & {g.person, g.thing, g.place} for g in facts):
                facts[f] = f"On {f.day} {f.person} {f.verb} a {f.thing} in {f.place}."
        context, questions = " ".join(facts.values()), []
        for f in self.random.sample(sorted(facts), 3):
            kind = self.random.randrange(3)
            known = self.random.random() < 2 / 3
            g = f
            while not known and any({g.person, g.thing} & {h.person, h.thing} for h in facts):
                g = f._replace(person=self.person(), thing=self.thing())
            question, answer = (
                (f"Who {f.verb} the {g.thing}?", f.person),
                (f"Where was {g.person} on {f.day}?", f.place),
                (f"What has {g.person} {f.verb}?", f.thing),
            )[kind]
            start = context.index(facts[f]) + facts[f].rindex(answer)
            answers = [{"text": answer, "answer_start": start}] if known else []
            questions.append((question, answers))
        return context, questions

    def pair(self):
        """Two sentences, and how many of five things they agree on."""
        f = self.fact()
        g = Fact(*(self.random.choice(two) for two in zip(f, self.fact(), strict=True)))
        if self.random.random() < 0.3:
            g = f
        first = f"{f.person} {f.verb} the {f.thing} in {f.place} on {f.day}."
        second = self.random.choice(
            [
                f"On {g.day} {g.person} {g.verb} the {g.thing} in {g.place}.",
                f"In {g.place} the {g.thing} was {g.verb} by {g.person} on {g.day}.",
            ]
        )
        return first, second, sum(a == b for a, b in zip(f, g, strict=True))

    def report(self):
        """What it is about, a shop's report and its summary."""
        f, kind, people = self.fact(), self.random.choice(sorted(MATTERS)), {}
        while len(people) < 3:  # of different first names
            person = self.person()
            people.setdefault(person.split()[0], person)
        a, b, other = people.values()
        takings, change = self.random.randrange(200, 400, 10), self.random.randrange(10, 90, 10)
        more = self.random.random() < 0.5
        given = dict(a=a, b=b, thing=f.thing, price=self.random.randrange(10, 100, 5))
        steps, summary = (text.format(**given) for text in MATTERS[kind])
        lines = steps.split("|")
        for aside in self.random.sample(ASIDES.split("|"), self.random.randrange(2, 5)):
            number, place, day = self.random.randrange(2, 30), self.pick(PLACES), self.pick(DAYS)
            while (thing := self.thing()) == f.thing:
                pass
            aside = aside.format(other=other, thing=thing, place=place, day=day, number=number)
            lines.insert(self.random.randrange(len(lines) + 1), aside)
        compared = f"{change} {'more' if more else 'less'} than the day before"
        lines = [f"Report from {f.place}, {f.day}.", *lines]
        lines.append(f"The shop took {takings} euros, {compared}.")
        summary = f"In {f.place}, {summary}. Takings {'rose' if more else 'fell'} to {takings}."
        return (a, f.thing, kind), " ".join(lines), summary


SIZES = dict(test=40, val=40, train=400)


def files(seed=1960, **sizes):
    """The contents of the sample's files, ``{name: text}``."""
    world, found = World(seed), {}
    for split, rows in distinct(world.message, sizes).items():
        lines = ["text\tlabel", *("\t".join(row) for row in rows)]
        found[f"messages/{split}.tsv"] = "\n".join(lines) + "\n"
    for split, rows in distinct(world.names, sizes, tuple).items():
        sentences = ("".join(f"{word}\t{tag}\n" for word, tag in row) for row in rows)
        found[f"names/{split}.conll"] = "\n".join(sentences)
    fewer = {split: size // 4 for split, size in sizes.items()}  # each has three questions
    for split, rows in distinct(world.paragraph, fewer).items():
        paragraphs = [
            {
                "context": context,
                "qas": [
                    {
                        "id": f"{split}-{i}-{j}",
                        "question": question,
                        "answers": answers,
                        "is_impossible": not answers,
                    }
                    for j, (question, answers) in enumerate(questions)
                ],
            }
            for i, (context, questions) in enumerate(rows)
        ]
        content = {"version": "v2.0", "data": [{"title": split, "paragraphs": paragraphs}]}
        found[f"questions/{split}.json"] = json.dumps(content, indent=1) + "\n"
    for split, rows in distinct(world.pair, sizes).items():
        lines = ["sentence1\tsentence2\tscore", *("\t".join(map(str, row)) for row in rows)]
        found[f"pairs/{split}.tsv"] = "\n".join(lines) + "\n"
    more = {split: size * 4 for split, size in sizes.items()}
    for split, rows in distinct(world.report, more).items():
        lines = (json.dumps({"text": text, "summary": summary}) for _, text, summary in rows)
        found[f"reports/{split}.jsonl"] = "\n".join(lines) + "\n"
    return found


def main(folder):
    for name, text in files(**SIZES).items():
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
