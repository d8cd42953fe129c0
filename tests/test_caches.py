"""Teacher caches: what is read is what the teacher said, of this text and this teacher alone, whole or not there."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn

from kdlab.data import Tokens
from kdlab.language import (
    CacheError,
    CollateColumns,
    OwnText,
    TeacherCache,
    TeacherColumns,
    teacher_columns,
    write_cache,
)
from kdlab.language.caches import KINDS, keep
from kdlab.models import GPT
from kdlab.objectives import CrossEntropy, ForwardKL, SparseForwardKL, soften
from kdlab.training import CheckpointError, Learner, Recipe, Stopped, fit, fit_together

V, CONTEXT = 19, 6
RECIPE = Recipe(epochs=2, batch_size=4, optimizer="adamw", learning_rate=1e-2, schedule="cosine", augment=False)
KD = 0.1 * CrossEntropy() + 0.9 * SparseForwardKL()
every_kind = pytest.mark.parametrize("kind", KINDS)


def gpt(seed=0, width=8):
    torch.manual_seed(seed)
    model = GPT(V, width=width, layers=1, heads=2, context=CONTEXT)
    with torch.no_grad():
        model.embedding.weight.mul_(20)
    return model


def text(blocks=10, seed=0, vocabulary=V):
    g = torch.Generator().manual_seed(seed)
    row = torch.randint(V, (blocks * CONTEXT + 1,), generator=g)
    return Tokens(row.to(torch.int16), CONTEXT, torch.ones(vocabulary, dtype=torch.long))


def distributions(teacher, tokens):
    with torch.no_grad():
        return soften(teacher(next(tokens.batches(len(tokens)))[0]))


def written(path, teacher=None, tokens=None, **how):
    write_cache(path, teacher or gpt(1), tokens or text(), **{"entries": 4, **how})
    return TeacherCache(path, tokens or text(), teacher or gpt(1))


def parameters(model):
    return [p.detach().clone() for p in model.parameters()]


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# What is read


@every_kind
@pytest.mark.parametrize("at_once", [1, 3 * CONTEXT, 1000])
def test_what_is_read_is_what_was_kept(kind, at_once, tmp_path):
    """To half precision; for draws, bit for bit."""
    tokens = text()
    cache = written(tmp_path / "cache", kind=kind, seed=5, tokens_at_once=at_once)
    found = cache(torch.arange(10))
    p, generator = distributions(gpt(1), tokens), torch.Generator().manual_seed(5)
    size = max(at_once // CONTEXT, 1)
    parts = [keep(part, kind, 4, generator) for part in p.split(size)]
    assert torch.equal(found.tokens, torch.cat([part.tokens for part in parts]))
    expected = torch.cat([part.probabilities for part in parts])
    torch.testing.assert_close(found.probabilities, expected, rtol=2**-10, atol=1e-7)
    assert (found.vocabulary, found.rest, found.shape) == (V, kind == "top-k-rest", (10, CONTEXT, V))
    if kind == "sampled":
        assert torch.equal(found.probabilities, expected)
    if kind != "top-k-rest":
        torch.testing.assert_close(found.probabilities.sum(-1), torch.ones(10, CONTEXT))


@every_kind
def test_entries_are_those_that_their_kind_says(kind):
    p = distributions(gpt(1), text())
    kept = keep(p, kind, 4, torch.Generator().manual_seed(0))
    if kind == "sampled":
        assert (kept.probabilities == 0.25).all() and (p.gather(-1, kept.tokens) > 0).all()
        return
    largest, which = p.sort(-1, descending=True)
    assert torch.equal(kept.tokens, which[..., :4])
    scale = largest[..., :4].sum(-1, keepdim=True) if kind == "top-k" else 1
    torch.testing.assert_close(kept.probabilities, largest[..., :4] / scale)


def test_drawn_entries_are_the_teachers_on_average(tmp_path):
    """Over 300 seeds of 4 draws; no entry is further off than five deviations."""
    tokens = text(2)
    teacher, seeds = gpt(1), 300
    p = distributions(teacher, tokens)
    mean = sum(
        written(tmp_path / str(seed), teacher, tokens, seed=seed)(torch.arange(2)).dense() for seed in range(seeds)
    )
    deviation = (p * (1 - p) / (4 * seeds)).sqrt()
    assert ((mean / seeds - p).abs() <= 5 * deviation + 1e-3).all()
    largest = keep(p, "top-k", 4).dense()
    assert not ((largest - p).abs() <= 5 * deviation + 1e-3).all()


class Sure(nn.Module):
    """A large vocabulary, and a token for each that was read."""

    def __init__(self, vocabulary):
        super().__init__()
        self.vocabulary = vocabulary

    def forward(self, tokens):
        return 30.0 * nn.functional.one_hot(self.vocabulary - 1 - tokens, self.vocabulary).float()


@pytest.mark.parametrize(("vocabulary", "size"), [(2**16, 48), (2**16 + 1, 72), (70_000, 72)])
def test_a_token_takes_less_than_a_hundred_bytes(vocabulary, size, tmp_path):
    tokens = text(2, vocabulary=vocabulary)
    cache = written(tmp_path / "cache", Sure(vocabulary), tokens, entries=12, tokens_at_once=CONTEXT)
    assert cache.bytes_per_token == size < 100
    on_disk = sum((tmp_path / "cache" / name).stat().st_size for name in cache.header["files"])
    assert on_disk == size * 2 * CONTEXT
    inputs = next(tokens.batches(2))[0]
    assert torch.equal(cache(torch.arange(2)).tokens, (vocabulary - 1 - inputs)[..., None].expand(-1, -1, 12))


def test_any_blocks_are_read_in_any_order(tmp_path):
    cache = written(tmp_path / "cache")
    everything = cache(torch.arange(10))
    for index in ([3], [9, 0, 4], [2, 2, 7]):
        found = cache(torch.tensor(index))
        assert torch.equal(found.tokens, everything.tokens[index])
        assert torch.equal(found.probabilities, everything.probabilities[index])


def test_chosen_blocks_have_a_cache_of_their_own(tmp_path):
    some, teacher = text()[torch.tensor([7, 2, 5])], gpt(1)
    cache = written(tmp_path / "cache", teacher, some, kind="top-k")
    expected = keep(distributions(teacher, text())[[7, 2, 5]], "top-k", 4)
    assert torch.equal(cache(torch.arange(3)).tokens, expected.tokens)


def test_a_teacher_that_leaves_its_logits_to_the_losses_is_kept_alike(tmp_path):
    fused = gpt(1)
    fused.fused = True
    one, other = (written(tmp_path / n, t) for n, t in (("a", gpt(1)), ("b", fused)))
    assert one.header == other.header
    assert torch.equal(one.identity, other.identity)


def test_the_teacher_is_left_as_it_was(tmp_path):
    teacher = gpt(1).train()
    before, state = parameters(teacher), torch.get_rng_state()
    written(tmp_path / "cache", teacher)
    assert teacher.training and all(map(torch.equal, before, parameters(teacher)))
    assert torch.equal(torch.get_rng_state(), state)


# Whole or not there


class Fails(nn.Module):
    def __init__(self, after):
        super().__init__()
        self.after = after

    def forward(self, tokens):
        self.after -= 1
        if self.after < 0:
            raise RuntimeError("out of memory")
        return torch.zeros(*tokens.shape, V)


def test_what_fails_in_the_middle_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="out of memory"):
        write_cache(tmp_path / "cache", Fails(2), text(), entries=4, tokens_at_once=CONTEXT)
    assert list(tmp_path.iterdir()) == []


def test_progress_is_told(tmp_path):
    told = []
    write_cache(
        tmp_path / "cache",
        gpt(1),
        text(),
        entries=4,
        tokens_at_once=4 * CONTEXT,
        report=lambda *at: told.append(at),
    )
    assert told == [(4, 10), (8, 10), (10, 10)]


def test_what_is_there_already_is_left(tmp_path):
    written(tmp_path / "cache")
    before = contents(tmp_path)
    with pytest.raises(CacheError, match="cache exists already; delete it to make the cache anew"):
        write_cache(tmp_path / "cache", gpt(2), text(), entries=4)
    assert contents(tmp_path) == before


def test_of_two_who_write_one_cache_the_first_is_kept(tmp_path):
    written(tmp_path / "first")
    path = tmp_path / "cache"

    def meanwhile(done, of):
        if done == of:
            shutil.copytree(tmp_path / "first", path)

    write_cache(path, gpt(1), text(), entries=4, report=meanwhile)
    assert {p.name for p in tmp_path.iterdir()} == {"first", "cache"}
    assert TeacherCache(path, text(), gpt(1)).header["entries"] == 4


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"kind": "top-p"}, "the kind of a cache is one of sampled, top-k, top-k-rest, not 'top-p'"),
        ({"entries": 0}, "a cache keeps 1 to 18 entries of 19, not 0"),
        ({"entries": V}, "a cache keeps 1 to 18 entries of 19, not 19"),
    ],
)
def test_what_cannot_be_kept_is_said(how, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        write_cache(tmp_path / "cache", gpt(1), text(), **how)
    assert list(tmp_path.iterdir()) == []


def cut(path):
    path.write_bytes(path.read_bytes()[:-2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def say(**changes):
    def edit(path):
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


@pytest.mark.parametrize(
    ("name", "damage", "sentence"),
    [
        *((name, damage, f"{name} is truncated or was changed; delete .*cache to make it anew")
          for name in ("tokens.bin", "probabilities.bin") for damage in (cut, flip)),
        *(("header.json", damage, "header.json is truncated or was changed")
          for damage in (say(kind="top-k"), say(entries=2), say(blocks=5), say(teacher="0" * 64))),
        ("header.json", cut, "is no teacher cache, or is damaged"),
        ("header.json", lambda path: path.unlink(), "is no teacher cache, or is damaged"),
        ("header.json", lambda path: path.write_text("{}"), "is no teacher cache, or is damaged"),
        ("tokens.bin", lambda path: path.unlink(), "is no teacher cache, or is damaged"),
    ],
)  # fmt: skip
def test_damage_is_refused(name, damage, sentence, tmp_path):
    written(tmp_path / "cache")
    damage(tmp_path / "cache" / name)
    before = contents(tmp_path)
    with pytest.raises(CacheError, match=sentence) as caught:
        TeacherCache(tmp_path / "cache", text(), gpt(1))
    assert "\n" not in str(caught.value) and contents(tmp_path) == before


@pytest.mark.parametrize(
    "other",
    [
        text(seed=1),
        text(11),
        text()[:9],
        text()[torch.arange(10).flip(0)],
        replace(text(), context=CONTEXT - 1, stride=CONTEXT),
        replace(text(), stride=CONTEXT - 1),
        text(vocabulary=V + 1),
    ],
    ids=["other tokens", "more", "fewer", "another order", "shorter", "closer", "another vocabulary"],
)
def test_another_text_is_refused(other, tmp_path):
    written(tmp_path / "cache")
    with pytest.raises(CacheError, match="cache is the cache of another text, or of other blocks of it"):
        TeacherCache(tmp_path / "cache", other)


@pytest.mark.parametrize(
    "other",
    [text()[:4], text()[torch.arange(10).flip(0)], text(seed=1)],
    ids=["fewer", "another order", "another text"],
)
def test_a_student_is_not_taught_from_the_cache_of_another_text(other, tmp_path):
    """A cache answers by the number of a block: of other blocks it would teach, without a word, what belongs to these."""
    cache = written(tmp_path / "cache")
    with pytest.raises(CacheError, match="is the cache of another text, or of other blocks of it"):
        fit(gpt(), KD, teacher=cache, train=other, recipe=RECIPE)
    (entry, *_) = fit(gpt(), KD, teacher=cache, train=text(), recipe=RECIPE)
    assert entry["loss"] > 0


def test_a_teacher_that_was_filled_up_has_a_cache_of_its_own_width(tmp_path):
    """Its vocabulary, and not the tokeniser's, is what its entries are numbered in."""
    torch.manual_seed(0)
    teacher, student = (GPT(70_000, width=8, layers=1, heads=2, context=CONTEXT) for _ in range(2))
    with torch.no_grad():
        teacher.embedding.weight[69_999] = 100 * teacher.embedding.weight[3]
    cache = written(tmp_path / "cache", teacher, kind="top-k", entries=3)
    assert cache.header["vocabulary"] == 70_000 and cache.bytes_per_token == 18
    found = distributions(teacher, text()).topk(3).indices
    assert (found > 2**16).any() and torch.equal(cache(torch.arange(10)).tokens, found)
    assert fit(student, KD, teacher=cache, train=text(), recipe=RECIPE)


