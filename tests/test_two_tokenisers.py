"""A teacher with a tokeniser of its own: where both have read the same text, and what can be compared there."""

import math
from unicodedata import normalize

import pytest
import torch
from losses import batch

tokenizers = pytest.importorskip("tokenizers")

from kdlab.language import Retokenised, first_bytes, shared_tokens, token_texts, tokenise_documents, train_tokeniser
from kdlab.models import GPT
from kdlab.objectives import (
    AlignedLogits,
    CrossEntropy,
    ForwardKL,
    HeadLogits,
    HiddenMSE,
    MergedSpans,
    MergedVocabulary,
    ReverseKL,
    SharedVocabulary,
    SortedProbabilities,
    forward_kl,
    merge_vocabulary,
)
from kdlab.objectives.aligned import binary_divergence, sorted_distance, span_log_probabilities
from kdlab.training import Recipe, fit

TEXT = "To be, or not to be: that is the question. Whether 'tis nobler – naïve? – in the mind to suffer, 12 times.\n\n"


class Bigram(torch.nn.Module):
    """Logits of a token by itself."""

    def __init__(self, vocabulary, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.nn.Parameter(2 * torch.randn(vocabulary, vocabulary, generator=generator))

    def forward(self, tokens):
        return self.table[tokens]


@pytest.fixture(scope="module")
def two():
    """A student's tokeniser, which cuts finer, and a teacher's."""
    return train_tokeniser([TEXT], 290), train_tokeniser([TEXT * 3 + "mind the question of being noble " * 9], 320)


@pytest.fixture(scope="module")
def aligned(two):
    few, many = two
    tokens = torch.tensor([few.encode(TEXT).ids])
    return tokens, Retokenised(Bigram(320), many, few)(tokens)


# What is merged


def test_the_probability_of_a_group_is_the_sum_of_its_tokens():
    z, t, _ = batch(5, 6)
    groups = torch.tensor([2, 0, 2, 0])  # the last two are padding, and go into the last group
    for logits in (z, t):
        merged = merge_vocabulary(logits, groups, 4).softmax(-1)
        p = logits.softmax(-1)
        expected = torch.stack([p[:, 1] + p[:, 3], 0 * p[:, 0], p[:, 0] + p[:, 2], p[:, 4] + p[:, 5]], -1)
        torch.testing.assert_close(merged, expected)
    merged = [merge_vocabulary(x, groups.clamp(max=1), 2) for x in (z, t)]
    assert 0 <= forward_kl(*merged) < forward_kl(z, t)
    far = torch.tensor([[0.0, -200.0, -201.0]])  # exp(−200) is none in float32
    assert merge_vocabulary(far, torch.tensor([0, 1, 1]), 2)[0, 1].item() == pytest.approx(
        -200 + math.log1p(math.exp(-1))
    )


def test_the_gradient_of_a_group_is_each_tokens_part_of_it():
    z = batch(3, 5)[0].requires_grad_()
    groups = torch.tensor([0, 1, 1, 0, 2])
    (slope,) = torch.autograd.grad(merge_vocabulary(z, groups, 4)[:, 1].sum(), z)
    expected = torch.zeros_like(z)
    expected[:, 1:3] = z[:, 1:3].softmax(-1)
    torch.testing.assert_close(slope, expected.detach())


@pytest.mark.parametrize("groups", [[0, 1, 2, 0], [0, 3, 1], [-1, 0, 1]])
def test_groups_that_do_not_fit(groups):
    with pytest.raises(ValueError, match="do not number 3 logits|are not 3 groups, from 0 to 2"):
        merge_vocabulary(torch.zeros(1, 3), torch.tensor(groups), 3)


def test_a_span_is_the_product_of_its_tokens_and_counts_as_a_whole():
    log_q = torch.tensor([[0.5, 0.25, 0.5, 0.1]]).log()
    lengths = torch.tensor([[1, 2, 0, 1]])
    counts = torch.tensor([[True, True, True, False]])
    spans, whole = span_log_probabilities(log_q, lengths, counts)
    assert whole.tolist() == [[True, True, False, False]]
    torch.testing.assert_close(spans.exp(), torch.tensor([[0.5, 0.125, 1.0, 1.0]]))
    beyond, none = span_log_probabilities(log_q[:, :2], lengths[:, :2], counts[:, :2])  # it was cut off
    assert none.tolist() == [[True, False]] and beyond[0, 1] == 0


def test_the_divergence_of_an_event():
    p, q = torch.tensor([0.3, 1.0, 1e-6]), torch.tensor([0.6, 1.0, 0.5], requires_grad=True)
    found = binary_divergence(p.log(), q.log())
    assert found[0].item() == pytest.approx(0.3 * math.log(0.5) + 0.7 * math.log(0.7 / 0.4))
    assert abs(found[1].item()) < 1e-5 and found[2].item() == pytest.approx(math.log(2), rel=1e-4)
    found.sum().backward()
    assert q.grad.isfinite().all()


def test_sorted_probabilities_are_blind_to_which_token_it_is():
    z, t, _ = batch(3, 5)
    p, q = t.softmax(-1), z.softmax(-1)
    distance = sorted_distance(q, p)
    assert torch.all(distance <= (p - q).abs().sum(-1) + 1e-12)
    assert SortedProbabilities()(student_logits=t.flip(-1), teacher_logits=t).item() == pytest.approx(0, abs=1e-7)
    wider = torch.nn.functional.pad(p, (0, 3))
    torch.testing.assert_close(sorted_distance(q, wider), distance)


# Where both have read the same text


def test_tokens_are_the_bytes_that_they_stand_for(two):
    for tokeniser in two:
        texts = token_texts(tokeniser)
        assert b"".join(texts[i] for i in tokeniser.encode(TEXT).ids) == TEXT.encode()
        assert texts[0] is None and set(filter(lambda x: x and len(x) == 1, texts)) == {bytes([n]) for n in range(256)}


def test_both_have_read_the_same_where_tokens_of_both_end(two, aligned):
    few, many = two
    tokens, found = aligned
    ids, own = tokens[0].tolist(), many.encode(TEXT).ids
    of_few, of_many = token_texts(few), token_texts(many)
    ends, own_ends = (
        [len(b"".join(texts[i] for i in row[: n + 1])) for n in range(len(row))]
        for texts, row in ((of_few, ids), (of_many, own))
    )
    shared = [e for e in ends if e in own_ends][:-1]  # at the end of what was cut off nothing is read
    assert found.read[0].nonzero().flatten().tolist() == [ends.index(e) for e in shared]
    assert 0.3 < len(shared) / len(ids) < 1
    table = Bigram(320).table.detach()
    log_p = table.log_softmax(-1)
    for e, following in zip(shared, [*shared[1:], None], strict=True):
        t, n = ends.index(e), own_ends.index(e)
        assert torch.equal(found.values[0, t], table[own[n]])
        if following is None:
            assert found.lengths[0, t] == 0
            continue
        m = own_ends.index(following)
        chain = torch.stack([log_p[own[k], own[k + 1]] for k in range(n, m)])
        assert found.lengths[0, t] == ends.index(following) - t
        torch.testing.assert_close(found.first[0, t], chain[0])
        torch.testing.assert_close(found.later[0, t], chain[1:].sum(), rtol=1e-4, atol=1e-5)


def test_of_one_text_a_larger_vocabulary_ends_tokens_where_a_smaller_does(two):
    few, many = two[0], train_tokeniser([TEXT], 310)
    ids = many.encode(TEXT).ids
    found = Retokenised(Bigram(290), few, many)(torch.tensor([ids]))
    assert found.read[0, :-1].all() and (found.lengths[0, :-2] == 1).all() and (found.later < -1e-3).any()


def test_which_tokens_are_shared_and_what_they_begin_with(two):
    of_few, of_many = map(token_texts, two)
    tokens, theirs = shared_tokens(*two)
    assert 257 < len(tokens) < 290 and len(set(tokens.tolist())) == len(tokens)
    assert [of_few[i] for i in tokens] == [of_many[i] for i in theirs] and (0, 0) in zip(tokens, theirs, strict=True)
    for groups, texts in zip(first_bytes(*two), (of_few, of_many), strict=True):
        assert groups[0] == 256 and groups.tolist()[1:] == [text[0] for text in texts[1:]]


def test_padding_on_either_side_is_left_out(two, aligned):
    few, many = two
    tokens, whole = aligned
    teacher = Retokenised(Bigram(320), many, few)
    n = tokens.shape[1]
    for left, right in ((3, 0), (0, 3)):
        ids = torch.nn.functional.pad(tokens, (left, right), value=7)
        mask = torch.nn.functional.pad(torch.ones_like(tokens), (left, right))
        shorter, short_mask = ids.clone(), mask.clone()
        short_mask[:, left + 4 : left + n] = 0
        found = teacher(torch.cat([ids, shorter]), torch.cat([mask, short_mask]))[:1, left : left + n]
        for name in ("values", "read", "lengths", "first", "later"):
            torch.testing.assert_close(getattr(found, name), getattr(whole, name))
    nothing = teacher(tokens[:, :3], torch.zeros(1, 3))
    assert not nothing.read.any() and nothing.shape == (1, 3, 320)


def test_bytes_that_are_no_text_are_read_one_by_one(two):
    few, many = two
    single = {text: n for n, text in enumerate(token_texts(few)) if text and len(text) == 1}
    raw = b"to \xff\xfe be\xc3"
    own, places, own_places = Retokenised(Bigram(320), many, few).cut([single[bytes([b])] for b in raw])
    texts = token_texts(many)
    assert b"".join(texts[i] for i in own) == raw
    assert {3, 4} <= set(places.tolist()) and texts[own[own_places[places.tolist().index(3)]]] == b"\xff"


def special(tokeniser, *names):
    copied = tokenizers.Tokenizer.from_str(tokeniser.to_str())
    copied.add_special_tokens([*names])
    return copied


def test_special_tokens_become_those_of_the_same_name(two):
    few, many = two
    few, many = special(few, "<s>", "<turn>"), special(many, "<turn>", "<begin>", "<of>")
    turn, begin = few.token_to_id("<turn>"), few.token_to_id("<s>")
    ids = [begin, *few.encode("to be").ids, turn]
    with pytest.raises(ValueError, match="no special token '<s>', as the student's has"):
        Retokenised(Bigram(330), many, few).cut(ids)
    sentence = rf"^token 999 is none of the student's tokeniser, .*resize_token_embeddings\({few.get_vocab_size()}\)"
    with pytest.raises(ValueError, match=sentence):  # of a vocabulary that was padded
        Retokenised(Bigram(330), many, few).cut([999])
    own, places, own_places = Retokenised(Bigram(330), many, few, special={"<s>": "<begin><of>"}).cut(ids)
    names = [many.id_to_token(i) for i in own]
    assert names[:2] == ["<begin>", "<of>"] and names[-1] == "<turn>"
    # After the whole of what begins; and, since a special token ended it, after the text.
    assert (places[0], own_places[0]) == (0, 1) and places[-1] == len(ids) - 1 and own_places[-1] == len(own) - 1
    assert own == Retokenised(Bigram(330), many, few, others="<begin><of>").cut(ids)[0]
    own, places, own_places = Retokenised(Bigram(330), many, few, special={"<s>": ""}).cut(ids)
    assert "<begin>" not in [many.id_to_token(i) for i in own] and len(places)


def test_what_begins_and_ends_a_text_is_each_models_own(two):
    transformers = pytest.importorskip("transformers")
    few, many = special(two[0], "<s>", "</s>"), special(two[1], "<bos>", "<eos>")
    for tokeniser, name in ((few, "<s>"), (many, "<bos>")):
        tokeniser.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{name} $A", special_tokens=[(name, tokeniser.token_to_id(name))]
        )
    of_student = transformers.PreTrainedTokenizerFast(tokenizer_object=few, bos_token="<s>", eos_token="</s>")
    of_teacher = transformers.PreTrainedTokenizerFast(tokenizer_object=many, bos_token="<bos>", eos_token="<eos>")
    teacher = Retokenised(Bigram(330), of_teacher, of_student)
    own, places, own_places = teacher.cut([*of_student("to be").input_ids, of_student.eos_token_id])
    assert own[0] == of_teacher.bos_token_id and own[-1] == of_teacher.eos_token_id
    assert own[1:-1] == of_teacher("to be", add_special_tokens=False).input_ids
    assert (places[0], own_places[0]) == (0, 0) and own_places[-1] == len(own) - 1
    without, first, _ = teacher.cut(of_student("to be", add_special_tokens=False).input_ids)
    assert without == own[:-1] and 0 not in first[:0]


