import math
import os

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from kdlab.data import Examples
from kdlab.objectives import CRD, ContrastiveMemory, MemoryBank, info_nce
from kdlab.objectives.contrastive import crd_nce
from kdlab.training import Recipe, fit

both_losses = pytest.mark.parametrize("loss", ["nce", "info_nce"])
seeds = st.integers(0, 1000)


def embeddings(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(loss, s, *arguments, **options):
    s = s.detach().clone().requires_grad_()
    return torch.autograd.grad(loss(s, *arguments, **options), s)[0]


# InfoNCE


@given(st.integers(2, 6), st.integers(1, 5), st.floats(0.05, 10), seeds)
def test_it_is_the_cross_entropy_of_similarities(batch, width, temperature, seed):
    student, teacher = embeddings(2, batch, width, seed=seed)
    similarities = F.cosine_similarity(student[:, None], teacher[None], dim=-1)
    expected = F.cross_entropy(similarities / temperature, torch.arange(batch))
    torch.testing.assert_close(info_nce(student, teacher, temperature=temperature), expected)


@given(st.integers(2, 6), st.integers(0, 5), st.floats(0.01, 10), seeds)
def test_the_bound_on_the_information_never_exceeds_its_ceiling(batch, more, temperature, seed):
    student, teacher = embeddings(2, batch, 4, seed=seed)
    memory = embeddings(more, 4, seed=seed + 1)
    loss = info_nce(student, teacher, temperature=temperature, negatives=memory)
    assert 0 <= loss and math.log(batch + more) - loss <= math.log(batch + more)
    spread = info_nce(student, teacher, temperature=1e6, negatives=memory)
    assert spread.item() == pytest.approx(math.log(batch + more), abs=1e-5)


def test_without_the_positive_below_it_is_no_bound():
    views = torch.eye(4)
    scores = views @ views.T / 0.1
    others = scores.masked_fill(torch.eye(4, dtype=torch.bool), -math.inf).logsumexp(1)
    assert (others - scores.diagonal()).mean() < 0 < info_nce(views, views)


@given(seeds, st.integers(1, 5))
def test_negatives_from_a_memory_are_further_candidates(seed, more):
    student, teacher = embeddings(2, 3, 4, seed=seed)
    memory = embeddings(more, 4, seed=seed + 1)
    candidates = torch.cat([teacher, memory])
    similarities = F.cosine_similarity(student[:, None], candidates[None], dim=-1)
    expected = F.cross_entropy(similarities / 0.1, torch.arange(3))
    torch.testing.assert_close(info_nce(student, teacher, negatives=memory), expected)
    one = info_nce(student[:1], teacher[:1], negatives=torch.cat([teacher[1:], memory]))
    torch.testing.assert_close(one, F.cross_entropy(similarities[:1] / 0.1, torch.tensor([0])))


@given(seeds)
def test_others_of_the_same_class_are_no_candidates(seed):
    student, teacher = embeddings(2, 6, 4, seed=seed)
    labels = torch.randint(3, (6,), generator=torch.Generator().manual_seed(seed))
    scores = F.normalize(student) @ F.normalize(teacher).T / 0.1
    losses = []
    for i in range(6):
        candidates = [j for j in range(6) if j == i or labels[j] != labels[i]]
        losses.append(scores[i, candidates].logsumexp(0) - scores[i, i])
    torch.testing.assert_close(info_nce(student, teacher, labels=labels), torch.stack(losses).mean())
    alone = info_nce(student, teacher, labels=torch.zeros(6, dtype=torch.int64))
    assert alone.item() == pytest.approx(0, abs=1e-12)


@given(seeds)
def test_lengths_and_the_order_of_examples_do_not_matter(seed):
    student, teacher = embeddings(2, 5, 4, seed=seed)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    value = info_nce(7 * student[order], teacher[order] / 7)
    torch.testing.assert_close(value, info_nce(student, teacher))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_near_the_float64_oracle(dtype):
    student, teacher = embeddings(2, 16, 32).to(dtype)
    value = info_nce(student, teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), info_nce(student.double(), teacher.double()), rtol=1e-5, atol=0)


