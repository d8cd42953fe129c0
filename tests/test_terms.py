"""Terms and their weighted sums."""

import inspect
import math

import pytest
import torch
from losses import DECLARED, TERM_OF, each, refused

from kdlab import objectives
from kdlab.objectives import (
    DIST,
    Constant,
    Cosine,
    CrossEntropy,
    DecoupledKD,
    ForwardKL,
    GeneralisedJSD,
    HardTargets,
    LearnedTemperature,
    Linear,
    LogitMSE,
    NegativeLogAcceptance,
    Objective,
    PermutedSoftTargets,
    ReverseKL,
    SkewedForwardKL,
    SkewedReverseKL,
    SmoothedLabels,
    SoftTargets,
    SparseForwardKL,
    SpreadSoftTargets,
    SquaredError,
    Step,
    Term,
    TotalVariation,
    cross_entropy,
    decoupled_kd,
    dist_loss,
    distillation_loss,
    forward_kl,
    generalised_jsd,
    logit_mse,
    negative_log_acceptance,
    permute_dark_knowledge,
    reverse_kl,
    skewed_forward_kl,
    skewed_reverse_kl,
    smooth_labels,
    soft_targets,
    spread_dark_knowledge,
    standardise,
    total_variation,
)

#: Every response term, with options and without, beside the function that it is.
FUNCTIONS = {
    CrossEntropy: lambda z, t, y, **how: cross_entropy(z, y, **how),
    SmoothedLabels: lambda z, t, y, smoothing=0.1, **how: cross_entropy(
        z, smooth_labels(torch.eye(z.shape[-1], dtype=z.dtype)[y.clamp(min=0)], z.shape[-1], smoothing=smoothing), **how
    ),
    ForwardKL: lambda z, t, y, **how: forward_kl(z, t, **how),
    ReverseKL: lambda z, t, y, **how: reverse_kl(z, t, **how),
    SkewedForwardKL: lambda z, t, y, **how: skewed_forward_kl(z, t, **how),
    SkewedReverseKL: lambda z, t, y, **how: skewed_reverse_kl(z, t, **how),
    GeneralisedJSD: lambda z, t, y, **how: generalised_jsd(z, t, **how),
    TotalVariation: lambda z, t, y, **how: total_variation(z, t, **how),
    NegativeLogAcceptance: lambda z, t, y, **how: negative_log_acceptance(z, t, **how),
    SoftTargets: lambda z, t, y, standardised=False, **how: soft_targets(
        *((standardise(z), standardise(t)) if standardised else (z, t)), **how
    ),
    HardTargets: lambda z, t, y, **how: cross_entropy(z, t.argmax(-1), **how),
    LogitMSE: lambda z, t, y, **how: logit_mse(z, t, **how),
    DecoupledKD: lambda z, t, y, **how: decoupled_kd(z, t, y, **how),
    DIST: lambda z, t, y, count=None, **how: dist_loss(z, t, **how),
    PermutedSoftTargets: lambda z, t, y, **how: soft_targets(z, permute_dark_knowledge(t, y.clamp(min=0)), **how),
    SpreadSoftTargets: lambda z, t, y, temperature=4, **how: soft_targets(
        z,
        spread_dark_knowledge(t, y.clamp(min=0), temperature=temperature),
        temperature=temperature,
        **how,
    ),
}
OPTIONS = {
    SmoothedLabels: [{"smoothing": 0.3}],
    ForwardKL: [{"temperature": 2}],
    ReverseKL: [{"temperature": 3.0}],
    SkewedForwardKL: [{"skew": 0.7, "temperature": 2}, {"skew": 0}],
    SkewedReverseKL: [{"skew": 0.7, "temperature": 2}, {"skew": 1}],
    GeneralisedJSD: [{"beta": 0.1, "scaled": True, "temperature": 2}, {"beta": 1, "scaled": True}],
    TotalVariation: [{"temperature": 2}],
    NegativeLogAcceptance: [{"temperature": 2}],
    SoftTargets: [{"temperature": 2}, {"temperature": 2.5, "standardised": True}],
    LogitMSE: [{"centred": True}],
    DecoupledKD: [{"target_weight": 2, "other_weight": 0.5, "temperature": 3}],
    DIST: [{"inter_weight": 2, "intra_weight": 0.5, "temperature": 3}],
    PermutedSoftTargets: [{"temperature": 2}],
    SpreadSoftTargets: [{"temperature": 2}],
}
for name, term in TERM_OF.items():  # what is new in its file
    if term is not None and term not in FUNCTIONS:
        FUNCTIONS[term] = lambda z, t, y, function=DECLARED[name], **how: function(z, t, **how)
        OPTIONS[term] = [{"temperature": 2}]
