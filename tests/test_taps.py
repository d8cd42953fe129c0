from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn
from torch.overrides import _get_current_function_mode_stack

from kdlab.data import Examples
from kdlab.language import TeacherColumns
from kdlab.objectives import AttentionMaps, CrossEntropy, HiddenMSE, SoftTargets, attention_from_qk, soft_targets
from kdlab.training import Recipe, Taps, fit
from kdlab.training.taps import logits_of


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


class Model(nn.Module):
    """The same with a forward of its own, such as torch.compile makes one graph of."""

    def __init__(self):
        super().__init__()
        self.layers = network()

    def forward(self, x):
        return self.layers(x)


class Attention(nn.Module):
    """Fused attention as transformers write it; ``how`` is given to it."""

    def __init__(self, width=8, heads=4, key_heads=4, **how):
        super().__init__()
        self.heads, self.key_heads, self.how = heads, key_heads, how
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width * key_heads // heads)

    def queries_and_keys(self, x):
        q, (k, v) = self.q(x), self.kv(x).chunk(2, -1)
        return q.unflatten(-1, (self.heads, -1)).transpose(1, 2), *(
            part.unflatten(-1, (self.key_heads, -1)).transpose(1, 2) for part in (k, v)
        )

    def forward(self, x):
        q, k, v = self.queries_and_keys(x)
        return F.scaled_dot_product_attention(q, k, v, **self.how).transpose(1, 2).flatten(2)


class Returning(Attention):
    """A module that computes its maps itself, and returns them."""

    def forward(self, x):
        q, k, v = self.queries_and_keys(x)
        maps = attention_from_qk(q, k)
        return (maps @ v).transpose(1, 2).flatten(2), None, maps


class First(nn.Module):
    """A model of one attention module that may return more than one tensor."""

    def __init__(self, attention):
        super().__init__()
        self.attention, self.head = attention, nn.Linear(8, 3)

    def forward(self, x):
        out = self.attention(x)
        return self.head(out if isinstance(out, torch.Tensor) else out[0])


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# Outputs and inputs


def test_layers_are_captured_and_the_output_is_the_models():
    model, x = network(), torch.randn(5, 4)
    plain = model(x)
    with Taps(model, ["", "0", "1", "input:2"]) as taps:
        logits, hidden = taps(x)
    assert torch.equal(logits, plain) and set(hidden) == {"", "0", "1", "input:2"}
    assert torch.equal(hidden["0"], model[0](x))
    assert torch.equal(hidden["1"], model[0](x).relu()) and torch.equal(hidden["input:2"], hidden["1"])
    assert torch.equal(hidden[""], plain)


def test_layers_are_captured_with_their_gradient():
    model, x = network(), torch.randn(5, 4)
    with Taps(model, ["0"]) as taps:
        taps(x)[1]["0"].sum().backward()
    assert model[0].weight.grad.any() and model[2].weight.grad is None
    with Taps(model, ["0"]) as taps, torch.no_grad():
        assert not taps(x)[1]["0"].requires_grad


def test_no_layers_are_no_hooks():
    model = network()
    assert Taps(model)(torch.ones(1, 4))[1] == {} and not hooks(model)


def test_nothing_is_captured_when_the_model_is_called_directly():
    model = nn.ModuleDict({"net": network(), "attention": First(Attention())})
    for inner, layers, x in (
        (model["net"], ["0", "input:2"], torch.ones(1, 4)),
        (model["attention"], ["attention:attention"], torch.ones(1, 3, 8)),
    ):
        with Taps(inner, layers) as taps:
            _, first = taps(x)
            before = {name: value.clone() for name, value in first.items()}
            inner(2 * x)
            assert not taps._captured and not _get_current_function_mode_stack()
            assert all(torch.equal(before[name], value) for name, value in first.items())


def test_each_call_gives_a_dict_of_its_own():
    with Taps(network(), ["0"]) as taps:
        _, first = taps(torch.zeros(1, 4))
        _, second = taps(torch.ones(1, 4))
    assert not torch.equal(first["0"], second["0"])