def test_tokenisers_with_a_mark_for_a_space():
    words = ["▁to", "▁be", "▁", "t", "o", "b", "e", "n", "a", "ï", *(f"<0x{n:02X}>" for n in range(256))]
    vocabulary = {word: n for n, word in enumerate(["<unk>", *words])}
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab=vocabulary | {"to": len(vocabulary), "be": len(vocabulary) + 1},
            merges=[("t", "o"), ("b", "e"), ("▁", "to"), ("▁", "be")], byte_fallback=True,
        )
    )  # fmt: skip
    made.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    made.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    )
    few = train_tokeniser(["to be " * 9], 258)
    ids = few.encode("to be naïve!").ids
    own, places, own_places = Retokenised(Bigram(300), made, few).cut(ids)
    assert [made.id_to_token(i) for i in own[:2]] == ["▁to", "▁be"]
    texts, theirs = token_texts(few), token_texts(made)
    assert b"".join(theirs[i] for i in own) == b" " + "to be naïve!".encode()
    for place, own_place in zip(places, own_places, strict=True):
        read = b"".join(texts[i] for i in ids[: place + 1])
        assert b"".join(theirs[i] for i in own[: own_place + 1]) == b" " + read
    # And a student whose tokeniser puts the space there, which its teacher does not read.
    ids = made.encode("to be").ids
    own, places, _ = Retokenised(Bigram(258), few, made).cut(ids)
    assert b"".join(texts[i] for i in own) == b"to be" and places.tolist() == [0]