every_kind = each({kind.__name__: kind for kind in FUNCTIONS}, "kind")
every_term = pytest.mark.parametrize(
    ("term", "function", "options"),
    [
        pytest.param(kind(**options), function, options, id=repr(kind(**options)))
        for kind, function in FUNCTIONS.items()
        for options in ({}, *OPTIONS.get(kind, ()))
    ],
)


@pytest.fixture
def seen():
    return {
        "student_logits": torch.randn(6, 5, dtype=torch.float64, requires_grad=True),
        "teacher_logits": torch.randn(6, 5, dtype=torch.float64, requires_grad=True),
        "labels": torch.randint(5, (6,)),
    }


class Learned(Term):
    """A term with a parameter and a buffer of its own."""

    extra_repr = "".format
    needs_teacher = False

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(2.0))
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, *, student_logits, **_):
        self.calls += 1
        return self.scale * student_logits.square().mean()

    def reset_parameters(self):
        torch.nn.init.ones_(self.scale)


def test_every_response_term_is_here():
    kinds = {
        kind
        for kind in vars(objectives).values()
        if inspect.isclass(kind) and kind.__module__ == Term.__module__ and issubclass(kind, Term)
    }
    # whose targets are no logits: test_sparse.py; whose labels are numbers: test_own_tasks.py
    others = {SparseForwardKL, SquaredError}
    assert kinds - {Term} - others == set(FUNCTIONS)


@every_term
def test_each_term_is_its_function(term, function, options, seen):
    torch.manual_seed(3)
    found = term(**seen)
    torch.manual_seed(3)
    assert torch.equal(found, function(*seen.values(), **options))


@every_term
def test_mask_and_count_reach_every_term(term, function, options):
    z, t = torch.randn(2, 2, 4, 5, dtype=torch.float64)
    mask = torch.tensor([[True] * 4, [True, False, False, True]])
    y = torch.randint(5, (2, 4)).where(mask, 10**9 if function is not FUNCTIONS[CrossEntropy] else -100)
    seen = {"student_logits": z, "teacher_logits": t, "labels": y, "mask": mask}
    for count in ({}, {"count": 7}):
        torch.manual_seed(3)
        found = term(**seen, **count)
        torch.manual_seed(3)
        assert torch.equal(found, function(z, t, y.where(mask, 0), mask=mask, **count, **options))
    if not isinstance(term, (DIST, PermutedSoftTargets)):
        torch.testing.assert_close(6 / 7 * term(**seen), found)


@every_term
def test_terms_are_shown_as_they_were_made(term, function, options):
    again = eval(repr(term), vars(objectives))
    assert type(again) is type(term) and repr(again) == repr(term)
    assert {k: v for k, v in vars(again).items() if k[0] != "_"} == {k: v for k, v in vars(term).items() if k[0] != "_"}


@every_kind
def test_terms_that_share_a_temperature_follow_its_schedule(kind, seen):
    if kind in (CrossEntropy, SmoothedLabels, HardTargets, LogitMSE):
        refused(kind, TypeError, "temperature", temperature=2)
        return
    term = kind(temperature=Linear(8, 2))
    torch.manual_seed(3)
    found = term(**seen, progress=0.5)
    torch.manual_seed(3)
    assert torch.equal(found, kind(temperature=5.0)(**seen))


def test_a_sum_is_the_distillation_loss(seen):
    total, terms = (0.1 * CrossEntropy() + 0.9 * SoftTargets(temperature=4))(**seen)
    expected = distillation_loss(*seen.values(), temperature=4, hard_weight=0.1)
    torch.testing.assert_close(total, expected, rtol=1e-14, atol=0)
    assert set(terms) == {"CrossEntropy", "SoftTargets"}
    torch.testing.assert_close(0.1 * terms["CrossEntropy"] + 0.9 * terms["SoftTargets"], total)


