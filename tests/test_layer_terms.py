import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from kdlab import objectives
from kdlab.data import Examples
from kdlab.objectives import (
    CRD,
    ActivationAttention,
    AttentionMaps,
    CrossEntropy,
    ForwardKL,
    HeadLogits,
    HiddenCosine,
    HiddenMSE,
    InfoNCE,
    Linear,
    Projector,
    RKDAngle,
    RKDDistance,
    SimilarityPreserving,
    activation_attention,
    attention_map_mse,
    forward_kl,
    hidden_cosine,
    hidden_mse,
    info_nce,
    rkd_angle,
    rkd_distance,
    similarity_preserving,
)
from kdlab.objectives.features import channels_last
from kdlab.study import Spec, run
from kdlab.training import Recipe, fit

QUICK = Recipe(epochs=2, batch_size=32, learning_rate=0.01, schedule="constant")


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def seen():
    """Four examples: maps of two layers and attention; the teacher's layers have other names too."""
    student = {"a": randn(4, 3, 6, 6), "b": randn(4, 3, 3, 3, seed=1)}
    teacher = {"a": randn(4, 3, 6, 6, seed=2), "b": randn(4, 3, 3, 3, seed=3), "y": randn(4, 3, 6, 6, seed=4)}
    student["attention:a"] = torch.softmax(randn(4, 2, 5, 5), -1)
    teacher["attention:a"] = torch.softmax(randn(4, 2, 5, 5, seed=5), -1)
    for value in (*student.values(), *teacher.values()):
        value.requires_grad_()
    return {
        "student_logits": randn(4, 7).requires_grad_(),
        "student_hidden": student,
        "teacher_hidden": teacher,
        "labels": torch.tensor([0, 1, 0, 2]),
        "index": torch.tensor([3, 9, 4, 1]),
    }


def embedding(x):
    return x.flatten(1)