def test_zero_embeddings_and_low_temperatures_are_finite():
    student, teacher = embeddings(2, 4, 3)
    for s, t, temperature in (
        (0 * student, teacher, 0.1),
        (student, 0 * teacher, 0.1),
        (student, teacher, 1e-6),
    ):
        assert info_nce(s, t, temperature=temperature).isfinite()
        assert gradient(info_nce, s, t, temperature=temperature).isfinite().all()


def test_gradient_is_that_of_the_value():
    student, teacher, memory = (x.requires_grad_() for x in embeddings(3, 4, 3))
    labels = torch.tensor([0, 1, 1, 2])
    assert torch.autograd.gradcheck(
        lambda s, t, m: info_nce(s, t, negatives=m, labels=labels, temperature=0.5),
        (student, teacher, memory),
    )


def test_compiles_without_a_graph_break():
    student, teacher = embeddings(2, 4, 3)
    labels = torch.tensor([0, 1, 1, 2])
    torch._dynamo.reset()
    compiled = torch.compile(lambda s, t, y: info_nce(s, t, labels=y), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(student, teacher, labels), info_nce(student, teacher, labels=labels))


def test_vmap_and_grad():
    student, teacher = embeddings(2, 3, 4, 5)
    pairs = list(zip(student, teacher, strict=True))
    torch.testing.assert_close(torch.func.vmap(info_nce)(student, teacher), torch.stack([info_nce(*p) for p in pairs]))
    slopes = torch.func.vmap(torch.func.grad(info_nce))(student, teacher)
    torch.testing.assert_close(slopes, torch.stack([gradient(info_nce, *p) for p in pairs]))


def test_what_has_no_negatives_or_does_not_fit_is_refused():
    s = torch.randn(3, 4)
    for sentence, arguments, options in (
        ("a batch of one has no negatives: give some, or larger batches", (s[:1], s[:1]), {}),
        (r"embeddings have shape \(batch, width\), not \(3, 4, 1\)", (s[..., None], s[..., None]), {}),
        ("differ in size: give a projector", (s, s[:, :3]), {}),
        (r"labels of shape \(2,\) do not fit 3 examples", (s, s), {"labels": torch.tensor([0, 1])}),
        (r"negatives of shape \(5, 3\) do not fit embeddings of width 4", (s, s), {"negatives": torch.randn(5, 3)}),
        ("temperature must be a positive, finite number, not 0", (s, s), {"temperature": 0}),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=sentence):
            info_nce(*arguments, **options)


# The memory bank


def test_entries_move_by_momentum_and_keep_length_one():
    bank = MemoryBank(6, 4, momentum=0.75).double()
    before, new = bank.entries.clone(), embeddings(2, 4)
    index, labels = torch.tensor([4, 1]), torch.tensor([7, 8])
    bank.update(index, new, labels)
    expected = before.clone()
    expected[index] = F.normalize(0.75 * before[index] + 0.25 * F.normalize(new))
    torch.testing.assert_close(bank.entries, expected)
    assert bank.labels.tolist() == [-1, 8, -1, -1, 7, -1]
    torch.testing.assert_close(bank.entries.norm(dim=1), torch.ones(6).double(), rtol=1e-6, atol=0)


def test_entries_belong_to_examples_and_not_to_places_in_a_batch():
    views, labels = torch.randn(12, 4), torch.arange(12) % 3

    def after(orders):
        torch.manual_seed(0)
        bank = MemoryBank(12, 4)
        for order in orders:
            for index in order.split(4):
                bank.update(index, views[index], labels[index])
        return bank.state_dict()

    ordered, shuffled = after([torch.arange(12)] * 3), after([torch.randperm(12) for _ in range(3)])
    assert all(torch.equal(ordered[name], shuffled[name]) for name in ordered)