@pytest.mark.parametrize(
    "accented", ["cafe\u0301", "\u1112\u1161\u11ab", "a\u0316\u0301\u0301", "\u09c7\u09be", "\u0958"]
)
def test_what_a_teachers_tokeniser_composes_is_read_as_a_whole(two, accented):
    """Behind a letter that its accent follows, it has not read what the student has."""
    few, many, accented = *two, f"{accented} to be, or not"
    composing = tokenizers.Tokenizer.from_str(many.to_str())
    composing.normalizer = tokenizers.normalizers.NFC()
    ids, texts, theirs = few.encode(accented).ids, token_texts(few), token_texts(many)
    own, places, own_places = Retokenised(Bigram(320), composing, few).cut(ids)
    assert own == composing.encode(accented).ids and len(places) > 1
    for place, own_place in zip(places, own_places, strict=True):
        read, rest = (b"".join(texts[i] for i in part).decode() for part in (ids[: place + 1], ids[place + 1 :]))
        assert b"".join(theirs[i] for i in own[: own_place + 1]).decode() == normalize("NFC", read)
        assert normalize("NFC", read) + normalize("NFC", rest) == normalize("NFC", accented)
    assert any(b" " in b"".join(texts[i] for i in ids[: place + 1]) for place in places)  # and again behind the word