every_term = pytest.mark.parametrize(
    ("term", "function"),
    [
        (HiddenMSE, lambda s, t: hidden_mse(channels_last(s), channels_last(t))),
        (HiddenCosine, lambda s, t: hidden_cosine(channels_last(s), channels_last(t))),
        (ActivationAttention, activation_attention),
        (RKDDistance, rkd_distance),
        (RKDAngle, rkd_angle),
        (SimilarityPreserving, similarity_preserving),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)

EVERY_KIND = [
    HiddenMSE("a"),
    HiddenMSE("a", ("b", "y"), projector=Projector("conv", 3, 3)),
    HiddenCosine(("a", "y"), projector=Projector("orthogonal", 3, 3)),
    AttentionMaps("a", heads="mean", normalise="queries"),
    AttentionMaps("a"),
    ActivationAttention("a", "b", form="paper"),
    RKDDistance("a"),
    RKDAngle(("a", "b")),
    SimilarityPreserving("b"),
    InfoNCE("a"),
    InfoNCE("a", projector=Projector("linear", 3, 3), temperature=0.2, same_class=False),
    CRD("b", student_width=27, teacher_width=27, examples=10, negatives=5),
    CRD(("b", "y"), student_width=27, teacher_width=108, examples=10, width=4, temperature=0.1, loss="info_nce"),
]  # fmt: skip
every_kind = pytest.mark.parametrize("given", EVERY_KIND, ids=repr)


# Values


@every_term
def test_each_term_is_its_function_of_the_captured_layers(term, function, seen):
    s, t = seen["student_hidden"], seen["teacher_hidden"]
    assert torch.equal(term("a")(**seen), function(s["a"], t["a"]))
    assert torch.equal(term(("a", "y"))(**seen), function(s["a"], t["y"]))
    assert torch.equal(term(("b", "b"))(**seen), function(s["b"], t["b"]))
    both = term("a", ("b", "b"), ("a", "y"))(**seen)
    expected = function(s["a"], t["a"]) + function(s["b"], t["b"]) + function(s["a"], t["y"])
    torch.testing.assert_close(both, expected)


def test_options_reach_the_functions(seen):
    s, t = (seen[f"{who}_hidden"] for who in ("student", "teacher"))
    maps = s["attention:a"], t["attention:a"]
    options = {"heads": "mean", "normalise": "queries"}
    assert torch.equal(AttentionMaps("a")(**seen), attention_map_mse(*maps))
    assert torch.equal(AttentionMaps("a", **options)(**seen), attention_map_mse(*maps, **options))
    paper = activation_attention(s["a"], t["a"], form="paper")
    assert torch.equal(ActivationAttention("a", form="paper")(**seen), paper)
    flat = s["a"].flatten(1), t["a"].flatten(1)
    assert torch.equal(InfoNCE("a")(**seen), info_nce(*flat))
    other = info_nce(*flat, temperature=0.3, labels=seen["labels"])
    assert torch.equal(InfoNCE("a", temperature=0.3, same_class=False)(**seen), other)


def test_contrast_with_a_memory_is_its_memorys(seen):
    term = CRD("b", student_width=27, teacher_width=27, examples=10, width=4, negatives=6)
    memory, s, t = copy.deepcopy(term.memory), seen["student_hidden"]["b"], seen["teacher_hidden"]["b"]
    torch.manual_seed(0)
    value = term(**seen)
    torch.manual_seed(0)
    assert torch.equal(value, memory(s, t, seen["labels"], seen["index"]))


def test_maps_of_different_size_meet_at_the_smaller(seen):
    s, t = seen["student_hidden"], seen["teacher_hidden"]
    pooled = nn.functional.avg_pool2d(t["a"], 2)
    value = HiddenMSE(("b", "a"))(**seen)
    torch.testing.assert_close(value, hidden_mse(channels_last(s["b"]), channels_last(pooled)))


def test_a_mask_of_tokens_reaches_hidden_states_and_attention():
    student, teacher = ({"a": randn(2, 5, 3, seed=n), "attention:a": torch.softmax(randn(2, 2, 5, 5, seed=n), -1)} for n in (0, 1))  # fmt: skip
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    hidden = {"student_hidden": student, "teacher_hidden": teacher}
    for term, function, layer in (
        (HiddenMSE("a"), hidden_mse, "a"),
        (HiddenCosine("a"), hidden_cosine, "a"),
        (AttentionMaps("a"), attention_map_mse, "attention:a"),
    ):
        expected = function(student[layer], teacher[layer], mask=mask)
        assert torch.equal(term(**hidden, hidden_mask=mask), expected)
        assert not torch.isclose(term(**hidden), expected)
    counted = HiddenMSE("a")(**hidden, hidden_mask=mask, hidden_count=70)
    torch.testing.assert_close(counted, HiddenMSE("a")(**hidden, hidden_mask=mask) / 10)


# What terms learn


def test_what_is_pooled_stands_beside_states_of_tokens():
    mask = torch.arange(5) < torch.tensor([[3], [5]])
    student = {"tokens": randn(2, 5, 4), "pooled": randn(2, 4, seed=1)}
    teacher = {"tokens": randn(2, 5, 4, seed=2), "pooled": randn(2, 4, seed=3)}
    how = {"student_hidden": student, "teacher_hidden": teacher, "hidden_mask": mask}
    of_tokens = hidden_mse(student["tokens"], teacher["tokens"], mask=mask)
    of_pooled = hidden_mse(student["pooled"], teacher["pooled"])
    assert HiddenMSE("tokens", "pooled")(**how).item() == pytest.approx((of_tokens + of_pooled).item())
    parted = HiddenMSE("tokens", "pooled")(**how, hidden_count=16, example_count=4)
    assert parted.item() == pytest.approx((of_tokens + of_pooled).item() / 2)
    assert HiddenMSE("pooled")(**{**how, "hidden_mask": None}, mask=mask).item() == pytest.approx(of_pooled.item())


def test_each_pair_has_a_projector_of_its_own_that_learns(seen):
    given = Projector("linear", 3, 3)
    objective = HiddenMSE("a", ("a", "y"), "b", projector=given) + InfoNCE("a", projector=given)
    parameters = list(objective.parameters())
    assert len({p.data_ptr() for p in parameters}) == len(parameters) == 8
    weights = [p for p in parameters if p.ndim == 2]
    assert torch.equal(weights[0], given.map.weight)  # the first starts as it was given
    assert not any(torch.equal(weights[0], other) for other in weights[1:3])
    before = [p.detach().clone() for p in (*parameters, *given.parameters())]
    total, _ = objective(**seen)
    total.backward()
    torch.optim.SGD(parameters, 0.1).step()
    after = [*parameters, *given.parameters()]
    assert [not torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True] * 8 + [False] * 2


def test_two_pairs_with_projectors_are_the_sum_of_their_functions(seen):
    term = HiddenCosine("a", ("b", "b"), projector=Projector("mlp", 3, 3))
    expected = sum(
        hidden_cosine(channels_last(p(seen["student_hidden"][x])), channels_last(seen["teacher_hidden"][x]))
        for p, x in zip(term.projectors, "ab", strict=True)
    )
    torch.testing.assert_close(term(**seen), expected)


@every_kind
def test_the_teacher_gets_no_gradient(given, seen):
    copy.deepcopy(given)(**seen).backward()
    assert all(value.grad is None for value in seen["teacher_hidden"].values())
    used = [seen["student_hidden"][layer] for layer in given.student_layers]
    assert all(value.grad.isfinite().all() and value.grad.any() for value in used)


@every_kind
def test_repr_evaluates_to_the_same_objective(given):
    objective = 0.5 * given + CrossEntropy()
    again = eval(repr(objective), vars(objectives))
    assert repr(again) == repr(objective)
    assert again.student_layers == objective.student_layers
    assert again.teacher_layers == objective.teacher_layers
    shapes = [[(name, value.shape) for name, value in one.state_dict().items()] for one in (again, objective)]
    assert shapes[0] == shapes[1]


def test_reprs_are_what_was_written():
    for text in (
        "HiddenMSE('layer2')",
        "HiddenMSE(('layer2', 'stages.1'), projector=Projector('conv', 32, 64))",
        "AttentionMaps('a', 'b', heads='match', normalise='none')",
        "InfoNCE('input:fc', projector=Projector('linear', 64, 256), temperature=0.07, same_class=False)",
        "CRD('input:fc', student_width=64, teacher_width=256, examples=50000, temperature=0.07)",
    ):
        assert repr(eval(text, vars(objectives))) == text


@every_kind
def test_what_is_learned_is_drawn_anew(given, seen):
    given = copy.deepcopy(given)
    objective = 1.0 * given
    torch.manual_seed(1)
    objective.reset_parameters()
    values = {}
    for name in ("first", "second"):
        torch.manual_seed(1)
        objective.reset_parameters()
        values[name] = [objective(**seen)[0].item() for _ in range(2)]
        objective(**seen)[0].backward()
        torch.optim.SGD([*objective.parameters(), torch.zeros(1, requires_grad=True)], 0.1).step()
    assert values["first"] == values["second"]


def test_layers_of_an_objective_are_those_of_its_terms():
    objective = HiddenMSE("a", ("b", "y")) + 2 * AttentionMaps(("a", "c")) + RKDAngle("a") + CrossEntropy()
    assert objective.student_layers == ("a", "b", "attention:a")
    assert objective.teacher_layers == ("a", "y", "attention:c")
    assert objective.needs_teacher


# What is refused


@every_kind
def test_layers_that_were_not_captured_are_named(given, seen):
    layer, other = given.student_layers[0], given.teacher_layers[0]
    del seen["student_hidden"][layer]
    with pytest.raises(
        ValueError,
        match=rf"needs '{layer}' of the student: capture objective.student_layers with kdlab.training.Taps and pass student_hidden",
    ):
        given(**seen)
    seen["student_hidden"][layer] = randn(4, 3, 6, 6)
    with pytest.raises(ValueError, match=rf"needs '{other}' of the teacher: capture objective.teacher_layers"):
        given(**{**seen, "teacher_hidden": None})


@pytest.mark.parametrize("layers", [(), (3,), (("a",),), (("a", "b", "c"),), (("a", 1),)])
def test_what_is_no_layer_is_refused(layers):
    with pytest.raises(ValueError, match=r"HiddenMSE takes module paths, or pairs of them \(student, teacher\), not"):
        HiddenMSE(*layers)


def test_what_contrast_needs_is_named(seen):
    term = CRD("a", student_width=108, teacher_width=108, examples=10)
    for missing in ("labels", "index"):
        with pytest.raises(ValueError, match="needs labels=… and index=…, the examples' places in the training set"):
            term(**{**seen, missing: None})
    with pytest.raises(ValueError, match="needs labels=… to leave out examples of the same class"):
        InfoNCE("a", same_class=False)(**{**seen, "labels": None})
    with pytest.raises(ValueError, match="temperature must be a positive, finite number"):
        InfoNCE("a", temperature=0)


def test_widths_that_differ_ask_for_a_projector(seen):
    seen["teacher_hidden"]["a"] = randn(4, 5, 6, 6)
    for term in (HiddenMSE("a"), HiddenCosine("a")):
        said = r"'a' of the student is 3 wide, and 'a' of the teacher 5: .* projector=Projector\(\"conv\", 3, 5\), or choose layers of one size"
        with pytest.raises(ValueError, match=said):
            term(**seen)
    with pytest.raises(ValueError, match=r"Projector\('conv', 4, 5\) takes features of width 4"):
        HiddenMSE("a", projector=Projector("conv", 4, 5))(**seen)
    with pytest.raises(
        ValueError,
        match=r"a term's projector=Projector\('linear', n, m\) brings vectors of n numbers to m, and 'conv' channels\.$",
    ):
        InfoNCE("a")(**seen)
    assert HiddenMSE("a", projector=Projector("conv", 3, 5))(**seen).isfinite()


# In training


def test_fit_captures_and_learns_everything(digits, resnet):
    objective = (
        CrossEntropy()
        + HiddenMSE("layer2", projector=Projector("conv", 32, 32))
        + Linear(1, 0) * HiddenCosine("input:fc", projector=Projector("orthogonal", 64, 64))
        + 1000 * ActivationAttention("layer1", ("layer3", "layer2"))
        + 25 * RKDDistance("input:fc")
        + 50 * RKDAngle("input:fc")
        + 3000 * SimilarityPreserving("layer3")
        + 0.1 * InfoNCE("input:fc", projector=Projector("mlp", 64, 64))
        + 0.8 * CRD("input:fc", student_width=64, teacher_width=64, examples=96, width=16, negatives=64)
    )
    student, teacher = resnet(), resnet(1)
    before = [p.detach().clone() for p in objective.parameters()]
    untouched = [p.detach().clone() for p in teacher.parameters()]
    (*_, last) = history = fit(
        student, objective, train=digits.train, recipe=QUICK, teacher=teacher, validation=digits.validation,
        gradient_norms=True,
    )  # fmt: skip
    for name in objective.names:
        assert all(entry[name] > 0 and entry[f"{name}.gradient_norm"] > 0 for entry in history), name
    weighed = sum(w * last[n] for w, n in zip(objective.weights, objective.names, strict=True) if n != "HiddenCosine")
    assert weighed < last["loss"] < weighed + last["HiddenCosine"]  # its weight falls from one half to zero
    assert all(not torch.equal(a, b) for a, b in zip(before, objective.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(untouched, teacher.parameters(), strict=True))
    for model in (student, teacher):
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    "term",
    [
        HiddenMSE("layer3", projector=Projector("linear", 64, 64)),
        HiddenCosine("input:fc"),
        ActivationAttention("layer2", "layer3"),
        RKDDistance("input:fc"),
        RKDAngle("input:fc"),
        SimilarityPreserving("layer3"),
        InfoNCE("input:fc", temperature=0.03),
        CRD("input:fc", student_width=64, teacher_width=64, examples=96, width=16, negatives=32),
    ],
    ids=lambda term: type(term).__name__,
)
def test_each_term_falls_in_training(digits, resnet, term):
    recipe = Recipe(epochs=5, batch_size=32, optimizer="adam", learning_rate=3e-3, augment=False)
    history = fit(resnet(), term, train=digits.train, recipe=recipe, teacher=resnet(1))
    assert history[-1]["loss"] < 0.95 * history[0]["loss"]


def test_measuring_in_between_does_not_disturb_what_is_captured(digits, resnet):
    objective = CrossEntropy() + HiddenMSE("layer2") + SimilarityPreserving("input:fc")
    options = {"train": digits.train, "recipe": QUICK, "teacher": resnet(1)}
    alone = fit(resnet(), objective, **options)
    measured = fit(resnet(), objective, **options, validation=digits.validation)
    assert [entry["loss"] for entry in alone] == [entry["loss"] for entry in measured]


def test_norms_of_gradients_are_those_of_each_weighted_term(digits, resnet):
    objective = 0.5 * CrossEntropy() + 7.0 * HiddenMSE("layer2")
    recipe = Recipe(epochs=1, batch_size=96, augment=False, schedule="constant", learning_rate=1e-30)
    student, teacher = resnet(), resnet(1)
    options = {"train": digits.train, "recipe": recipe, "teacher": teacher}
    (both,) = fit(student, objective, **options, gradient_norms=True)
    for term, weight in zip(objective.terms, objective.weights, strict=True):
        (one,) = fit(resnet(), weight * term, **options, gradient_norms=True)
        name = type(term).__name__
        assert one[f"{name}.gradient_norm"] == pytest.approx(both[f"{name}.gradient_norm"], rel=1e-5)
        gradients = [p.grad for p in _gradients(resnet(), weight * term, digits, teacher)]
        norm = torch.stack([g.square().sum() for g in gradients if g is not None]).sum().sqrt()
        assert one[f"{name}.gradient_norm"] == pytest.approx(norm.item(), rel=1e-3)


def _gradients(student, objective, digits, teacher):
    from kdlab.training import Taps

    ((inputs, labels, _),) = digits.train.batches(96)
    with (
        Taps(student.train(), objective.student_layers) as tapped,
        Taps(teacher.eval(), objective.teacher_layers) as taught,
    ):
        logits, hidden = tapped(inputs)
        objective(student_logits=logits, student_hidden=hidden, teacher_hidden=taught(inputs)[1], labels=labels)[
            0
        ].backward()
    return list(student.parameters())


def test_a_run_leaves_its_spec_as_it_was(digits, resnet):
    objective = (
        CrossEntropy()
        + HiddenMSE("layer2", projector=Projector("conv", 32, 32))
        + CRD("input:fc", student_width=64, teacher_width=64, examples=96, width=8, negatives=32)
    )
    teacher_spec = Spec("layers", "teacher", "digits", "resnet8", 1.0 * CrossEntropy(), QUICK)
    spec = Spec("layers", "hint", "digits", "resnet8", objective, QUICK, teacher=teacher_spec)
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    records = []
    for _ in range(2):
        record = run(spec, digits, teacher=resnet(1)).record
        record["epochs"].pop("seconds"), record["epochs"].pop("examples_per_second")
        records.append([record[key] for key in ("spec", "spec_hash", "epochs", "test")])
        torch.rand(3)  # what else is drawn in between does not matter
    assert records[0] == records[1]
    assert all(torch.equal(before[name], value) for name, value in objective.state_dict().items())


@pytest.mark.parametrize("term", [AttentionMaps("a"), ActivationAttention("a")])
def test_the_count_of_examples_makes_micro_batches_add_up(term):
    student, teacher = torch.rand(2, 4, 2, 3, 3)
    layer = term.student_layers[0]
    whole = term(student_hidden={layer: student}, teacher_hidden={layer: teacher})
    parts = [
        term(student_hidden={layer: s}, teacher_hidden={layer: t}, example_count=4)
        for s, t in zip(student.split([1, 3]), teacher.split([1, 3]), strict=True)
    ]
    torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize("term", [HiddenMSE("a"), AttentionMaps("a")])
def test_a_mask_of_the_logits_alone_is_refused_where_it_leaves_something_out(term):
    layer, hidden = term.student_layers[0], torch.rand(2, 2, 3, 3)
    seen = {"student_hidden": {layer: hidden}, "teacher_hidden": {layer: hidden}}
    term(**seen, mask=torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="pass hidden_mask=…"):
        term(**seen, mask=torch.tensor([[True, False], [True, True]]))


def test_an_image_without_a_label_has_features():
    """A mask of whole examples leaves out no position of a map."""
    student, teacher = randn(2, 3, 4, 4), randn(2, 3, 4, 4, seed=5)
    seen = {"student_hidden": {"a": student}, "teacher_hidden": {"a": teacher}}
    assert HiddenMSE("a")(**seen, mask=torch.tensor([True, False])) == HiddenMSE("a")(**seen)


def test_of_two_parts_each_layer_has_the_mask_of_its_own():
    """By its path, or by what is said; and of layers that are in neither, it has to be said."""
    encoder, decoder = torch.arange(5) < torch.tensor([[5], [2]]), torch.arange(3) < torch.tensor([[1], [3]])
    masks = {"encoder": encoder, "decoder": decoder, "cross": decoder[:, :, None] & encoder[:, None, :]}
    counts = {"encoder": 7, "decoder": 4}
    states = {"encoder.0": randn(2, 5, 4), "model.decoder.0": randn(2, 3, 4), "top": randn(2, 5, 4, seed=5)}
    maps = {"attention:encoder.0": randn(2, 2, 5, 5), "attention:decoder.0.encoder_attn": randn(2, 2, 3, 5)}
    student = {**states, **maps}
    teacher = {name: x + 1 for name, x in student.items()}
    seen = {"student_hidden": student, "teacher_hidden": teacher, "hidden_mask": masks}
    term = HiddenMSE("encoder.0", "model.decoder.0")
    assert term(**seen).item() == pytest.approx(2)
    assert term(**seen, hidden_count={name: 2 * n for name, n in counts.items()}).item() == pytest.approx(1)
    assert HiddenMSE("top", mask="encoder")(**seen).item() == pytest.approx(1)
    cross = AttentionMaps("decoder.0.encoder_attn")
    assert cross(**seen).item() == pytest.approx((5 + 3 * 2) / 2)  # of the first text one query sees five keys
    assert AttentionMaps("encoder.0", normalise="entries")(**seen).item() == pytest.approx(1)
    with pytest.raises(ValueError, match=r"of encoder, decoder, cross, which mask goes with 'top'"):
        HiddenMSE("top")(**seen)
    with pytest.raises(ValueError, match="there is one for all positions: leave mask out"):
        HiddenMSE("top", mask="encoder")(**seen | {"hidden_mask": encoder})
    with pytest.raises(ValueError, match='mask is "encoder", "decoder" or "cross"'):
        HiddenMSE("top", mask="left")
    assert repr(HiddenMSE("top", mask="encoder")) == "HiddenMSE('top', mask='encoder')"
    relation = SimilarityPreserving("encoder.0")(**seen)
    own = [torch.where(encoder.unsqueeze(-1), x["encoder.0"], 0.0) for x in (student, teacher)]
    torch.testing.assert_close(relation, similarity_preserving(*own))
    pooled = {"pooled": randn(2, 4)}
    assert RKDDistance("pooled")(student_hidden=pooled, teacher_hidden=pooled, hidden_mask=masks) == 0


def test_tokens_of_a_transformer_are_held_beside_a_map():
    """Patches lie in a square, row by row, after the tokens that are no patches."""
    grid = randn(2, 24, 4, 4)
    tokens = torch.cat([100 * torch.ones(2, 2, 24), grid.flatten(2).mT], 1)
    hint = HiddenMSE(("a", "b"))
    assert hint(student_hidden={"a": grid}, teacher_hidden={"b": tokens}) == 0
    assert hint(student_hidden={"a": tokens}, teacher_hidden={"b": grid}) == 0
    larger = grid.repeat_interleave(2, 2).repeat_interleave(2, 3)  # is averaged down to it
    assert hint(student_hidden={"a": larger}, teacher_hidden={"b": tokens}).item() == pytest.approx(0, abs=1e-12)
    narrow = HiddenMSE(("a", "b"), projector=Projector("conv", 3, 24))
    assert narrow(student_hidden={"a": randn(2, 3, 8, 8)}, teacher_hidden={"b": tokens}) > 0
    with pytest.raises(ValueError, match="74 tokens are no square of patches"):
        hint(student_hidden={"a": grid}, teacher_hidden={"b": torch.zeros(2, 74, 24)})


def test_layers_are_logged_apart_by_their_names(seen):
    together = HiddenMSE("a", "b")(**seen)
    apart = sum(HiddenMSE(layer).named(f"hint_{layer}") for layer in ("a", "b"))
    total, terms = apart(**seen)
    assert [*terms] == ["hint_a", "hint_b"]
    torch.testing.assert_close(total, together)


def test_a_term_at_a_head_sees_its_logits_alone():
    z, exit_, t, labels = randn(4, 5), randn(4, 5, seed=1), randn(4, 5, seed=2), torch.tensor([0, 1, 2, 3])
    objective = CrossEntropy() + ForwardKL().at_head("exits.0") + ForwardKL().at_head(None, "exits.1")
    assert objective.student_layers == ("exits.0",) and objective.teacher_layers == ("exits.1",)
    seen = {"student_logits": z, "teacher_logits": t, "labels": labels, "student_hidden": {"exits.0": exit_}}
    _, terms = objective(**seen, teacher_hidden={"exits.1": z})
    assert terms["ForwardKL_2"] == 0
    torch.testing.assert_close(terms["ForwardKL_1"], forward_kl(exit_, t))
    head = HeadLogits(z, torch.eye(5))
    _, fused = objective(**seen | {"student_logits": head}, teacher_hidden={"exits.1": z})
    torch.testing.assert_close([*fused.values()], [*terms.values()])
    with pytest.raises(
        ValueError, match=r"ForwardKL\(temperature=1\).at_head\('exits.0'\) needs 'exits.0' of the student"
    ):
        objective(student_logits=z, teacher_logits=t, labels=labels)
    assert (
        repr(ForwardKL().at_head(None, "e").named("late"))
        == "ForwardKL(temperature=1).at_head(None, 'e').named('late')"
    )


def test_a_model_without_logits_learns_by_its_layers():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(6, 4)

        def forward(self, x):
            return {"embedding": self.body(x)}

    torch.manual_seed(0)
    student, teacher = Encoder(), Encoder()
    train = Examples(randn(32, 6), torch.zeros(32).long())
    before = (student.body.weight - teacher.body.weight).norm()
    (history,) = fit(student, 1.0 * HiddenMSE("body"), train=train, teacher=teacher, recipe=replace(QUICK, epochs=1))
    assert history["HiddenMSE"] > 0 and (student.body.weight - teacher.body.weight).norm() < before


def test_a_projector_of_ones_own_has_weights_of_its_own_for_each_pair():
    own = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4))
    first, second = HiddenMSE("a", "b", projector=own).projectors
    assert torch.equal(first[0].weight, own[0].weight) and not torch.equal(second[2].weight, own[2].weight)
    with pytest.raises(TypeError, match="a projector is a module, such as Projector"):
        HiddenMSE("a", projector="linear")