@given(st.integers(2, 12), st.integers(1, 4), st.integers(1, 20), st.integers(1, 6), seeds)
def test_who_is_a_negative_of_whom(examples, classes, number, batch, seed):
    torch.manual_seed(seed)
    bank, truth = MemoryBank(examples, 2), torch.randint(classes, (examples,))
    seen = torch.rand(examples) < 0.7
    bank.update(seen.nonzero().squeeze(1), torch.randn(int(seen.sum()), 2), truth[seen])
    index = torch.randint(examples, (batch,))
    drawn, mask, count = bank.negatives(index, truth[index], number)
    assert len(drawn.unique()) == len(drawn) == min(number, examples)
    for i, row, n in zip(index.tolist(), mask, count, strict=True):
        negative = [j != i and not (seen[j] and truth[j] == truth[i]) for j in drawn.tolist()]
        assert torch.equal(row, torch.tensor(negative).float().log()) and n == sum(negative)


def test_negatives_are_drawn_uniformly_from_the_other_classes():
    bank, labels = MemoryBank(12, 2), torch.arange(12) % 3
    bank.update(torch.arange(12), torch.randn(12, 2), labels)
    drawn_how_often, draws = torch.zeros(2, 12), 3000
    for _ in range(draws):
        drawn, mask, _ = bank.negatives(torch.tensor([0, 4]), labels[[0, 4]], 5)
        for counts, row in zip(drawn_how_often, mask, strict=True):
            counts[drawn[row == 0]] += 1
    for i, counts in zip((0, 4), drawn_how_often, strict=True):
        others = labels != labels[i]
        assert not counts[~others].any()
        expected = draws * 5 / 12
        chi_squared = ((counts[others] - expected) ** 2 / expected).sum().item()
        assert chi_squared < 26.1 * 7 / 11  # 0.999 quantile of eight; five of twelve without replacement vary less


def test_a_bank_comes_back_from_its_state_and_learns_nothing():
    bank, again = MemoryBank(6, 4), MemoryBank(6, 4)
    bank.update(torch.tensor([2]), torch.randn(1, 4, requires_grad=True), torch.tensor([1]))
    assert not list(bank.parameters()) and not bank.entries.requires_grad
    again.load_state_dict(bank.state_dict())
    assert torch.equal(again.entries, bank.entries) and torch.equal(again.labels, bank.labels)
    bank.reset_parameters()
    assert (bank.labels == -1).all() and not torch.equal(again.entries, bank.entries)


@pytest.mark.parametrize("options", [{"examples": 1}, {"width": 0}, {"momentum": 1.0}, {"momentum": -0.1}])
def test_banks_that_cannot_be_are_refused(options):
    with pytest.raises(ValueError, match="cannot be: it takes at least two examples, a positive width and a momentum"):
        MemoryBank(**{"examples": 5, "width": 4, **options})


# CRD


@given(st.integers(1, 4), st.integers(1, 6), seeds)
def test_noise_contrast_is_the_published_formula(batch, number, seed):
    scores, examples = 3 * embeddings(batch, 1 + number, seed=seed), 50
    negative = torch.rand(batch, number, generator=torch.Generator().manual_seed(seed)) < 0.7
    negative[:, 0] = True
    Z = torch.tensor(40.0).double()
    expected = 0.0
    for row, counted in zip(scores, negative, strict=True):
        noise = counted.sum() / examples
        u = row.exp() / Z
        expected -= (u[0] / (u[0] + noise)).log() + (noise / (u[1:][counted] + noise)).log().sum()
    candidates = scores[:, 1:].masked_fill(~negative, -math.inf)
    value = crd_nce(scores[:, 0], candidates, negative.sum(1), Z, examples)
    torch.testing.assert_close(value, expected / batch)