def test_weights_distribute_over_sums(seen):
    a, b = CrossEntropy(), SoftTargets(temperature=2)
    assert (2 * (0.5 * a + b)).weights == (2 * 0.5 * a + 2 * b).weights == (1.0, 2.0)
    torch.testing.assert_close((2 * (a + b))(**seen)[0], (2 * a + 2 * b)(**seen)[0])
    torch.testing.assert_close((2 * (a + b))(**seen)[0], 2 * (a + b)(**seen)[0])


def test_sums_associate_and_multiply_from_both_sides():
    a, b, c = CrossEntropy(), ForwardKL(), ReverseKL()
    left, right = (a + b) + c, a + (b + c)
    assert left.weights == right.weights and left.names == right.names
    assert (a * 3).weights == (3 * a).weights == (3.0,)
    assert ((a + b) * 3).weights == (3 * (a + b)).weights


def test_composition_leaves_its_parts_alone():
    part = 0.5 * CrossEntropy()
    _ = 4 * (part + SoftTargets())
    assert part.weights == (0.5,) and part.names == ("CrossEntropy",)


def test_a_term_that_appears_twice_has_two_names(seen):
    objective = SoftTargets(temperature=2) + CrossEntropy() + SoftTargets(temperature=8)
    assert objective.names == ("SoftTargets_1", "CrossEntropy", "SoftTargets_2")
    total, terms = objective(**seen)
    torch.testing.assert_close(total, sum(terms.values()))
    z, t, _ = seen.values()
    assert torch.equal(terms["SoftTargets_2"], soft_targets(z, t, temperature=8))


def test_a_term_goes_by_the_name_that_it_is_given():
    objective = 2 * SoftTargets(temperature=2).named("soft") + CrossEntropy()
    more = objective + SoftTargets(temperature=8)
    assert objective.names == ("soft", "CrossEntropy") and more.names == ("soft", "CrossEntropy", "SoftTargets")
    assert more.fresh().names == more.names and eval(repr(more), vars(objectives)).names == more.names
    z, t, y = torch.randn(2, 3), torch.randn(2, 3), torch.tensor([0, 1])
    assert more(student_logits=z, teacher_logits=t, labels=y)[1].keys() == set(more.names)
    for name in ("", "a.b", "loss", 3):
        with pytest.raises(ValueError, match="a name is a text"):
            CrossEntropy().named(name)
    with pytest.raises(ValueError, match="two terms are called 'soft'"):
        objective + CrossEntropy().named("soft")
    with pytest.raises(ValueError, match="two terms are called 'SoftTargets_1'"):
        CrossEntropy().named("SoftTargets_1") + SoftTargets() + SoftTargets()


@pytest.mark.parametrize(
    "objective",
    [
        Linear(1, 0) * CrossEntropy() + 2 * Cosine(0, 1, 0.5) * SoftTargets(temperature=Step(8, {0.5: 4.5})),
        0.5 * DecoupledKD(temperature=0.5 * Constant(4)) + 2 * SoftTargets(LearnedTemperature(1, 9, 1)),
        0.1 * CrossEntropy() + 0.9 * SoftTargets(temperature=4),
        1.0 * CrossEntropy(),
        1 / 3 * ForwardKL(temperature=0.1)
        + -2 * ReverseKL(temperature=2.5)
        + 1e-9 * PermutedSoftTargets(temperature=7),
        SoftTargets(temperature=2) + SoftTargets(temperature=8),
    ],
)
def test_repr_evaluates_to_the_same_objective(objective):
    again = 1.0 * eval(repr(objective), vars(objectives))
    assert repr(again) == repr(objective)
    assert again.names == objective.names
    for one, other in zip(again.weights, objective.weights, strict=True):
        assert one == other or one == pytest.approx(other, rel=1e-11)


def test_needs_teacher_if_any_term_does():
    assert not CrossEntropy().needs_teacher and SoftTargets().needs_teacher
    assert not (1.0 * CrossEntropy()).needs_teacher
    assert (0.1 * CrossEntropy() + 0.9 * ForwardKL()).needs_teacher