def test_the_first_tensor_of_what_a_layer_returns_or_takes():
    class Several(nn.Module):
        def forward(self, flag, *, x=None):
            return {"none": None, "x": 2 * x, "more": x} if flag else ("text", 3 * x, x)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.several, self.flag = Several(), True

        def forward(self, x):
            self.several(self.flag, x=x)
            return x

    model, x = Model(), torch.ones(1, 2)
    with Taps(model, ["several", "input:several"]) as taps:
        assert torch.equal(taps(x)[1]["several"], 2 * x)
        model.flag = False
        assert torch.equal(taps(x)[1]["several"], 3 * x)
        assert torch.equal(taps(x)[1]["input:several"], x)


def test_a_layer_that_runs_twice_gives_its_last_output():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(self.layer(x))

    model, x = Twice(), torch.randn(2, 4)
    with Taps(model, ["layer"]) as taps:
        logits, hidden = taps(x)
    assert torch.equal(hidden["layer"], logits)


# Names


def test_close_takes_every_hook_out():
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, batch_first=True), nn.Linear(8, 2))
    taps = Taps(model, ["0", "input:1", "attention:0.self_attn"])
    assert hooks(model) == 4
    taps.close()
    assert not hooks(model)
    with pytest.raises(
        RuntimeError, match="Sequential did not run, or gave no tensor at, 0, input:1, attention:0.self_attn"
    ):
        taps(torch.randn(1, 3, 8))


@pytest.mark.parametrize("path", ["fc", "layer4", "layer1.0.conv3", "module.layer4"])
def test_a_path_that_is_not_there_gets_a_suggestion_and_no_hook(resnet, path):
    model = resnet()
    with pytest.raises(ValueError) as caught:
        Taps(model, ["conv1", "input:fc", path + "x"])
    assert str(caught.value).startswith(f"ResNet has no module '{path}x'; there are '")
    assert not hooks(model)


def test_paths_that_are_like_no_other_are_refused_too():
    with pytest.raises(ValueError, match="^Sequential has no module 'encoder.layers'.$"):
        Taps(network(), ["encoder.layers"])
    with pytest.raises(ValueError, match="TeacherColumns has no modules, and so no 'layer': .* not of what is kept"):
        Taps(TeacherColumns(5), ["layer"])
    with pytest.raises(ValueError, match='a layer is "path", "input:path" or "attention:path", not \'output:0\''):
        Taps(network(), ["output:0"])


def test_a_layer_that_did_not_run_is_named():
    model = network()
    model.unused = nn.Linear(2, 2)
    model.forward = lambda x: model[2](model[1](model[0](x)))
    for layers, sentence in (
        (["0", "unused"], "Sequential did not run, or gave no tensor at, unused"),
        (["attention:0"], "gave no tensor at, attention:0"),
    ):
        with Taps(model, layers) as taps, pytest.raises(RuntimeError, match=sentence):
            taps(torch.ones(1, 4))


def test_wrappers_put_a_prefix_before_paths_that_may_be_left_out():
    x = torch.ones(1, 4)
    expected = network()[0](x)
    wrapped = nn.DataParallel(network())
    both = torch.compile(wrapped, backend="eager")
    for model, layers in (
        (wrapped, ["0", "module.0"]),
        (nn.DataParallel(wrapped), ["0", "module.module.0"]),
        (both, ["0", "_orig_mod.module.0"]),
    ):
        with Taps(model, layers) as taps:
            _, hidden = taps(x)
        assert all(torch.equal(hidden[layer], expected) for layer in layers)


def test_a_layer_without_modules_is_a_layer():
    """An empty ``nn.Sequential``, as the shortcuts of residual networks are, has no length, and is false."""
    model = torch.compile(nn.Sequential(nn.Linear(4, 3), nn.Sequential()), backend="eager")
    for layer in ("1", "_orig_mod.1"):
        with Taps(model, [layer]) as taps:
            logits, hidden = taps(torch.ones(1, 4))
        assert torch.equal(hidden[layer], logits)