def test_without_any_negative_there_is_nothing_to_tell_apart():
    positive, negatives = torch.randn(2, requires_grad=True), torch.full((2, 3), -math.inf).requires_grad_()
    value = crd_nce(positive, negatives, torch.tensor([0, 0]), torch.tensor(5.0), 10)
    assert value.item() == pytest.approx(0, abs=1e-20)
    for slope in torch.autograd.grad(value, (positive, negatives)):
        torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-20)


class Published:
    """One direction of CRD as Tian et al. released it, for draws of all other examples."""

    def __init__(self, entries, temperature, momentum):
        self.entries, self.temperature, self.momentum, self.Z = entries.clone(), temperature, momentum, None

    def loss(self, anchor, index):
        n, m = len(self.entries), len(self.entries) - 1
        others = torch.stack([torch.tensor([j for j in range(n) if j != i]) for i in index.tolist()])
        candidates = self.entries[torch.cat([index[:, None], others], 1)]
        out = torch.exp(torch.bmm(candidates, anchor[:, :, None]).squeeze(2) / self.temperature)
        if self.Z is None:
            self.Z = out.mean().detach() * n
        out = out / self.Z
        d_pos = out[:, 0] / (out[:, 0] + m / n)
        d_neg = (m / n) / (out[:, 1:] + m / n)
        return -(d_pos.log().sum() + d_neg.log().sum()) / len(anchor)

    def update(self, views, index):
        self.entries[index] = F.normalize(self.momentum * self.entries[index] + (1 - self.momentum) * views.detach())


def test_contrast_with_the_whole_memory_is_the_released_code():
    n = 10
    memory = ContrastiveMemory(3, 5, n, width=4, negatives=n, temperature=0.2, momentum=0.6).double()
    of_student = Published(memory.student_bank.entries, 0.2, 0.6)
    of_teacher = Published(memory.teacher_bank.entries, 0.2, 0.6)
    for step in range(4):
        s, t = embeddings(6, 3, seed=step), embeddings(6, 5, seed=100 + step)
        index = torch.randperm(n)[:6]
        views = [F.normalize(part.map(x)) for part, x in ((memory.student_map, s), (memory.teacher_map, t))]
        expected = of_teacher.loss(views[0], index) + of_student.loss(views[1], index)
        value = memory(s, t, index, index)  # every example a class of its own
        torch.testing.assert_close(value, expected)
        slopes = torch.autograd.grad(value, list(memory.parameters()), retain_graph=True)
        expected_slopes = torch.autograd.grad(expected, list(memory.parameters()))
        torch.testing.assert_close(slopes, expected_slopes)
        of_student.update(views[0], index)
        of_teacher.update(views[1], index)
        torch.testing.assert_close(memory.student_bank.entries, of_student.entries)
        torch.testing.assert_close(memory.teacher_bank.entries, of_teacher.entries)
        torch.testing.assert_close(memory.normalisers, torch.stack([of_teacher.Z, of_student.Z]))


def test_contrast_by_softmax_is_info_nce_over_the_memory():
    n, labels = 8, torch.arange(8) % 2
    memory = ContrastiveMemory(3, 5, n, width=4, negatives=n, temperature=0.2, loss="info_nce").double()
    index = torch.arange(4)
    memory(embeddings(8, 3), embeddings(8, 5), labels, torch.arange(n))
    s, t = embeddings(4, 3, seed=1), embeddings(4, 5, seed=2)
    one, other = F.normalize(memory.student_map(s)), F.normalize(memory.teacher_map(t))
    expected = 0.0
    for anchor, bank in ((one, memory.teacher_bank), (other, memory.student_bank)):
        positive = bank.entries[index].clone()  # not the embedding of this moment, which no negative is as young as
        for i in range(4):
            negatives = bank.entries[labels != labels[i]].clone()
            expected = expected + info_nce(anchor[[i]], positive[[i]], negatives=negatives, temperature=0.2) / 4
    torch.testing.assert_close(memory(s, t, labels[index], index), expected)


