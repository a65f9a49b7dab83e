"""Generates the sample corpus: English and German sentences from a small grammar.

    python -m polyhead.data.grammar data/samples/translation

A translator must learn: genders and cases of articles, adjectives and nouns; the position of the
verb, second after an adverb, and last after a modal verb, in the perfect tense and in subordinate
clauses; and which verbs and prepositions take the dative. No sentence is in two splits.
"""

import random
import sys
from pathlib import Path

# English, German in the nominative, its gender, and its form in other cases where that differs.
PEOPLE = """man Mann m|woman Frau f|child Kind n|boy Junge m Jungen|girl Mädchen n
teacher Lehrerin f|farmer Bauer m Bauern|doctor Arzt m|friend Freundin f
neighbour Nachbar m Nachbarn|dog Hund m|cat Katze f|horse Pferd n|bird Vogel m|mouse Maus f
bear Bär m Bären|cow Kuh f|sheep Schaf n"""
THINGS = """book Buch n|letter Brief m|apple Apfel m|flower Blume f|picture Bild n|ball Ball m
lamp Lampe f|key Schlüssel m|bag Tasche f|bread Brot n|hat Hut m|cup Tasse f"""
PLACES = """table Tisch m|door Tür f|house Haus n|tree Baum m|bridge Brücke f|window Fenster n
car Auto n|wall Mauer f|garden Garten m|school Schule f"""
ADJECTIVES = """old alt|young jung|small klein|big groß|red rot|black schwarz|white weiß
beautiful schön|tired müd|happy glücklich|new neu|quiet still"""
# English base, third person, participle; German third person, participle, infinitive.
ON_BEINGS = """see sees seen sieht gesehen sehen|love loves loved liebt geliebt lieben
seek seeks sought sucht gesucht suchen|find finds found findet gefunden finden
know knows known kennt gekannt kennen|hear hears heard hört gehört hören"""
ON_THINGS = """buy buys bought kauft gekauft kaufen|find finds found findet gefunden finden
carry carries carried trägt getragen tragen|paint paints painted malt gemalt malen
sell sells sold verkauft verkauft verkaufen|need needs needed braucht gebraucht brauchen"""
WITH_DATIVE = """help helps helped hilft geholfen helfen|thank thanks thanked dankt gedankt danken
answer answers answered antwortet geantwortet antworten
trust trusts trusted vertraut vertraut vertrauen"""
ALONE = """sleep sleeps slept schläft geschlafen schlafen|wait waits waited wartet gewartet warten
sing sings sung singt gesungen singen|play plays played spielt gespielt spielen
work works worked arbeitet gearbeitet arbeiten|dance dances danced tanzt getanzt tanzen"""
GIVING = """give gives given gibt gegeben geben|show shows shown zeigt gezeigt zeigen
bring brings brought bringt gebracht bringen"""
MODALS = "can kann|must muss|wants·to will|may darf"
WHERE = "behind hinter|under unter|beside neben|in·front·of vor"
WHEN = "today heute|now jetzt|often oft|in·the·morning morgens|here hier|sometimes manchmal"
SAYING = "knows weiß|believes glaubt|says sagt|hopes hofft"

DEFINITE = {"nom": dict(m="der", f="die", n="das"), "acc": dict(m="den", f="die", n="das"),
            "dat": dict(m="dem", f="der", n="dem")}  # fmt: skip
ENDINGS = {  # of adjectives, after a definite and an indefinite article
    "the": {"nom": dict(m="e", f="e", n="e"), "acc": dict(m="en", f="e", n="e"),
            "dat": dict(m="en", f="en", n="en")},
    "a": {"nom": dict(m="er", f="e", n="es"), "acc": dict(m="en", f="e", n="es"),
          "dat": dict(m="en", f="en", n="en")},
}  # fmt: skip
INDEFINITE = {"nom": dict(m="ein", f="eine", n="ein"), "acc": dict(m="einen", f="eine", n="ein"),
              "dat": dict(m="einem", f="einer", n="einem")}  # fmt: skip


def rows(table):
    """The rows of a table above; a dot between words means a space."""
    entries = [row for line in table.splitlines() for row in line.split("|")]
    return [[word.replace("·", " ") for word in entry.split()] for entry in entries]