def test_a_text_that_a_tokeniser_changes_is_refused(two):
    few, many = two
    lower = tokenizers.Tokenizer.from_str(many.to_str())
    lower.normalizer = tokenizers.normalizers.Lowercase()
    with pytest.raises(ValueError, match=r"changes the text: of b'To be' its tokens make b'to be'"):
        Retokenised(Bigram(320), lower, few).cut(few.encode("To be").ids)
    words = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0, "to": 1}, unk_token="[UNK]"))
    with pytest.raises(ValueError, match="neither byte-level nor"):
        token_texts(words)
    none = tokenizers.Tokenizer(tokenizers.models.BPE({"▁x": 0}, []))
    none.decoder = tokenizers.decoders.Metaspace()
    with pytest.raises(ValueError, match="share no token"):
        shared_tokens(few, none)
    single = {text: n for n, text in enumerate(token_texts(few)) if text and len(text) == 1}
    with pytest.raises(ValueError, match="no tokens for bytes that are no text"):
        Retokenised(Bigram(320), none, few).cut([single[b"\xff"]])


# What is compared there


def test_with_one_tokeniser_it_is_what_it_would_be_without(two):
    few, _ = two
    tokens = torch.tensor([few.encode(TEXT).ids])
    student, teacher = Bigram(290, 1)(tokens), Retokenised(Bigram(290, 2), few, few)(tokens)
    plain, labels = Bigram(290, 2)(tokens).detach(), tokens.roll(-1, 1)
    n = tokens.shape[1]
    assert teacher.read[0].tolist() == [True] * (n - 1) + [False]
    seen = {"student_logits": student, "labels": labels}
    whole = forward_kl(student[:, :-1], plain[:, :-1]) * (n - 1) / n
    shared = SharedVocabulary(ForwardKL(), *shared_tokens(few, few))
    torch.testing.assert_close((1.0 * shared)(**seen, teacher_logits=teacher)[0], whole)
    byte = MergedVocabulary(ForwardKL(), *first_bytes(few, few))
    first, _ = (1.0 * byte)(**seen, teacher_logits=teacher)
    assert 0 < first < whole
    event, _ = (1.0 * MergedSpans())(**seen, teacher_logits=teacher)
    p, q = (x[:, :-2].softmax(-1).gather(-1, labels[:, :-2, None]).squeeze(-1) for x in (plain, student))
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum() / n
    torch.testing.assert_close(event, expected, rtol=1e-4, atol=1e-6)
    assert event < whole
    for merged in (False, True):
        found, _ = (1.0 * SortedProbabilities(merged))(**seen, teacher_logits=teacher)
        last = -2 if merged else -1  # of the last no span is known
        expected = sorted_distance(student[:, :last].softmax(-1), plain[:, :last].softmax(-1)).sum() / n
        torch.testing.assert_close(found, expected)


