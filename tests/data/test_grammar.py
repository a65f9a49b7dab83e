import importlib.resources

from polyhead.data.grammar import Grammar, corpus, main


def test_the_grammar_generates_the_sample_corpus(tmp_path):
    main(tmp_path)
    shipped = importlib.resources.files("polyhead.data") / "samples" / "translation"
    for path in tmp_path.iterdir():
        assert (shipped / path.name).read_text("utf-8") == path.read_text("utf-8"), "make sample"


def test_no_sentence_is_in_two_splits():
    splits = corpus(train=500, val=50, test=50)
    sentences = [english for pairs in splits.values() for english, _ in pairs]
    assert len(set(sentences)) == 600


def test_cases_and_genders_agree():
    grammar = Grammar(0)
    boy, child, woman = (
        dict(grammar.noun(noun, case) for _ in range(400))
        for noun, case in (
            ("boy Junge m Jungen", "acc"),
            ("child Kind n", "nom"),
            ("woman Frau f", "dat"),
        )
    )
    assert boy["the old boy"] == "den alten Jungen" and boy["an old boy"] == "einen alten Jungen"
    assert child["the small child"] == "das kleine Kind" and child["a child"] == "ein Kind"
    assert child["a small child"] == "ein kleines Kind"
    assert woman["the red woman"] == "der roten Frau" and woman["a woman"] == "einer Frau"


def test_the_verb_is_last_in_a_clause_and_second_after_an_adverb():
    english, main, inverted, final = Grammar(3).clause()
    assert sorted(main.split()) == sorted(inverted.split()) == sorted(final.split())
    assert final.split()[-1] == inverted.split()[0]