def test_a_module_that_is_named_module_keeps_its_name():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.module = nn.Linear(3, 2), nn.Sequential(OrderedDict(head=nn.Linear(4, 3)))

        def forward(self, x):
            return self.head(self.module(x))

    model, x = Wrapper(), torch.ones(1, 4)
    with Taps(model, ["module.head", "head", "module"]) as taps:
        logits, hidden = taps(x)
    assert torch.equal(hidden["module.head"], model.module(x)) and torch.equal(hidden["module"], model.module(x))
    assert torch.equal(hidden["head"], logits)


# Logits


def test_logits_in_whatever_a_model_returns():
    logits = torch.ones(1, 2)
    for output in (logits, (logits, "more"), [logits], SimpleNamespace(logits=logits, loss=None)):
        assert logits_of(output) is logits
    for output in ({"logits": logits}, (), ("more", logits), None):
        with pytest.raises(
            TypeError, match="a model must return logits, a tuple that starts with them, or .logits, not"
        ):
            logits_of(output)


def test_how_the_logits_of_another_output_are_returned_is_said():
    logits = torch.zeros(2, 3)
    with pytest.raises(TypeError, match=r"a module of your own around it does: output\['out'\]\.$"):
        logits_of({"out": logits})
    with pytest.raises(
        TypeError, match=r": torch.stack\(\[output.start_logits, output.end_logits\], 1\), beside labels"
    ):
        logits_of(SimpleNamespace(start_logits=logits, end_logits=logits))


@pytest.mark.parametrize("inputs", [torch.ones(2, 4, dtype=torch.float64), {"x": torch.ones(2, 4), "n": 3}])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_inputs_are_seen_in_the_models_own_type(kind, inputs):
    class Named(Model):
        def forward(self, x, n=None):
            assert n in (None, 3)
            return super().forward(x)

    model = Named().to(kind)
    with Taps(model) as taps:
        logits, _ = taps(inputs)
    assert torch.equal(logits, model(torch.ones(2, 4, dtype=kind)))


def test_a_teacher_of_pictures_in_half_precision():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3)).bfloat16()
    student = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    train = Examples(torch.randn(4, 1, 4, 4), torch.tensor([0, 1, 2, 0]))
    recipe = Recipe(1, 4, learning_rate=1e-9, augment=False)
    (entry,) = fit(student, SoftTargets() + HiddenMSE("0"), teacher=teacher, train=train, recipe=recipe)
    z, t = student(train.inputs), teacher(train.inputs.bfloat16()).float()
    assert entry["SoftTargets"] == pytest.approx(soft_targets(z, t).item(), rel=1e-4)
    assert next(teacher.parameters()).dtype == torch.bfloat16


# Attention