TERMS = {
    "shared": lambda two: SharedVocabulary(ForwardKL(), *shared_tokens(*two), rest=True),
    "bytes": lambda two: MergedVocabulary(ReverseKL(), *first_bytes(*two)),
    "sorted": lambda two: SortedProbabilities(),
    "merged": lambda two: SortedProbabilities(merged=True),
    "spans": lambda two: MergedSpans(),
}


@pytest.mark.parametrize("name", TERMS)
def test_what_is_not_read_does_not_count_and_micro_batches_add_up(name, two, aligned):
    tokens, teacher = aligned
    term, labels = TERMS[name](two), tokens.roll(-1, 1)
    assert repr(term) == repr(TERMS[name](two))
    labels[:, :6] = -100
    labels[:, -1] = -100
    student = Bigram(290, 1)(tokens).detach().requires_grad_()
    loss, _ = (1.0 * term)(student_logits=student, teacher_logits=teacher, labels=labels)
    (slope,) = torch.autograd.grad(loss, student)
    moved = slope[0].abs().sum(-1) > 0
    counts = labels[0] != -100
    assert loss > 0 and not moved[~counts].any()
    if name in ("shared", "bytes", "sorted"):
        assert not moved[~teacher.read[0]].any() and moved[teacher.read[0] & counts].all()
    else:  # every token of a span
        assert moved[~teacher.read[0]].any()
    spoilt = AlignedLogits(teacher.values.clone(), teacher.read, teacher.lengths, teacher.first, teacher.later)
    spoilt.values[~teacher.read] = torch.nan
    again, _ = (1.0 * term)(student_logits=student, teacher_logits=spoilt, labels=labels)
    torch.testing.assert_close(again, loss)
    both = torch.cat([student, student.flip(1)]), torch.cat([labels, labels])
    pair = {"student_logits": both[0], "teacher_logits": doubled(teacher), "labels": both[1]}
    whole, _ = (1.0 * term)(**pair)
    count = (both[1] != -100).sum()
    parts = [(1.0 * term)(**{k: x[i : i + 1] for k, x in pair.items()}, count=count)[0] for i in range(2)]
    torch.testing.assert_close(sum(parts), whole)
    nothing, _ = (1.0 * term)(**pair | {"labels": torch.full_like(both[1], -100)}, count=count)
    assert nothing == 0


def doubled(teacher):
    return AlignedLogits(
        *(torch.cat([getattr(teacher, n)] * 2) for n in ("values", "read", "lengths", "first", "later"))
    )