@every_kind
def test_terms_give_the_teacher_no_gradient(kind, seen):
    kind()(**seen).backward()
    assert seen["teacher_logits"].grad is None
    assert seen["student_logits"].grad.abs().max() > 0


def test_terms_take_what_they_need_and_leave_the_rest(seen):
    assert torch.equal(CrossEntropy()(**seen, hidden="anything"), CrossEntropy()(**seen))
    with pytest.raises(TypeError, match="labels"):
        CrossEntropy()(student_logits=seen["student_logits"])


def test_what_a_term_learns_is_the_objectives():
    objective = 0.5 * CrossEntropy() + 2 * Learned()
    assert [p.item() for p in objective.parameters()] == [2.0]
    assert set(objective.state_dict()) == {"terms.1.scale", "terms.1.calls"}


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused(weight):
    with pytest.raises(ValueError, match="the weight of a term must be a finite number or a schedule, not"):
        weight * CrossEntropy()


def test_weights_that_are_not_numbers_are_refused():
    with pytest.raises(TypeError):
        "2" * CrossEntropy()
    with pytest.raises(TypeError):
        (CrossEntropy() + SoftTargets()) * [1.0]
    with pytest.raises(TypeError):
        CrossEntropy() + 1.0
    with pytest.raises(ValueError, match="the weight of a term must be a finite number"):
        Objective([("2", CrossEntropy())])


@each({kind.__name__: kind for kind in FUNCTIONS if "temperature" in inspect.signature(kind).parameters}, "kind")
@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf, "4", None])
def test_bad_temperature_is_refused_when_the_term_is_made(kind, bad):
    refused(kind, ValueError, "temperature must be a positive, finite number, not", temperature=bad)


@pytest.mark.parametrize("bad", [math.nan, math.inf, "1", None])
@pytest.mark.parametrize(
    ("kind", "name", "sentence"),
    [
        (SmoothedLabels, "smoothing", "smoothing must be a number from 0 to 1"),
        (SkewedForwardKL, "skew", "skew must be a number from 0 to 1"),
        (SkewedReverseKL, "skew", "skew must be a number from 0 to 1"),
        (GeneralisedJSD, "beta", "beta must be a number from 0 to 1"),
        (DecoupledKD, "target_weight", "target_weight must be a finite number"),
        (DecoupledKD, "other_weight", "other_weight must be a finite number"),
        (DIST, "inter_weight", "inter_weight must be a finite number"),
        (DIST, "intra_weight", "intra_weight must be a finite number"),
    ],
)
def test_bad_options_are_refused_when_the_term_is_made(kind, name, sentence, bad):
    refused(kind, ValueError, f"{sentence}, not {bad!r}", **{name: bad})


def test_permuted_soft_targets_keep_the_true_class_and_draw_anew(seen):
    z, t, y = seen.values()
    first, second = PermutedSoftTargets()(**seen), PermutedSoftTargets()(**seen)
    assert first != second
    torch.manual_seed(3)
    one = PermutedSoftTargets(temperature=4)(**seen)
    torch.manual_seed(3)
    other = soft_targets(z, objectives.permute_dark_knowledge(t, y), temperature=4)
    assert torch.equal(one, other)


def test_a_mask_reaches_every_term():
    z, t = torch.randn(2, 4, 5), torch.randn(2, 4, 5)
    y, mask = torch.randint(5, (2, 4)), torch.tensor([[True] * 4, [True, False, False, False]])
    objective = 0.1 * CrossEntropy() + 0.9 * SoftTargets(temperature=4)
    total, _ = objective(student_logits=z, teacher_logits=t, labels=y, mask=mask)
    assert torch.isclose(total, distillation_loss(z, t, y, soft_weight=0.9, mask=mask))
    assert not torch.isclose(total, distillation_loss(z, t, y, soft_weight=0.9))


def test_an_argument_that_no_term_takes_is_refused():
    with pytest.raises(TypeError, match="no term of .* takes temperature"):
        (1.0 * CrossEntropy())(student_logits=torch.zeros(1, 2), labels=torch.tensor([0]), temperature=2)