@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize("masked", ["none", "causal", "boolean", "additive"])
@pytest.mark.parametrize("mode", [True, False])
def test_maps_of_fused_attention_are_recovered(key_heads, masked, mode):
    mask = {"boolean": torch.ones(5, 5, dtype=torch.bool).triu(), "additive": torch.randn(5, 5)}.get(masked)
    how = {"attn_mask": mask, "is_causal": masked == "causal", "enable_gqa": key_heads < 4, "scale": 0.4}
    attention = Attention(key_heads=key_heads, **how)
    model, x = First(attention).train(mode), torch.randn(2, 5, 8)
    plain = model(x)
    with Taps(model, ["attention:attention", "attention"]) as taps:
        logits, hidden = taps(x)
    maps, (_, _, v) = hidden["attention:attention"], attention.queries_and_keys(x)
    assert torch.equal(logits, plain) and maps.requires_grad
    assert maps.shape == (2, 4, 5, 5)
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 4, 5))
    mixed = (maps @ v.repeat_interleave(4 // key_heads, 1)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(mixed, hidden["attention"])


def test_maps_that_a_module_returns_are_taken():
    model, x = First(Returning()), torch.randn(2, 5, 8)
    with Taps(model, ["attention:attention"]) as taps:
        _, hidden = taps(x)
    assert torch.equal(hidden["attention:attention"], model.attention(x)[2])


def test_attention_of_one_head_without_an_axis_for_it():
    class Single(nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(x, x, x)

    model, x = First(Single()), torch.randn(2, 5, 8)
    with Taps(model, ["attention:attention"]) as taps:
        _, hidden = taps(x)
    torch.testing.assert_close(hidden["attention:attention"], attention_from_qk(x[:, None], x[:, None]))


def test_maps_are_those_before_dropout_and_dropout_is_as_without_taps():
    model, x = First(Attention(dropout_p=0.5)), torch.randn(2, 5, 8)
    torch.manual_seed(1)
    plain = model(x)
    with Taps(model, ["attention:attention"]) as taps:
        torch.manual_seed(1)
        logits, hidden = taps(x)
    assert torch.equal(logits, plain)
    torch.testing.assert_close(hidden["attention:attention"].sum(-1), torch.ones(2, 4, 5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_maps_under_autocast_are_those_of_its_queries_and_keys(dtype):
    model, x = First(Attention()), torch.randn(2, 5, 8)
    with torch.autocast("cpu", dtype), Taps(model, ["attention:attention"]) as taps:
        plain = model(x)
        q, k, _ = model.attention.queries_and_keys(x)
        logits, hidden = taps(x)
    assert q.dtype == dtype and torch.equal(logits, plain)
    assert torch.equal(hidden["attention:attention"], attention_from_qk(q, k))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_maps_of_torchs_encoder(training, grad, dropout):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 4, 16, dropout, batch_first=True)
    model, x = nn.Sequential(layer, nn.Linear(8, 3)).train(training), torch.randn(2, 5, 8)
    with torch.set_grad_enabled(grad), Taps(model, ["attention:0.self_attn"]) as taps:
        torch.manual_seed(1)
        plain = model(x)
        torch.manual_seed(1)
        logits, hidden = taps(x)
    torch.testing.assert_close(logits, plain)  # nearly: torch's own path for evaluation takes no taps
    projected = F.linear(x, layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias)
    q, k, _ = (part.unflatten(-1, (4, 2)).transpose(1, 2) for part in projected.chunk(3, -1))
    torch.testing.assert_close(hidden["attention:0.self_attn"], attention_from_qk(q, k))
    assert hidden["attention:0.self_attn"].requires_grad is grad


@pytest.mark.parametrize("weights", ["averaged", "each head's", "none"])
@pytest.mark.parametrize("training", [True, False])
def test_torchs_attention_returns_what_it_was_asked_for(weights, training):
    attention = nn.MultiheadAttention(8, 4, dropout=0.5, batch_first=True).train(training)
    how = {"averaged": {}, "each head's": {"average_attn_weights": False}, "none": {"need_weights": False}}[weights]
    padding, causal = (
        torch.tensor([[False] * 5, [False, False, False, True, True]]),
        torch.ones(5, 5).triu(1).bool(),
    )

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = attention

        def forward(self, x):
            out, self.returned = self.attention(x, x, x, key_padding_mask=padding, attn_mask=causal, **how)
            return out

    model, x = Model(), torch.randn(2, 5, 8)
    torch.manual_seed(1)
    plain, returned = model(x), model.returned
    with Taps(model, ["attention:attention"]) as taps:
        torch.manual_seed(1)
        logits, hidden = taps(x)
    maps = hidden["attention:attention"]
    assert torch.equal(logits, plain)
    assert maps.shape == (2, 4, 5, 5)
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 4, 5))
    assert not maps[1, :, :, 3:].any() and not maps[:, :, causal].any()
    if weights == "none":
        assert returned is None is model.returned
    else:
        assert torch.equal(model.returned, returned)


def test_attention_within_attention_is_recorded_by_both_taps():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Attention()

        def forward(self, x):
            return self.inner(x)

    model, x = First(Outer()), torch.randn(2, 5, 8)
    with Taps(model, ["attention:attention", "attention:attention.inner"]) as taps:
        _, hidden = taps(x)
    assert torch.equal(*hidden.values())
    torch.testing.assert_close(
        hidden["attention:attention"], attention_from_qk(*model.attention.inner.queries_and_keys(x)[:2])
    )


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_forward_that_fails_leaves_nothing_behind(error):
    class Fails(Attention):
        fail = True

        def forward(self, x):
            out = super().forward(x)
            if self.fail:
                raise error
            return out

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Fails()

        def forward(self, x):
            return self.inner(x)

    model, x = First(Outer()), torch.randn(2, 5, 8)
    layers = ["attention:attention", "attention:attention.inner", "input:attention"]
    with Taps(model, layers) as taps:
        with pytest.raises(error):
            taps(x)
        assert not _get_current_function_mode_stack() and not taps._captured
        model.attention.inner.fail = False
        plain = model(x)
        assert not taps._captured
        logits, hidden = taps(x)
        assert torch.equal(logits, plain) and set(hidden) == set(layers)
        assert not _get_current_function_mode_stack()


def test_a_model_that_handles_an_exception_goes_on():
    class Careful(nn.Module):
        def __init__(self):
            super().__init__()
            self.fails, self.attention = nn.Module(), Attention()

        def forward(self, x):
            try:
                self.fails(x)
            except NotImplementedError:
                assert not _get_current_function_mode_stack()
            return self.attention(x)

    model, x = Careful(), torch.randn(2, 5, 8)
    sentence = "gave no tensor at, attention:fails"
    with Taps(model, ["attention:fails", "attention"]) as taps, pytest.raises(RuntimeError, match=sentence):
        taps(x)


# Compiled models


# What torch.compile hides from everyone but those who make errors of warnings.
compiled = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


def check_compiled(taps, model):
    x, reference = torch.randn(5, 4), network()
    expected = {"layers.0": reference[0](x), "input:layers.2": reference[0](x).relu()}
    for _ in range(2):
        logits, hidden = taps(x)
        torch.testing.assert_close(logits, reference(x))
        torch.testing.assert_close(hidden, expected)
        torch.testing.assert_close(model(x), reference(x))
        assert not taps._captured


@compiled
@pytest.mark.parametrize("fullgraph", [True, False])
def test_models_are_tapped_before_their_first_call_if_compiled(fullgraph):
    how, layers = {"backend": "eager", "fullgraph": fullgraph}, ["layers.0", "input:layers.2"]
    torch._dynamo.reset()
    model = Model()
    with Taps(model, layers) as taps:
        model.compile(**how)
        check_compiled(taps, model)
    model = Model()
    model.compile(**how)
    with Taps(model, layers) as taps:
        check_compiled(taps, model)
    model = torch.compile(Model(), **how)
    with Taps(model, layers) as taps:
        check_compiled(taps, model)
    model = torch.compile(Model(), **how)
    model(torch.randn(5, 4))
    sentence = "did not run, or gave no tensor at, layers.0, input:layers.2"
    with Taps(model, layers) as taps, pytest.raises(RuntimeError, match=sentence):
        taps(torch.randn(5, 4))


@compiled
def test_attention_of_a_compiled_model_is_the_same():
    torch._dynamo.reset()
    model, x = First(Attention(is_causal=True)), torch.randn(2, 5, 8)
    with Taps(model, ["attention:attention"]) as taps:
        logits, hidden = taps(x)
        model.compile(backend="eager")
        for _ in range(2):
            again, hidden_again = taps(x)
            torch.testing.assert_close(again, logits)
            torch.testing.assert_close(hidden_again, hidden)
            torch.testing.assert_close(model(x), logits)
            assert not _get_current_function_mode_stack()


@compiled
def test_a_compiled_student_is_trained_with_hints():
    train = Examples(torch.randn(32, 4), torch.randint(2, (32,)))
    options = {
        "train": train,
        "teacher": network(1),
        "recipe": Recipe(epochs=2, batch_size=16, schedule="constant"),
    }
    objective = CrossEntropy() + HiddenMSE("0")
    plain = fit(network(), objective, **options)
    torch._dynamo.reset()
    compiled = fit(torch.compile(network(), backend="eager"), objective, **options)
    assert [entry["loss"] for entry in compiled] == pytest.approx([entry["loss"] for entry in plain], rel=1e-6)


# A language model


@pytest.fixture
def llama():
    transformers = pytest.importorskip("transformers")

    def make(attention, heads, key_heads, seed=0):
        torch.manual_seed(seed)
        config = transformers.LlamaConfig(
            vocab_size=32, hidden_size=4 * heads, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=heads, num_key_value_heads=key_heads, attn_implementation=attention,
        )  # fmt: skip
        return transformers.LlamaForCausalLM(config)

    return make


LLAMA = ("attention:model.layers.0.self_attn", "attention:model.layers.1.self_attn", "model.layers.1")


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_a_language_models_maps_are_the_same_however_they_are_computed(llama, padded, training):
    tokens = torch.randint(32, (2, 6))
    mask = torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0]]) if padded else None
    captured = {}
    for attention in ("sdpa", "eager"):
        model = llama(attention, 4, 2).train(training)
        plain = model(input_ids=tokens, attention_mask=mask).logits
        with Taps(model, LLAMA) as taps:
            logits, captured[attention] = taps(input_ids=tokens, attention_mask=mask)
        assert torch.equal(logits, plain)
    for layer in LLAMA:
        torch.testing.assert_close(captured["sdpa"][layer], captured["eager"][layer])
    for layer in LLAMA[:2]:
        maps = captured["sdpa"][layer]
        assert maps.shape == (2, 4, 6, 6) and maps.requires_grad
        torch.testing.assert_close(maps.sum(-1), torch.ones(2, 4, 6))
        assert not maps.triu(1).any()