def memory_of(loss="nce", seed=0):
    torch.manual_seed(seed)
    return ContrastiveMemory(3, 5, 10, width=4, negatives=6, loss=loss)


BATCH = (torch.randn(4, 3), torch.randn(4, 5), torch.tensor([0, 1, 2, 1]), torch.tensor([8, 2, 5, 0]))


@both_losses
def test_the_memory_changes_in_training_mode_alone(loss):
    memory = memory_of(loss)
    memory(*BATCH)
    before = {name: value.clone() for name, value in memory.state_dict().items()}
    memory.eval()(*BATCH)
    assert all(torch.equal(before[name], value) for name, value in memory.state_dict().items())
    memory.train()(*BATCH)
    changed = {name for name, value in memory.state_dict().items() if not torch.equal(before[name], value)}
    assert changed == {"student_bank.entries", "teacher_bank.entries"}


@both_losses
def test_no_gradient_passes_through_the_memory(loss):
    memory, (s, t, labels, index) = memory_of(loss), BATCH
    s, t = s.clone().requires_grad_(), t.clone().requires_grad_()
    memory(s, t, labels, index)
    assert not any(buffer.requires_grad for buffer in memory.buffers())
    torch.manual_seed(1)
    memory(*BATCH).backward()  # the first batch's graph is not asked for
    assert s.grad is None and t.grad is None
    assert all(p.grad.isfinite().all() and p.grad.any() for p in memory.parameters())


@both_losses
@pytest.mark.parametrize("used", [True, False])
def test_a_memory_comes_back_from_its_state(loss, used):
    memory, again = memory_of(loss), memory_of(loss, seed=1)
    if used:
        memory(*BATCH)
    again(*BATCH)  # whatever it had learned, and its normaliser, is written over
    again.load_state_dict(memory.state_dict())
    values = []
    for one in (memory, again):
        torch.manual_seed(5)
        values.append((one(*BATCH), one(*BATCH)))
    assert values[0] == values[1]
    assert all(torch.equal(a, b) for a, b in zip(memory.buffers(), again.buffers(), strict=True))


def test_a_memory_drawn_anew_is_as_if_just_made():
    memory = memory_of(seed=1)
    memory(*BATCH)
    torch.manual_seed(0)
    memory.reset_parameters()
    fresh = memory_of(seed=0)
    assert all(
        torch.equal(a, b) for a, b in zip(memory.state_dict().values(), fresh.state_dict().values(), strict=True)
    )
    torch.manual_seed(3)
    value = memory(*BATCH)
    torch.manual_seed(3)
    assert fresh(*BATCH) == value


@both_losses
def test_a_class_alone_has_no_negatives_and_no_gradient(loss):
    memory = ContrastiveMemory(3, 5, 4, width=4, negatives=4, loss=loss)
    s, t, labels, index = (
        torch.randn(4, 3),
        torch.randn(4, 5),
        torch.zeros(4, dtype=torch.int64),
        torch.arange(4),
    )
    memory(s, t, labels, index)
    value = memory(s, t, labels, index)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    for p in memory.parameters():
        torch.testing.assert_close(p.grad, torch.zeros_like(p.grad), rtol=0, atol=1e-6)


@both_losses
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_labels_and_indices_of_any_integer_type(loss, dtype):
    s, t, labels, index = BATCH
    values = []
    for kind in (torch.int64, dtype):
        memory = memory_of(loss)
        memory(s, t, labels.to(kind), index.to(kind))
        values.append(memory(s, t, labels.to(kind), index.to(kind)))
    assert values[0] == values[1]


@both_losses
def test_maps_in_half_precision_are_flattened(loss):
    _, _, labels, index = BATCH
    memory = ContrastiveMemory(12, 20, 10, width=4, loss=loss)
    value = memory(torch.randn(4, 3, 2, 2).half(), torch.randn(4, 5, 4).bfloat16(), labels, index)
    assert value.isfinite() and value.dtype == torch.float32