def test_a_teacher_all_of_whose_tokens_are_shared_has_no_rest():
    p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.5, 0.25]])
    term = SharedVocabulary(ForwardKL(), torch.tensor([0, 1]), rest=True)
    found, _ = (1.0 * term)(student_logits=q.log(), teacher_logits=p.log())
    assert found.item() == pytest.approx(0.5 * math.log(2))


def test_of_a_student_all_of_whose_tokens_are_shared_no_rest_is_asked():
    """It could give it no probability, and forward KL would be infinite."""
    p, q = torch.tensor([[0.25, 0.25, 0.5]]), torch.tensor([[0.25, 0.75]])
    term = SharedVocabulary(ForwardKL(), torch.tensor([0, 1]), rest=True)
    found, _ = (1.0 * term)(student_logits=q.log(), teacher_logits=p.log())
    assert found.item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))


def test_a_student_that_leaves_its_head_to_the_losses(two, aligned):
    tokens, teacher = aligned
    head = HeadLogits(
        torch.randn(1, tokens.shape[1], 8, generator=torch.Generator().manual_seed(0)), torch.eye(290)[:, :8]
    )
    labels = tokens.roll(-1, 1)
    for name in ("shared", "bytes"):
        objective = CrossEntropy() + TERMS[name](two)
        found, dense = (
            objective(student_logits=x, teacher_logits=teacher, labels=labels)[0] for x in (head, head.dense())
        )
        torch.testing.assert_close(found, dense)
    plain = 1.0 * MergedVocabulary(ForwardKL(), torch.arange(290) % 7)
    found, dense = (
        plain(student_logits=x, teacher_logits=x.detach() if x is head else x)[0] for x in (head, head.dense())
    )
    assert abs(found) < 1e-6 and abs(dense) < 1e-6
    with pytest.raises(TypeError, match="fused = False"):
        (1.0 * MergedSpans())(student_logits=head, teacher_logits=teacher, labels=labels)


def test_what_cannot_be_compared_is_refused(two, aligned):
    tokens, teacher = aligned
    student, labels = Bigram(290, 1)(tokens), tokens.roll(-1, 1)
    with pytest.raises(
        TypeError, match="ForwardKL compares one vocabulary, and the teacher has a tokeniser of its own"
    ):
        (1.0 * ForwardKL())(student_logits=student, teacher_logits=teacher, labels=labels)
    with pytest.raises(TypeError, match="spans of a teacher with a tokeniser of its own"):
        (1.0 * MergedSpans())(student_logits=student, teacher_logits=student, labels=labels)
    with pytest.raises(TypeError, match="merges the spans of a Retokenised teacher"):
        SortedProbabilities(merged=True)(student_logits=student, teacher_logits=student)
    with pytest.raises(TypeError, match="needs labels=…, the tokens that come"):
        SortedProbabilities(merged=True)(student_logits=student, teacher_logits=teacher)
    with pytest.raises(TypeError, match="MergedVocabulary takes a term of logits"):
        MergedVocabulary(HiddenMSE("blocks.0"), torch.arange(3))
    unmasked = SortedProbabilities()(student_logits=student, teacher_logits=teacher)
    torch.testing.assert_close(
        unmasked, (1.0 * SortedProbabilities())(student_logits=student, teacher_logits=teacher)[0]
    )


# In a loop


def test_a_student_learns_from_it_in_fit(two):
    few, many = two
    train = tokenise_documents([TEXT * 3], few, context=24)
    torch.manual_seed(0)
    teacher, student = (GPT(n, width=8, layers=1, heads=1, context=40) for n in (320, 290))
    teacher.fused = True
    objective = CrossEntropy() + MergedVocabulary(ForwardKL(), *first_bytes(few, many)) + 0.5 * MergedSpans()
    recipe = Recipe(batch_size=4, epochs=1, learning_rate=0.01, micro_batches=2)
    before = student.embedding.weight.detach().clone()
    (history,) = fit(student, objective, train=train, teacher=Retokenised(teacher, many, few), recipe=recipe)
    assert 0 < history["MergedVocabulary"] < math.log(290) and history["MergedSpans"] > 0
    assert not torch.equal(student.embedding.weight, before)