@pytest.mark.parametrize("heads", ["mean", "group"])
def test_attention_of_a_language_model_is_distilled(llama, heads):
    class Reader(nn.Module):
        """Its answer is what it says after the last token."""

        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, tokens):
            return self.model(input_ids=tokens, use_cache=False).logits[:, -1]

    student, teacher = Reader(llama("sdpa", 2, 1)), Reader(llama("eager", 4, 2, seed=1))
    with torch.no_grad():
        for p in teacher.parameters():
            p.mul_(5)  # so that it does not look everywhere alike
    train = Examples(torch.randint(32, (32, 6)), torch.randint(32, (32,)))
    recipe = Recipe(epochs=8, batch_size=16, optimizer="adam", learning_rate=1e-2, schedule="constant", weight_decay=0)
    layers = [f"model.model.layers.{i}.self_attn" for i in range(2)]
    objective = 1.0 * AttentionMaps(*layers, heads=heads, normalise="queries")
    history = fit(student, objective, train=train, recipe=recipe, teacher=teacher)
    assert history[-1]["AttentionMaps"] < 0.9 * history[0]["AttentionMaps"]


class Checkpointed(nn.Module):
    """A block whose inside is run again in the backward pass."""

    def __init__(self, reentrant):
        super().__init__()
        self.embed, self.attn, self.head = nn.Linear(4, 8), Block(), nn.Linear(8, 3)
        self.reentrant = reentrant

    def forward(self, x):
        block = torch.utils.checkpoint.checkpoint
        return self.head(block(self.attn, self.embed(x), use_reentrant=self.reentrant))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x):
        q, k, v = (y.unflatten(-1, (2, 4)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def test_layers_inside_gradient_checkpointing_keep_their_gradient():
    model, x = Checkpointed(False), torch.randn(2, 5, 4)
    with Taps(model, ["attn", "attention:attn"]) as taps:
        gradients = []
        for checkpointed in (True, False):
            if not checkpointed:
                model.forward = lambda x: model.head(model.attn(model.embed(x)))
            _, hidden = taps(x)
            loss = hidden["attn"].square().sum() + (hidden["attention:attn"] ** 3).sum()
            gradients.append(torch.autograd.grad(loss, model.attn.qkv.weight)[0])
    torch.testing.assert_close(*gradients)


def test_reentrant_checkpointing_which_has_no_gradient_is_refused():
    with (
        Taps(Checkpointed(True), ["attention:attn"]) as taps,
        pytest.raises(RuntimeError, match="pass use_reentrant=False"),
    ):
        taps(torch.randn(2, 5, 4))


def test_one_name_is_no_list_of_names():
    with pytest.raises(TypeError, match="layers is a list of names"):
        Taps(nn.Linear(2, 2), "layer2")