def test_a_cache_that_is_not_there_says_who_makes_it(tmp_path):
    with pytest.raises(CacheError, match="there is no teacher cache at .*nowhere: write_cache makes it"):
        TeacherCache(tmp_path / "nowhere")


def test_another_teacher_is_refused(tmp_path):
    written(tmp_path / "cache")
    with pytest.raises(CacheError, match="cache is the cache of another teacher"):
        TeacherCache(tmp_path / "cache", text(), gpt(2))
    moved = gpt(1)
    with torch.no_grad():
        moved.norm.weight[0] += 1e-6
    with pytest.raises(CacheError, match="another teacher"):
        TeacherCache(tmp_path / "cache", text(), moved)


# In a teacher's place


class OnTheFly(nn.Module):
    """Looks up what is kept of the teacher, as the cache does, without a disk."""

    by_index = True

    def __init__(self, kind):
        super().__init__()
        p = distributions(gpt(1), text())
        kept = keep(p, kind, 4, torch.Generator().manual_seed(0))
        rounded = kept.probabilities.half().float()
        rounded = rounded / rounded.sum(-1, keepdim=True)
        rest = p.scatter(-1, kept.tokens, 0.0).sum(-1, keepdim=True) if kept.rest else 0.0
        self.kept = replace(kept, probabilities=rounded * (1 - rest))

    def forward(self, index):
        return self.kept[index]