def test_a_memory_says_what_it_takes():
    s, t, labels, index = BATCH
    for sentence, arguments in (
        ("index must lie in 0 … 9, but reach from 0 to 10", (s, t, labels, torch.tensor([0, 1, 2, 10]))),
        ("4 examples have 3 indices and 4 labels", (s, t, labels, index[:3])),
        ("2 examples have 4 indices and 4 labels", (s[:2], t[:2], labels, index)),
        (r"Projector\('linear', 3, 4\) takes features of width 3, but these have shape \(4, 6\)", (torch.randn(4, 3, 2), t, labels, index)),
        ("do not belong to the same examples", (s, t[:3], labels, index)),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=sentence):
            memory_of()(*arguments)
    for sentence, options in (
        ('loss must be "nce" or "info_nce", not \'crd\'', {"loss": "crd"}),
        ("negatives must be a positive number of examples, not 0", {"negatives": 0}),
        (r"negatives must be a positive number of examples, not 2\.5", {"negatives": 2.5}),
        ("temperature must be a positive, finite number, not -1", {"temperature": -1}),
    ):
        with pytest.raises(ValueError, match=sentence):
            ContrastiveMemory(3, 5, 10, **options)


# In training


class Killed(Exception):
    pass


@both_losses
def test_an_interrupted_run_with_a_memory_goes_on_bit_for_bit(loss, tmp_path):
    train = Examples(torch.randn(48, 6), torch.randint(4, (48,)))
    recipe = Recipe(epochs=4, batch_size=16, learning_rate=0.05)

    def once(seed, start, **options):
        torch.manual_seed(seed)
        teacher = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4))
        torch.manual_seed(start)
        student = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 4))
        objective = 1.0 * CRD("1", student_width=5, teacher_width=8, examples=48, width=4, negatives=20, loss=loss)
        history = fit(student, objective, train=train, recipe=recipe, teacher=teacher, **options)
        return [entry["loss"] for entry in history], [
            *student.state_dict().values(),
            *objective.state_dict().values(),
        ]

    def kill(entry):
        if entry["epoch"] == 2:
            raise Killed

    losses, everything = once(0, 1)
    assert losses[-1] != losses[0]
    with pytest.raises(Killed):
        once(0, 1, checkpoint=tmp_path / "run", report=kill)
    resumed, again = once(0, 77, checkpoint=tmp_path / "run")
    assert resumed == losses
    assert all(torch.equal(a, b) for a, b in zip(again, everything, strict=True))


# On several ranks


def three_steps(rows):
    """A memory after three batches, and their losses, of which it sees the given rows."""
    memory, losses = memory_of(), []
    for step in range(3):
        s, t = embeddings(8, 3, seed=step).float(), embeddings(8, 5, seed=10 + step).float()
        index = torch.randperm(10, generator=torch.Generator().manual_seed(step))[:8]
        torch.manual_seed(step)  # one draw for all
        losses.append(memory(s[rows], t[rows], index[rows] % 3, index[rows]).detach())
    return memory.state_dict(), torch.stack(losses)


def one_rank(rank, folder):
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(three_steps(slice(4 * rank, 4 * rank + 4)), f"{folder}/{rank}")
    torch.distributed.destroy_process_group()


def test_two_ranks_keep_the_memory_of_one(tmp_path):
    torch.multiprocessing.spawn(one_rank, (str(tmp_path),), nprocs=2)
    (first, losses), (second, other_losses) = (torch.load(tmp_path / str(rank)) for rank in range(2))
    alone, whole = three_steps(slice(0, 8))
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value)
    torch.testing.assert_close((losses + other_losses) / 2, whole)


def test_one_rank_is_like_none(tmp_path, monkeypatch):
    alone = three_steps(slice(0, 8))
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        torch.testing.assert_close(three_steps(slice(0, 8)), alone, rtol=0, atol=0)
    finally:
        torch.distributed.destroy_process_group()