def test_a_term_with_parameters_must_show_them():
    with pytest.raises(TypeError, match="must write extra_repr"):

        class Hidden(Term):
            def __init__(self, scale):
                super().__init__()
                self.scale = scale


def test_sum_of_terms():
    assert repr(sum([CrossEntropy(), SoftTargets(4)])) == repr(CrossEntropy() + SoftTargets(4))
    assert repr(sum([2 * CrossEntropy(), SoftTargets(4)])) == repr(2 * CrossEntropy() + SoftTargets(4))
    for part in (CrossEntropy(), 2 * CrossEntropy()):
        with pytest.raises(TypeError):
            1 + part


# What the terms weigh, and what they have learned


def test_weights_follow_their_schedules(seen):
    objective = Linear(1, 0) * CrossEntropy() + 2 * Cosine(0, 1) * SoftTargets(temperature=Linear(8, 4))
    for progress in (0, 0.25, 1):
        total, values = objective(**seen, progress=progress)
        weights = 1 - progress, 2 * Cosine(0, 1)(progress)
        expected = weights[0] * values["CrossEntropy"] + weights[1] * values["SoftTargets"]
        torch.testing.assert_close(total, expected)
        assert values["SoftTargets.temperature"] == 8 - 4 * progress
        assert not values["SoftTargets.temperature"].requires_grad
        assert torch.equal(values["SoftTargets"], SoftTargets(8 - 4 * progress)(**seen))


def test_a_temperature_that_is_a_number_is_not_logged(seen):
    assert set((1.0 * SoftTargets())(**seen)[1]) == {"SoftTargets"}


class WithMemory(Term):
    """A term that keeps what it has seen, and draws at random."""

    extra_repr = "".format

    def __init__(self):
        super().__init__()
        self.bank = torch.nn.Sequential(torch.nn.BatchNorm1d(5, affine=False).double())

    def forward(self, *, student_logits, **_):
        return (self.bank(student_logits) * torch.rand_like(student_logits)).sum()


def test_gradient_norms_are_those_of_each_weighted_term_alone(seen):
    z, t, y = seen.values()
    objective = 0.3 * CrossEntropy() + Linear(0, 2) * SoftTargets(temperature=3) + -1 * Learned()
    _, values = objective(**seen, progress=0.25)
    norms = objective.gradient_norms(values, [z], progress=0.25)
    parts = (0.3 * cross_entropy(z, y), 0.5 * soft_targets(z, t, temperature=3), -2 * z.square().mean())
    for norm, part in zip(norms.values(), parts, strict=True):
        torch.testing.assert_close(norm, torch.autograd.grad(part, z)[0].norm())
    assert tuple(norms) == objective.names


def test_gradient_norms_run_over_all_parameters_together():
    student = torch.nn.Linear(4, 3)
    inputs, y = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    objective = 2.0 * CrossEntropy()
    _, values = objective(student_logits=student(inputs), labels=y)
    norms = objective.gradient_norms(values, [*student.parameters(), torch.zeros(2, requires_grad=True)])
    (2 * cross_entropy(student(inputs), y)).backward()
    expected = torch.cat([p.grad.flatten() for p in student.parameters()]).norm()
    torch.testing.assert_close(norms, {"CrossEntropy": expected})


def test_gradient_norms_of_what_moves_nothing_are_zero(seen):
    class Still(Term):
        needs_teacher = False

        def forward(self, *, labels, **_):
            return labels.double().mean()

    objective = Still() + CrossEntropy()
    _, values = objective(**seen)
    unrelated = torch.zeros(3, requires_grad=True)
    assert objective.gradient_norms(values, [unrelated]) == {"Still": 0, "CrossEntropy": 0}
    assert objective.gradient_norms(values, [seen["student_logits"]])["Still"] == 0


def test_gradient_norms_change_nothing(seen):
    objective = 0.5 * CrossEntropy() + WithMemory() + Learned() + SoftTargets(temperature=LearnedTemperature())
    total, values = objective(**seen, progress=0.5)
    before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    random, total_before = torch.get_rng_state(), total.clone()
    objective.gradient_norms(values, [seen["student_logits"]], progress=0.5)
    assert torch.equal(torch.get_rng_state(), random) and torch.equal(total, total_before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in objective.state_dict().items())
    assert seen["student_logits"].grad is None and all(p.grad is None for p in objective.parameters())
    total.backward()  # the graph is still there
    assert seen["student_logits"].grad.any()