@every_kind
@pytest.mark.parametrize("fused", [False, True])
def test_a_student_learns_from_the_cache_as_from_what_it_holds(kind, fused, tmp_path):
    found = []
    for teacher in (written(tmp_path / "cache", kind=kind), OnTheFly(kind)):
        student = gpt()
        student.fused = fused
        history = fit(student, KD, train=text(), teacher=teacher, recipe=RECIPE)
        found.append((parameters(student), [entry["loss"] for entry in history]))
    assert found[0][1] == found[1][1] and all(map(torch.equal, found[0][0], found[1][0]))


def test_with_most_entries_the_student_learns_what_it_learns_of_the_teacher(tmp_path):
    """Eighteen of nineteen entries and the rest: all that the teacher says, to half precision."""
    students = gpt(), gpt()
    objective = 0.1 * CrossEntropy() + 0.9 * ForwardKL()
    cache = written(tmp_path / "cache", kind="top-k-rest", entries=V - 1)
    sgd = replace(RECIPE, optimizer="sgd", learning_rate=0.1)
    fit(students[0], KD, train=text(), teacher=cache, recipe=sgd)
    fit(students[1], objective, train=text(), teacher=gpt(1), recipe=sgd)
    torch.testing.assert_close(*map(parameters, students), rtol=1e-3, atol=1e-4)