class Grammar:
    """Samples pairs of an English sentence and its German translation."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def pick(self, table):
        return self.random.choice(rows(table))

    def noun(self, table, case):
        """A noun phrase: ("the old dog", "den alten Hund")."""
        english, german, gender, *oblique = self.pick(table)
        article = self.random.choice(["the", "the", "a"])
        forms = DEFINITE if article == "the" else INDEFINITE
        words, worte = [article], [forms[case][gender]]
        if self.random.random() < 0.4:
            adjective, adjektiv = self.pick(ADJECTIVES)
            words.append(adjective)
            worte.append(adjektiv + ENDINGS[article][case][gender])
        words.append(english)
        worte.append(oblique[0] if oblique and case != "nom" else german)
        if words[0] == "a" and words[1][0] in "aeiou":
            words[0] = "an"
        return " ".join(words), " ".join(worte)

    def predicate(self):
        """A verb with its English and German objects."""
        kind = self.random.randrange(5)
        if kind == 0:
            return self.pick(ON_BEINGS), *self.noun(PEOPLE, "acc")
        if kind == 1:
            return self.pick(ON_THINGS), *self.noun(THINGS, "acc")
        if kind == 2:
            return self.pick(WITH_DATIVE), *self.noun(PEOPLE, "dat")
        if kind == 3:
            verb = self.pick(GIVING)
            receiver, empfänger = self.noun(PEOPLE, "dat")
            gift, gabe = self.noun(THINGS, "acc")
            return verb, f"{receiver} {gift}", f"{empfänger} {gabe}"
        verb, (where, wo) = self.pick(ALONE), self.pick(WHERE)
        place, ort = self.noun(PLACES, "dat")
        return verb, f"{where} {place}", f"{wo} {ort}"

    def clause(self):
        """Subject, tense and predicate as (English, German main, inverted and final forms)."""
        who, wer = self.noun(PEOPLE, "nom")
        (base, third, participle, er, partizip, infinitiv), what, was = self.predicate()
        tense = self.random.randrange(3)
        if tense == 0:
            finite, rest, verb = er, was, third
        elif tense == 1:
            finite, rest, verb = "hat", f"{was} {partizip}", f"has {participle}"
        else:
            modal, modus = self.pick(MODALS)
            finite, rest, verb = modus, f"{was} {infinitiv}", f"{modal} {base}"
        english = f"{who} {verb} {what}"
        return english, f"{wer} {finite} {rest}", f"{finite} {wer} {rest}", f"{wer} {rest} {finite}"

    def sentence(self):
        """(English, German)."""
        english, main, inverted, final = self.clause()
        kind = self.random.randrange(4)
        if kind == 0:
            pair = english, main
        elif kind == 1:
            when, wann = self.pick(WHEN)
            pair = f"{when} {english}", f"{wann} {inverted}"
        elif kind == 2:
            (says, sagt), (who, wer) = self.pick(SAYING), self.noun(PEOPLE, "nom")
            pair = f"{who} {says} that {english}", f"{wer} {sagt}, dass {final}"
        else:
            other, andere, *_ = self.clause()
            pair = f"{other} because {english}", f"{andere}, weil {final}"
        return tuple(text[0].upper() + text[1:] + "." for text in pair)


def corpus(seed=2017, **sizes):
    """Samples ``{split: [(English, German), ...]}`` without duplicate sentences."""
    return distinct(Grammar(seed).sentence, sizes)


def distinct(sample, sizes, text=lambda example: example[0]):
    """Samples ``{split: [example, ...]}`` in which no text occurs twice."""
    seen, splits = set(), {}
    for split, size in sizes.items():
        splits[split] = []
        while len(splits[split]) < size:
            example = sample()
            if text(example) not in seen:
                seen.add(text(example))
                splits[split].append(example)
    return splits


SIZES = dict(test=200, val=200, train=4000)


def main(folder):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for split, pairs in corpus(**SIZES).items():
        for column, language in enumerate(("en", "de")):
            lines = "".join(pair[column] + "\n" for pair in pairs)
            (folder / f"{split}.{language}").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