def test_what_was_learned_is_drawn_anew():
    objective = CrossEntropy() + Learned() + SoftTargets(temperature=LearnedTemperature(1, 9)) + WithMemory()
    bank = objective.terms[3].bank[0]
    with torch.no_grad():
        objective.terms[2].temperature.theta.fill_(3.0)
        bank.running_mean.fill_(7.0)
    objective.reset_parameters()
    assert objective.terms[1].scale == 1 and objective.terms[2].temperature(0.5) == 5
    assert not bank.running_mean.any()


def test_every_default_runs(seen):
    for kind in FUNCTIONS:
        assert torch.isfinite(kind()(**seen))


def test_what_a_term_lacks_is_said_by_name():
    z = torch.zeros(2, 3)
    with pytest.raises(TypeError, match="SoftTargets needs teacher_logits=…"):
        (1 * SoftTargets())(student_logits=z)
    with pytest.raises(TypeError, match="give each thing by its name"):
        (1 * SoftTargets())(z, z)


@pytest.mark.parametrize(
    ("term", "options", "sentence"),
    [
        (SoftTargets, {"T": 2}, "SoftTargets takes temperature, standardised, class_axis, not T;"),
        (
            ReverseKL,
            {"alpha": 0.5, "T": 2},
            "ReverseKL takes temperature, class_axis, not T, alpha; a weight is a factor, 0.5",
        ),
        (SparseForwardKL, {"temperature": 2}, "SparseForwardKL takes no option, not temperature;"),
    ],
)
def test_an_option_that_a_term_has_not_is_told_those_that_it_has(term, options, sentence):
    with pytest.raises(TypeError, match=sentence):
        term(**options)


def test_a_term_gives_one_number():
    class Several(Term):
        def forward(self, *, student_logits, **_):
            return student_logits.mean(-1)

    with pytest.raises(ValueError, match="a term gives one number"):
        (1 * Several())(student_logits=torch.zeros(2, 3))


def test_progress_is_a_part_of_the_training():
    objective = Linear(1, 0) * CrossEntropy()
    with pytest.raises(ValueError, match="progress is the part of the training that is done, 0 … 1, not 3"):
        objective(student_logits=torch.zeros(2, 3), labels=torch.tensor([0, 1]), progress=3)


def test_gradient_norms_take_any_iterable_of_tensors():
    model = torch.nn.Linear(3, 2)
    objective = CrossEntropy() + CrossEntropy()
    _, values = objective(student_logits=model(torch.ones(1, 3)), labels=torch.tensor([0]))
    assert all(norm > 0 for norm in objective.gradient_norms(values, model.parameters()).values())


def test_labels_of_other_positions_say_nothing_of_which_count():
    """Such as one label a text, beside logits of its tokens."""
    student, teacher = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 3, 4)
    objective = 1.0 * objectives.SoftTargets(temperature=2)
    alone, _ = objective(student_logits=student, teacher_logits=teacher)
    beside, _ = objective(student_logits=student, teacher_logits=teacher, labels=torch.tensor([-100, 1]))
    assert torch.equal(alone, beside)


def test_a_temperature_that_has_no_values_yet_is_not_looked_at():
    """Its shape is, as while a graph is made."""
    logits = torch.zeros(2, 4, device="meta")
    assert objectives.log_soften(logits, torch.empty(2, 1, device="meta")).shape == (2, 4)
    with pytest.raises(ValueError, match="give shape"):
        objectives.log_soften(logits, torch.empty(3, 1, device="meta"))


def test_a_temperature_within_a_term_is_told():
    inner = SoftTargets(Linear(8.0, 1.0))
    seen = {"student_logits": torch.eye(3), "teacher_logits": torch.eye(3)}
    _, values = (1.0 * objectives.SharedVocabulary(inner, torch.arange(2)))(**seen, progress=1.0)
    assert values["SharedVocabulary.temperature"] == 1.0