def test_in_micro_batches_and_beside_others_it_is_the_same(tmp_path):
    cache = written(tmp_path / "cache")
    alone, beside, parted = gpt(), gpt(), gpt()
    fit(alone, KD, train=text(), teacher=cache, recipe=RECIPE)
    learners = [
        Learner(beside, KD, RECIPE),
        Learner(gpt(3), 1.0 * CrossEntropy(), replace(RECIPE, seed=1)),
        Learner(parted, KD.fresh(), replace(RECIPE, micro_batches=2)),
    ]
    fit_together(learners, train=text(), teacher=cache)
    assert all(map(torch.equal, parameters(alone), parameters(beside)))
    torch.testing.assert_close(parameters(alone), parameters(parted), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("step", [1, 3])
def test_stopped_in_the_middle_it_goes_on_bit_for_bit(step, tmp_path):
    cache, whole, asked = written(tmp_path / "cache"), gpt(), []
    fit(whole, KD, train=text(), teacher=cache, recipe=RECIPE)
    how = {"train": text(), "recipe": RECIPE, "checkpoint": tmp_path / "run"}

    def stop():
        asked.append(1)
        return len(asked) > step

    with pytest.raises(Stopped):
        fit(gpt(), KD, teacher=cache, stop=stop, **how)
    resumed = gpt(4)
    fit(resumed, KD, teacher=TeacherCache(tmp_path / "cache", text()), **how)
    assert all(map(torch.equal, parameters(whole), parameters(resumed)))
    with pytest.raises(CheckpointError, match=r"belongs to another run \(other teacher\)"):
        fit(gpt(), KD, teacher=written(tmp_path / "other", seed=1), **how)


def test_what_a_cache_cannot_know_is_refused(tmp_path):
    cache = written(tmp_path / "cache")
    rewriting = Learner(gpt(), KD, RECIPE, rewrite=OwnText(2))
    with pytest.raises(
        ValueError, match="a teacher cache knows the examples as they were: it cannot look at rewritten"
    ):
        fit_together([rewriting], train=text(), teacher=cache)
    with pytest.raises(TypeError, match="ForwardKL needs all of the teacher"):
        fit(gpt(), ForwardKL(), train=text(), teacher=cache, recipe=RECIPE)


@every_kind
def test_columns_say_of_each_row_what_the_cache_does(tmp_path, kind):
    tokens, rest = text(5), kind == "top-k-rest"
    write_cache(tmp_path / "cache", gpt(), tokens, kind=kind, entries=4)
    cached = TeacherCache(tmp_path / "cache", tokens)
    columns = cached.columns(tokens)
    assert {len(column) for column in columns.values()} == {5}
    row = {name: torch.tensor(column[3])[None] for name, column in columns.items()}
    inputs, _, _ = list(tokens.batches(1))[3]
    assert torch.equal(row["input_ids"], inputs) and torch.equal(row["labels"], row["input_ids"])
    read = {name: row[name] for name in ("teacher_tokens", "teacher_probabilities")}
    found, known = TeacherColumns(V, rest=rest)(**read), cached(torch.tensor([3]))
    assert torch.equal(found.dense(), known.dense()) and found.rest == known.rest == rest
    with pytest.raises(CacheError, match="another text"):
        cached.columns(tokens[torch.arange(4)])


@every_kind
def test_columns_of_a_row_of_ones_own(kind):
    teacher, row = gpt(), [3, 1, 4, 1, 5]
    teacher.train()
    found = teacher_columns(teacher, row, kind=kind, entries=4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        known = keep(soften(teacher(torch.tensor([row]))[0]), kind, 4, torch.Generator().manual_seed(0))
    assert found == {"teacher_tokens": known.tokens.tolist(), "teacher_probabilities": known.probabilities.tolist()}
    assert teacher.training
    with pytest.raises(ValueError, match="keeps 1 to 18 entries of 19, not 19"):
        teacher_columns(teacher, row, entries=19)
    with pytest.raises(ValueError, match="not 'topk'"):
        teacher_columns(teacher, row, kind="topk")


@pytest.mark.parametrize("side", ["left", "right"])
def test_columns_are_filled_up_as_the_tokens_are(side):
    def collate(rows):
        longest = max(len(row["input_ids"]) for row in rows)
        before = [longest - len(row["input_ids"]) if side == "left" else 0 for row in rows]
        batch = {name: torch.zeros(len(rows), longest, dtype=torch.long) for name in ("input_ids", "attention_mask")}
        for i, row in enumerate(rows):
            assert row.keys() == {"input_ids"}
            place = slice(before[i], before[i] + len(row["input_ids"]))
            batch["input_ids"][i, place], batch["attention_mask"][i, place] = torch.tensor(row["input_ids"]), 1
        return batch

    rows = [
        {"input_ids": row, **teacher_columns(gpt(), row, kind="top-k", entries=4)} for row in ([3, 1], [4, 1, 5, 9])
    ]
    batch = CollateColumns(collate)(rows)
    assert batch["teacher_tokens"].shape == batch["teacher_probabilities"].shape == (2, 4, 4)
    for name in ("teacher_tokens", "teacher_probabilities"):
        read = batch["attention_mask"].bool()
        assert torch.equal(batch[name][read], torch.cat([torch.tensor(row[name]) for row in rows]))
        assert not batch[name][~read].any()
    assert batch["teacher_tokens"].dtype == torch.long
    TeacherColumns(V)(batch["teacher_tokens"], batch["teacher_probabilities"])


def test_columns_that_leave_a_rest_ask_for_it():
    kept = {
        "teacher_tokens": torch.tensor([[[1, 2], [0, 0]]]),
        "teacher_probabilities": torch.tensor([[[0.5, 0.3], [0.0, 0.0]]]),
    }
    with pytest.raises(ValueError, match="sum to 0.8: .* rest=True"):
        TeacherColumns(V)(**kept)
    assert TeacherColumns(V, rest=True)(**kept).rest
