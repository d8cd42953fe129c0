"""Distillation in the Trainer of transformers: each promise against the library's own result, with models of width 16."""

import copy
import os
import socket
from functools import cache

import pytest
import safetensors.torch
import torch
from ranks import leave

transformers = pytest.importorskip("transformers")
accelerate = pytest.importorskip("accelerate")

from transformers import Trainer, TrainingArguments

from kdlab.huggingface import CausalLM, Distil, Distillation, without_adapter
from kdlab.objectives import (
    CRD,
    DIST,
    AttentionMaps,
    CrossEntropy,
    ForwardKL,
    HardTargets,
    HiddenCosine,
    HiddenMSE,
    LearnedTemperature,
    Linear,
    LogitMSE,
    MergedSpans,
    MergedVocabulary,
    Projector,
    SharedVocabulary,
    SoftTargets,
    SparseForwardKL,
    SquaredError,
    next_token,
    sparse_forward_kl,
)
from kdlab.training import CheckpointError, Taps, measure

V = 40
LAYER = "model.layers.0"


class KD(Distil, Trainer):
    pass


def llama(seed, width=16, layers=2):
    torch.manual_seed(seed)
    shape = {"vocab_size": V, "intermediate_size": width, "num_attention_heads": 2, "max_position_embeddings": 16}
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(hidden_size=width, num_hidden_layers=layers, attn_implementation="sdpa", **shape)
    )


def bert(seed, width=16):
    torch.manual_seed(seed)
    shape = {"vocab_size": V, "intermediate_size": width, "num_attention_heads": 2, "num_labels": 3}
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(hidden_size=width, num_hidden_layers=2, **shape, **still)
    )


def vit(seed, width=16):
    torch.manual_seed(seed)
    shape = {"intermediate_size": width, "num_attention_heads": 2, "image_size": 8, "patch_size": 4, "num_labels": 3}
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(hidden_size=width, num_hidden_layers=2, **shape, hidden_dropout_prob=0.0)
    )


def texts(n=8):
    """Ragged, padded on the right; more tokens than labels."""
    drawn = torch.Generator().manual_seed(0)
    for length in [12, 3, 7, 5, 9, 2, 11, 4][:n]:
        tokens, places = torch.randint(V, (12,), generator=drawn), torch.arange(12)
        real = places < length
        labels = tokens.where(real & (places > 0), -100)
        yield {"input_ids": tokens.where(real, 0), "attention_mask": real.long(), "labels": labels}


def sentences(n=8):
    for i, text in enumerate(texts(n)):
        yield {**text, "token_type_ids": (torch.arange(12) > 5).long(), "labels": torch.tensor(i % 3), "index": i}


def pictures(n=8):
    drawn = torch.Generator().manual_seed(0)
    return [{"pixel_values": torch.randn(3, 8, 8, generator=drawn), "labels": torch.tensor(i % 3)} for i in range(n)]


def of_texts():
    torch.manual_seed(9)
    return (
        CrossEntropy()
        + SoftTargets(temperature=Linear(2, 3))
        + 0.5 * HiddenMSE(LAYER, projector=Projector("linear", 16, 24))
        + AttentionMaps(LAYER + ".self_attn", normalise="queries")
    )


def of_sentences():
    torch.manual_seed(9)
    layer = "bert.encoder.layer.0"
    projector = Projector("linear", 16, 24)
    return (
        CrossEntropy()
        + SoftTargets(temperature=2)
        + HiddenMSE(layer, projector=projector)
        + HiddenMSE("bert.pooler", projector=projector)
        + AttentionMaps(layer + ".attention", normalise="queries")
    )


def of_pictures():
    torch.manual_seed(9)
    layer = dict(vit(0).named_modules())
    path = next(name for name in layer if name.endswith(("layer.0", "layers.0")))
    return CrossEntropy() + SoftTargets() + HiddenMSE(path, projector=Projector("linear", 16, 24))


TASKS = {
    "texts": (llama, lambda n=8: list(texts(n)), of_texts),
    "sentences": (bert, lambda n=8: list(sentences(n)), of_sentences),
    "pictures": (vit, pictures, of_pictures),
}
every_task = pytest.mark.parametrize("task", TASKS)


def arguments(folder, **options):
    recipe = {
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.1,
        "optim": "sgd",
        "logging_steps": 1,
    }
    quiet = {
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(folder, **{**recipe, **quiet, "lr_scheduler_type": "constant", **options})


def trainer(
    task,
    folder,
    *,
    student=None,
    teacher=None,
    objective=None,
    data=None,
    kind=KD,
    eval_dataset=None,
    how=None,
    **options,
):
    model, examples, terms = TASKS[task]
    made = kind(
        model(0) if student is None else student,
        teacher=model(1, 24) if teacher is None else teacher,
        objective=terms() if objective is None else objective,
        args=arguments(folder, **options),
        train_dataset=examples() if data is None else data,
        eval_dataset=eval_dataset,
        **(how or {}),
    )
    made.pop_callback(transformers.PrinterCallback)
    return made


def trained(*what, resume=None, **options):
    made = trainer(*what, **options)
    made.train(resume_from_checkpoint=resume)
    return made


def state(made):
    return {
        **made.model.state_dict(),
        **{f"objective.{k}": v for k, v in made.distillation.objective.state_dict().items()},
    }


def steps(made):
    return [entry for entry in made.state.log_history if "loss" in entry]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run of a task as it is, trained once."""
    return cache(lambda task: trained(task, tmp_path_factory.mktemp(task)))


def check_same(one, other, **how):
    one, other = state(one), state(other)
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(other[name], one[name], **how, msg=lambda m, name=name: f"{name}: {m}")


EXACT = {"rtol": 0.0, "atol": 0.0}
ROUNDING = {"rtol": 1e-4, "atol": 1e-6}


def stacked(rows, *names):
    return {name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in names}


def test_the_first_loss_is_the_objectives(tmp_path):
    data = list(texts(4))
    made = trained("texts", tmp_path, data=data, max_steps=1)
    found, taught = steps(made)[0], made.distillation.teacher.model
    assert all(
        torch.equal(p, q) and p.grad is None
        for p, q in zip(taught.parameters(), llama(1, 24).parameters(), strict=True)
    )
    inputs = stacked(data, "input_ids", "attention_mask")
    student, teacher, objective = llama(0), llama(1, 24), of_texts()
    distillation = Distillation(student, teacher, objective)
    (z, mine), (t, other) = (x.taps(**inputs) for x in (distillation.student, distillation.teacher))
    aligned = next_token(
        z, t.detach(), torch.stack([row["labels"] for row in data]), attention_mask=inputs["attention_mask"]
    )
    loss, terms = objective(**aligned, student_hidden=mine, teacher_hidden=other, progress=0.0)
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for name, value in terms.items():
        assert found[name] == pytest.approx(value.item(), rel=1e-5)
    loss.backward()
    trained_parts = [*student.parameters(), *objective.parameters()]
    assert found["grad_norm"] == pytest.approx(
        torch.nn.utils.get_total_norm([p.grad for p in trained_parts]).item(), rel=1e-4
    )


@every_task
def test_accumulated_micro_batches_are_one_batch(tmp_path, whole, task):
    whole = whole(task)
    parts = trained(task, tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    check_same(whole, parts, **ROUNDING)
    for one, other in zip(steps(whole), steps(parts), strict=True):
        assert other == pytest.approx(one, rel=1e-4)
    start = {k: v for k, v in state(trainer(task, tmp_path)).items() if "projector" in k}
    assert start and all(not torch.equal(v, state(whole)[k]) for k, v in start.items())


@pytest.mark.parametrize("adapted", [False, True])
def test_a_run_that_is_resumed_is_the_whole_run(tmp_path, adapted):
    """With projectors, banks and a temperature that is learned."""
    torch.manual_seed(9)
    objective = (
        of_sentences()
        + SoftTargets(temperature=LearnedTemperature(minimum=1, maximum=21))
        + CRD("bert.pooler", student_width=16, teacher_width=24, examples=8, width=4, negatives=3)
    )

    def student():
        if not adapted:
            return bert(0)
        peft = pytest.importorskip("peft")
        torch.manual_seed(5)
        return peft.get_peft_model(
            bert(0), peft.LoraConfig(target_modules=["query", "value"], modules_to_save=["classifier"])
        )

    how = {"optim": "adamw_torch", "learning_rate": 1e-2, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = trained("sentences", tmp_path / "whole", student=student(), objective=objective.fresh(), **how)
    torch.manual_seed(77)
    resumed = trained(
        "sentences",
        tmp_path / "part",
        student=student(),
        objective=objective.fresh(),
        resume=str(tmp_path / "whole/checkpoint-2"),
        **how,
    )
    check_same(whole, resumed, **EXACT)
    assert [e["loss"] for e in steps(whole)][2:] == [e["loss"] for e in steps(resumed)][-2:]
    with pytest.raises(CheckpointError, match="another objective"):
        trained("sentences", tmp_path / "other", student=student(), resume=str(tmp_path / "whole/checkpoint-2"), **how)
    saved = safetensors.torch.load_file(
        tmp_path / f"whole/checkpoint-4/{'adapter_model' if adapted else 'model'}.safetensors"
    )
    if adapted:  # the adapters, and what was trained beside them
        assert all("lora_" in name or "classifier" in name for name in saved) and len(saved) == 10
    else:
        assert saved.keys() == bert(0).state_dict().keys()


def test_what_is_published_is_the_student_alone(tmp_path):
    made = trained("texts", tmp_path / "run")
    made.save_model(tmp_path / "out")
    again, info = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["unexpected_keys"] and not info["missing_keys"]
    check = {k: torch.equal(v, made.model.state_dict()[k]) for k, v in again.state_dict().items()}
    assert all(check.values())


def test_fused_is_the_same(tmp_path, whole):
    whole = whole("texts")
    fused = trained("texts", tmp_path, how={"fused": True})
    check_same(whole, fused, **ROUNDING)
    assert steps(fused)[1]["SoftTargets"] == pytest.approx(steps(whole)[1]["SoftTargets"], rel=1e-4)


def test_gradient_norms_are_logged_by_name(tmp_path):
    data = list(texts(4))
    found = steps(trained("texts", tmp_path, data=data, how={"gradient_norms": True, "fused": True}))
    student, objective = llama(0), of_texts()
    distillation = Distillation(student, llama(1, 24), objective)
    batch = stacked(data, "input_ids", "attention_mask", "labels")
    _, terms = distillation(student, batch, progress=0.0)
    for name, norm in objective.gradient_norms(terms, student.parameters(), 0.0).items():
        assert found[0][f"{name}.gradient_norm"] == pytest.approx(norm.item(), rel=1e-4)
    assert found[1]["HiddenMSE.gradient_norm"] > 0


@pytest.mark.parametrize(("task", "fused"), [("texts", False), ("texts", True), ("sentences", False)])
def test_evaluation_measures_what_fit_does(tmp_path, task, fused):
    model, examples, _ = TASKS[task]
    data = examples(7)
    made = trainer(task, tmp_path, eval_dataset=data, per_device_eval_batch_size=3, how={"fused": fused})
    found = made.evaluate()
    inputs = stacked(data, *({"input_ids", "attention_mask", "token_type_ids"} & data[0].keys()))
    labels = torch.stack([row["labels"] for row in data])
    with torch.no_grad():
        z, t = (m.eval()(**inputs).logits for m in (model(0), model(1, 24)))
    if task == "texts":
        z, t, labels = z[:, :-1], t[:, :-1], labels[:, 1:]
    wanted = measure(z, labels, t, mask=labels != -100)
    assert {k: found[f"eval_{k}"] for k in wanted} == pytest.approx(wanted, rel=1e-4)
    assert found["eval_loss"] > 0


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_student_is_the_same(tmp_path):
    def one_layer(**options):
        torch.manual_seed(9)
        objective = CrossEntropy() + SoftTargets() + HiddenMSE(LAYER, projector=Projector("linear", 16, 24))
        made = {"student": llama(0, layers=1), "teacher": llama(1, 24, layers=1), "objective": objective}
        return trained("texts", tmp_path, **made, how={"fused": True}, **options)

    plain, compiled = one_layer(), one_layer(torch_compile=True, torch_compile_backend="eager")
    assert hasattr(compiled.model_wrapped, "_orig_mod") and torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    check_same(plain, compiled, **ROUNDING)


@every_task
def test_checkpointed_activations_are_the_same(tmp_path, whole, task):
    check_same(whole(task), trained(task, tmp_path, activation_checkpointing=True), **ROUNDING)


@every_task
def test_a_teacher_in_half_precision_stays_so(tmp_path, whole, task):
    teacher = TASKS[task][0](1, 24)
    half = trained(task, tmp_path, teacher=teacher.to(torch.bfloat16))
    assert {p.dtype for p in teacher.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in half.model.parameters()} == {torch.float32}
    assert steps(half)[0]["loss"] == pytest.approx(steps(whole(task))[0]["loss"], rel=0.05)


def test_a_student_in_half_precision_is_warned_of(tmp_path):
    """As transformers loads what was saved in it; adapters are trained in float32 beside it."""
    with pytest.warns(UserWarning, match="LlamaForCausalLM is trained in bfloat16, in which small steps are lost"):
        trainer("texts", tmp_path, student=llama(0).bfloat16())
    peft = pytest.importorskip("peft")
    trainer(
        "texts", tmp_path, student=peft.get_peft_model(llama(0).bfloat16(), peft.LoraConfig(target_modules=["q_proj"]))
    )


def test_the_teacher_is_the_student_without_its_adapters(tmp_path):
    peft = pytest.importorskip("peft")
    student = peft.get_peft_model(llama(0), peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    objective = SoftTargets() + HiddenMSE(LAYER)
    made = trained(
        "texts", tmp_path, student=student, teacher=without_adapter(student), objective=objective, how={"fused": True}
    )
    losses = [entry["loss"] for entry in steps(made)]
    assert losses[0] > losses[1] > 0
    assert torch.equal(student.get_base_model().lm_head.weight, llama(0).lm_head.weight)


def test_a_teacher_reads_columns_of_its_own(tmp_path):
    """DistilBERT has no token types, and its teacher has."""
    shape = {"vocab_size": V, "dim": 16, "hidden_dim": 16, "n_layers": 1, "n_heads": 2, "num_labels": 3}
    shape |= {"dropout": 0.0, "attention_dropout": 0.0}
    torch.manual_seed(0)
    student = transformers.DistilBertForSequenceClassification(
        transformers.DistilBertConfig(**shape, seq_classif_dropout=0.0)
    )
    teacher, data = bert(1, 24), list(sentences(4))
    with torch.no_grad():
        teacher.bert.embeddings.token_type_embeddings.weight[1].mul_(100)
    made = trainer(
        "sentences", tmp_path, student=student, teacher=teacher, objective=LogitMSE(), data=data, max_steps=1
    )
    with torch.no_grad():
        z = student(**stacked(data, "input_ids", "attention_mask")).logits
        t = teacher.eval()(**stacked(data, "input_ids", "attention_mask", "token_type_ids")).logits
    made.train()
    assert steps(made)[0]["loss"] == pytest.approx((z - t).square().mean().item(), rel=1e-4)


def part_of(batch, part):
    return {name: tensor[part] for name, tensor in batch.items()}


@pytest.mark.parametrize("task", ["sentences", "pictures"])
def test_an_example_without_a_label_does_not_count(tmp_path, task):
    """Its label is −100: parts add up to the whole, as the labels that count say it; layers learn from all examples."""
    model, examples, objective = TASKS[task]
    data = [{**row, "labels": torch.tensor([0, 1, -100, -100][i % 4])} for i, row in enumerate(examples(4))]
    batch = stacked(data, *data[0])
    student, teacher = model(0).eval(), model(1, 24).eval()
    distillation = Distillation(student, teacher, objective())
    (whole, terms), (same, _) = (distillation(student, batch, counts=c) for c in (None, distillation.counts([batch])))
    inputs = {name: x for name, x in batch.items() if name not in ("labels", "index")}
    wanted = torch.nn.functional.cross_entropy(student(**inputs).logits[:2], batch["labels"][:2])
    assert terms["CrossEntropy"].item() == pytest.approx(wanted.item(), rel=1e-5)
    torch.testing.assert_close(same, whole)
    for cut in (1, 2):  # the second of these has no label in its last part
        parts = [part_of(batch, part) for part in (slice(cut), slice(cut, 4))]
        counts = distillation.counts(parts)
        torch.testing.assert_close(sum(distillation(student, part, counts=counts)[0] for part in parts), whole)
    found = trainer(task, tmp_path, eval_dataset=data, objective=1.0 * CrossEntropy()).evaluate()
    assert found["eval_loss"] == pytest.approx(wanted.item(), rel=1e-4)
    assert found["eval_cross_entropy"] == pytest.approx(wanted.item(), rel=1e-4)


def test_one_label_a_text_says_nothing_of_logits_a_token():
    """As of a data set with a column label, whose texts a masked language model is distilled on."""
    torch.manual_seed(0)
    shape = {"vocab_size": V, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    student, teacher = (
        transformers.BertForMaskedLM(transformers.BertConfig(hidden_size=16, **shape)).eval() for _ in "st"
    )
    batch = {"input_ids": torch.tensor([[3, 1, 4], [1, 5, 9]]), "labels": torch.tensor([0, -100])}
    distillation = Distillation(student, teacher, LogitMSE())
    wanted = (student(batch["input_ids"]).logits - teacher(batch["input_ids"]).logits).square().mean()
    for counts in (None, distillation.counts([batch])):
        assert distillation(student, batch, counts=counts)[0].item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("task", "fused"), [("texts", False), ("texts", True), ("sentences", False), ("pictures", False)]
)
def test_a_step_without_a_label_trains_nothing(tmp_path, task, fused):
    """Whose labels are all −100; asked of it directly, an objective refuses it."""
    model, examples, _ = TASKS[task]
    data = [{**row, "labels": torch.full_like(row["labels"], -100)} for row in examples(4)]
    objective = CrossEntropy() + SoftTargets() + LogitMSE() + HardTargets()
    made = trained(task, tmp_path, data=data, objective=objective, how={"fused": fused}, weight_decay=0.0)
    assert [(log["loss"], log["CrossEntropy"], log["grad_norm"]) for log in steps(made)] == [(0.0, 0.0, 0.0)] * 2
    before = model(0).state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.model.state_dict().items())
    with pytest.raises(ValueError, match="no position to average over"):
        made.distillation(made.model, stacked(data, *data[0]))


def test_a_step_without_a_label_trains_layers():
    """Of a model of two parts; those of its decoder, which read no label, are nothing."""
    torch.manual_seed(0)
    shape = {"vocab_size": V, "d_kv": 8, "d_ff": 16, "d_model": 16, "num_layers": 1, "num_heads": 2}
    config = transformers.T5Config(**shape, pad_token_id=0, decoder_start_token_id=0)
    student, teacher = (transformers.T5ForConditionalGeneration(config).eval() for _ in "st")
    cross, states = "decoder.block.0.layer.1.EncDecAttention", ("encoder.block.0", "decoder.block.0")
    objective = CrossEntropy() + AttentionMaps(cross) + HiddenMSE(states[0]).named("read") + HiddenMSE(states[1])
    batch = {"input_ids": torch.tensor([[3, 1, 4], [1, 5, 9]]), "labels": torch.full((2, 2), -100)}
    distillation = Distillation(student, teacher, objective)
    loss, terms = distillation(student, batch, counts=distillation.counts([batch]))
    assert loss.item() == terms["read"].item() > 0


@pytest.mark.parametrize("fused", [False, True])
def test_a_batch_without_a_label_is_left_out_of_the_evaluation(tmp_path, fused):
    """The last one is of one row: each batch weighs as its rows."""
    data = list(texts(7))
    for row in data[3:6]:
        row["labels"] = torch.full_like(row["labels"], -100)
    how = {"per_device_eval_batch_size": 3, "how": {"fused": fused}, "objective": 1.0 * CrossEntropy()}
    found = trainer("texts", tmp_path, eval_dataset=data, **how).evaluate()
    wanted = trainer("texts", tmp_path, eval_dataset=data[:3] + data[6:], **how).evaluate()
    measured = [name for name in wanted if not name.endswith(("second", "time"))]
    assert {name: found[name] for name in measured} == pytest.approx({name: wanted[name] for name in measured})
    made = trainer("texts", tmp_path, eval_dataset=data[3:6], **how)
    with pytest.raises(ValueError, match="nothing that is evaluated has a label that counts"):
        made.evaluate()
    made.predict([{name: row[name] for name in ("input_ids", "attention_mask")} for row in data[3:6]])


def test_predictions_are_those_of_the_trainer_alone(tmp_path):
    """Not shifted, as what computes metrics shifts them itself."""
    data, how = list(texts(4)), {"args": arguments(tmp_path)}
    alone, distilled = (
        Trainer(llama(0), **how),
        KD(llama(0), teacher=llama(1), objective=ForwardKL(), fused=True, **how),
    )
    one, other = (made.predict(data) for made in (alone, distilled))
    torch.testing.assert_close(*(torch.tensor(x.predictions) for x in (one, other)))
    assert (one.label_ids == other.label_ids).all() and one.predictions.shape == (4, 12, V)


def test_an_encoder_and_decoder(tmp_path):
    def t5(seed, width):
        torch.manual_seed(seed)
        shape = {"vocab_size": V, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
        return transformers.T5ForConditionalGeneration(
            transformers.T5Config(d_model=width, **shape, pad_token_id=0, decoder_start_token_id=0)
        )

    data = [{**row, "labels": row["labels"][:6]} for row in texts(4)]
    made = trained(
        "texts", tmp_path, student=t5(0, 16), teacher=t5(1, 24), objective=1.0 * CrossEntropy(), data=data, max_steps=1
    )
    own = t5(0, 16)(**stacked(data, "input_ids", "attention_mask", "labels")).loss
    assert steps(made)[0]["loss"] == pytest.approx(own.item(), rel=1e-4)
    # Layers of both parts, each with the mask of its own; accumulated as at once.
    batch = stacked(data, "input_ids", "attention_mask", "labels")
    read, written = batch["attention_mask"].bool(), batch["labels"] != -100
    objective = (
        HiddenMSE("encoder.block.0").named("read")
        + HiddenMSE("decoder.block.0").named("written")
        + AttentionMaps("decoder.block.0.layer.1.EncDecAttention").named("cross")
    )
    student, teacher = t5(0, 16), t5(1, 16).eval()
    distillation = Distillation(student, teacher, objective)
    whole, terms = distillation(student, batch)
    names = {"output_hidden_states": True, "output_attentions": True}
    for model in (student, teacher):
        model.set_attn_implementation("eager")
    with torch.no_grad():
        s, t = (model(**batch, **names) for model in (student.eval(), teacher))
    taps = [Taps(model, ["encoder.block.0", "decoder.block.0"]) for model in (student, teacher)]
    states = [each(**batch)[1] for each in taps]
    for name, mask, layer in (("read", read, "encoder.block.0"), ("written", written, "decoder.block.0")):
        difference = states[0][layer] - states[1][layer]
        assert terms[name].item() == pytest.approx(difference[mask].square().mean().item(), rel=1e-4)
    student.train()
    maps = [x.cross_attentions[0] for x in (s, t)]
    counted = (written[:, :, None] & read[:, None, :])[:, None]
    expected = torch.where(counted, maps[0] - maps[1], 0.0).square().sum((2, 3)).mean()
    assert terms["cross"].item() == pytest.approx(expected.item(), rel=1e-3)
    parts = [{k: x[i : i + 2] for k, x in batch.items()} for i in (0, 2)]
    counts = distillation.counts(parts)
    assert [counts["hidden_count"][x].item() for x in ("encoder", "decoder")] == [read.sum(), written.sum()]
    summed = sum(distillation(student, part, counts=counts)[0] for part in parts)
    torch.testing.assert_close(summed, whole)


def test_an_encoder_and_decoder_that_classify():
    """One label for a text, which the decoder reads one place later than the encoder."""
    torch.manual_seed(0)
    shape = {"vocab_size": V, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "d_model": 16, "num_labels": 3}
    config = transformers.T5Config(**shape, pad_token_id=0, decoder_start_token_id=0, eos_token_id=1)
    model = transformers.T5ForSequenceClassification(config).eval()
    tokens = torch.tensor([[5, 6, 7, 1], [8, 1, 0, 0]])
    read = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]).bool()  # by the decoder: a beginning, and then the text
    batch = {"input_ids": tokens, "attention_mask": (tokens > 0).long(), "labels": torch.tensor([2, 0])}
    objective = CrossEntropy() + HiddenMSE("transformer.decoder.block.0")
    teacher = copy.deepcopy(model)
    with torch.no_grad():
        teacher.transformer.shared.weight[0] += 1.0  # of what the decoder begins with, and of padding
        taps = [Taps(one, ["transformer.decoder.block.0"]) for one in (model, teacher)]
        states = [each(**batch)[1]["transformer.decoder.block.0"] for each in taps]
    distillation = Distillation(model, teacher, objective)
    _, terms = distillation(model, batch)
    assert terms["CrossEntropy"].item() == pytest.approx(model(**batch).loss.item(), rel=1e-5)
    expected = (states[0] - states[1])[read].square().mean()
    assert terms["HiddenMSE"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_of_sound_the_encoders_mask_is_not_known():
    model = transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(
            vocab_size=V, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=16, decoder_ffn_dim=16, num_mel_bins=4, max_source_positions=8, max_target_positions=8,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        )
    )  # fmt: skip
    batch = {"input_features": torch.randn(2, 4, 16), "labels": torch.tensor([[3, 4], [5, -100]])}
    teacher = copy.deepcopy(model)
    found, _ = Distillation(model, teacher, 1.0 * HiddenMSE("model.decoder.layers.0"))(model, batch)
    assert found.item() < 1e-6
    with pytest.raises(ValueError, match="of decoder, which mask goes with 'model.encoder.layers.0'"):
        Distillation(model, teacher, 1.0 * HiddenMSE("model.encoder.layers.0"))(model, batch)


def test_a_model_without_a_head_learns_by_its_layers(tmp_path):
    """A sentence encoder: no logits and no labels; accumulated as at once, padded or with images, which say nothing of padding."""
    shape = {"vocab_size": V, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    config = transformers.BertConfig(hidden_size=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **shape)
    data = [{k: x for k, x in row.items() if k != "labels"} for row in texts()]
    objective = HiddenMSE("encoder.layer.0") + HiddenCosine("pooler")
    losses = []
    for parts in (1, 2):
        torch.manual_seed(0)
        made = KD(
            transformers.BertModel(config),
            teacher=transformers.BertModel(config),
            objective=objective,
            args=arguments(tmp_path, per_device_train_batch_size=4 // parts, gradient_accumulation_steps=parts),
            train_dataset=data,
            eval_dataset=data,
        )
        made.train()
        losses.append([log["loss"] for log in steps(made)])
    torch.testing.assert_close(*map(torch.tensor, losses), rtol=1e-4, atol=1e-5)
    assert made.evaluate()["eval_loss"] > 0
    distillation = Distillation(made.model, transformers.BertModel(config), objective)
    batch = {"input_ids": torch.ones(3, 4).long()}
    whole, _ = distillation(made.model, batch)
    part, _ = distillation(made.model, {"input_ids": torch.ones(1, 4).long()}, counts=distillation.counts([batch]))
    assert part.item() == pytest.approx(whole.item() / 3, rel=1e-4)
    with pytest.raises(TypeError, match="CrossEntropy needs student_logits=…"):
        needs = CrossEntropy() + HiddenMSE("pooler")
        Distillation(made.model, copy.deepcopy(made.model), needs)(made.model, batch | {"labels": torch.ones(3).long()})


def test_a_regression_head_of_one_output():
    torch.manual_seed(0)
    shape = {"vocab_size": V, "intermediate_size": 16, "num_attention_heads": 2, "num_labels": 1, "hidden_size": 16}
    config = transformers.BertConfig(**shape, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    student, teacher = (transformers.BertForSequenceClassification(config) for _ in range(2))
    batch = stacked(
        [{**row, "labels": torch.tensor(n / 3)} for n, row in enumerate(texts(4))],
        "input_ids",
        "attention_mask",
        "labels",
    )
    distillation = Distillation(student, teacher, SquaredError() + LogitMSE())
    whole, terms = distillation(student, batch)
    z, t = (model.eval()(**{**batch, "labels": None}).logits for model in (student, teacher))
    assert terms["SquaredError"].item() == pytest.approx((z[:, 0] - batch["labels"]).square().mean().item(), rel=1e-4)
    assert terms["LogitMSE"].item() == pytest.approx((z - t).square().mean().item(), rel=1e-4)
    student.train()
    parts = [{k: x[i : i + 2] for k, x in batch.items()} for i in (0, 2)]
    counts = distillation.counts(parts)
    torch.testing.assert_close(sum(distillation(student, part, counts=counts)[0] for part in parts), whole)


def test_a_collator_that_gives_no_labels_gives_none():
    """DataCollatorForSeq2Seq, say, gives None."""
    batch = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "attention_mask": torch.ones(1, 4).long()}
    student = llama(0)
    distillation = Distillation(student, llama(1), 1.0 * ForwardKL())
    assert torch.equal(distillation(student, batch | {"labels": None})[0], distillation(student, batch)[0])
    with pytest.raises(TypeError, match="CrossEntropy needs labels"):
        Distillation(student, None, CrossEntropy())(student, batch | {"labels": None})


def test_each_head_has_terms_of_its_own():
    """DeiT: labels go to the one, the teacher's likeliest class to the other."""
    torch.manual_seed(0)
    shape = {"intermediate_size": 16, "num_attention_heads": 2, "image_size": 8, "patch_size": 4, "num_labels": 3}
    student = transformers.DeiTForImageClassificationWithTeacher(
        transformers.DeiTConfig(hidden_size=16, num_hidden_layers=1, hidden_dropout_prob=0.0, **shape)
    )
    teacher, batch = vit(1), stacked(pictures(4), "pixel_values", "labels")
    objective = CrossEntropy().at_head("cls_classifier") + HardTargets().at_head("distillation_classifier")
    assert repr(objective).endswith("HardTargets().at_head('distillation_classifier')")
    _, terms = Distillation(student, teacher, objective)(student, batch)
    output = student(batch["pixel_values"])
    likeliest = teacher.eval()(batch["pixel_values"]).logits.argmax(-1)
    for name, logits, labels in (
        ("CrossEntropy", output.cls_logits, batch["labels"]),
        ("HardTargets", output.distillation_logits, likeliest),
    ):
        assert terms[name].item() == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_a_teachers_cache_is_columns_of_the_data(tmp_path):
    """A shuffled data set learns what fit learns of each row, through the collator of transformers."""
    from kdlab.data import Tokens
    from kdlab.language import TeacherCache, TeacherColumns, write_cache

    row = torch.randint(V, (8 * 6 + 1,), generator=torch.Generator().manual_seed(0))
    tokens = Tokens(row.to(torch.int16), 6, torch.ones(V, dtype=torch.long))
    teacher, student = CausalLM(llama(1, 24)), llama(0)
    write_cache(tmp_path / "cache", teacher, tokens, kind="top-k-rest", entries=5)
    cached = TeacherCache(tmp_path / "cache", tokens)
    columns = cached.columns(tokens)
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)][::-1]
    reads = TeacherColumns(teacher.vocabulary, rest=True)
    how = {"teacher": reads, "objective": CrossEntropy() + SparseForwardKL(), "data": rows, "eval_dataset": rows}
    made = trainer("texts", tmp_path, student=student, **how, per_device_train_batch_size=8)
    batch = next(iter(made.get_train_dataloader()))
    _, terms = made.distillation(student, batch)
    inputs, _, index = next(tokens.batches(8))
    with torch.no_grad():
        wanted = sparse_forward_kl(student(inputs).logits[:, :-1], cached(index)[:, :-1])
    assert terms["SparseForwardKL"].item() == pytest.approx(wanted.item(), rel=1e-5)
    fused, _ = Distillation(student, reads, how["objective"], fused=True)(student, batch)
    assert fused.item() == pytest.approx(sum(terms.values()).item(), rel=1e-5)
    found = made.evaluate()
    assert found["eval_accuracy"] >= 0 and "eval_kl_to_teacher" not in found


def test_what_is_kept_of_a_teacher_on_rows_of_ones_own(tmp_path):
    """Of different length, with a prompt that is not learned, filled up by the collator of transformers."""
    from kdlab.language import CollateColumns, TeacherColumns, teacher_columns

    def collate(rows):
        fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
        longest = max(len(row["labels"]) for row in rows)
        return {k: torch.tensor([[*row[k], *[x] * (longest - len(row[k]))] for row in rows]) for k, x in fill.items()}

    teacher, student = llama(1, 24), llama(0)
    rows = [
        {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [-100, *ids[1:]]}
        for ids in ([3, 1, 4], [1, 5, 9, 2, 6], [5, 3])
    ]
    rows = [
        row | teacher_columns(CausalLM(teacher), row["input_ids"], kind="top-k-rest", entries=V - 1) for row in rows
    ]
    how = {"teacher": TeacherColumns(V, rest=True), "objective": 1.0 * SparseForwardKL(), "data": rows}
    made = trainer(
        "texts",
        tmp_path,
        student=student,
        **how,
        how={"data_collator": CollateColumns(collate)},
        per_device_train_batch_size=3,
    )
    batch = next(iter(made.get_train_dataloader()))
    loss, _ = made.distillation(student, batch)
    whole, _ = Distillation(student, teacher, 1.0 * ForwardKL())(student, batch)
    assert loss.item() == pytest.approx(whole.item(), rel=1e-4)


def test_spans_are_the_positions_that_a_module_of_ones_own_returns():
    """Question answering: two distributions over the tokens, none of them padding."""

    class Spans(torch.nn.Module):
        def __init__(own, model):
            super().__init__()
            own.model = model

        def forward(own, input_ids, attention_mask):
            found = own.model(input_ids=input_ids, attention_mask=attention_mask)
            logits = torch.stack([found.start_logits, found.end_logits], 1)
            return logits.masked_fill(attention_mask[:, None] == 0, -torch.inf)

    shape = {
        "vocab_size": V,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    student, teacher = (
        Spans(transformers.BertForQuestionAnswering(transformers.BertConfig(**shape))).eval() for _ in "st"
    )
    batch = {"input_ids": torch.tensor([[3, 1, 4], [1, 5, 0]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    batch["labels"] = torch.tensor([[0, 2], [1, 1]])
    _, terms = Distillation(student, teacher, CrossEntropy() + SoftTargets())(student, batch)
    z = student(batch["input_ids"], batch["attention_mask"])
    wanted = sum(torch.nn.functional.cross_entropy(z[:, i], batch["labels"][:, i]) for i in (0, 1)) / 2
    assert terms["CrossEntropy"].item() == pytest.approx(wanted.item(), rel=1e-5)
    assert terms["SoftTargets"].isfinite()


def test_labels_that_are_none_are_no_labels():
    """As DataCollatorForSeq2Seq has them where the data have none."""
    batch = {"input_ids": torch.tensor([[3, 1, 4]]), "attention_mask": torch.ones(1, 3)}
    student, teacher = llama(0), llama(1)
    distillation = Distillation(student, teacher, ForwardKL())
    assert distillation.counts([batch]) == distillation.counts([{**batch, "labels": None}])
    assert torch.equal(distillation(student, batch)[0], distillation(student, {**batch, "labels": None})[0])
    with pytest.raises(TypeError, match="CrossEntropy needs labels"):
        Distillation(student, teacher, CrossEntropy())(student, {**batch, "labels": None})


def test_a_teacher_of_another_tokeniser_reads_tokens_of_its_own():
    class Other(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, teacher_input_ids, teacher_attention_mask):
            return self.model(input_ids=teacher_input_ids, attention_mask=teacher_attention_mask)

    student, teacher, own = bert(0).eval(), bert(1, 24).eval(), torch.tensor([[2, 7, 1, 8]])
    batch = {"input_ids": torch.tensor([[3, 1]]), "attention_mask": torch.ones(1, 2), "labels": torch.tensor([0])}
    batch |= {"teacher_input_ids": own, "teacher_attention_mask": torch.ones(1, 4)}
    _, terms = Distillation(student, Other(teacher), LogitMSE())(student, batch)
    wanted = student(batch["input_ids"]).logits - teacher(own).logits
    assert terms["LogitMSE"].item() == pytest.approx(wanted.square().mean().item(), rel=1e-5)


def test_a_teacher_with_a_padded_vocabulary_is_evaluated_beside(tmp_path):
    """What compares all classes is left out; the student's own measures stay."""
    objective = CrossEntropy() + SharedVocabulary(ForwardKL(), torch.arange(V))
    torch.manual_seed(0)
    shape = {"intermediate_size": 16, "num_attention_heads": 2, "hidden_size": 16, "num_hidden_layers": 1}
    padded = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=V + 8, **shape))
    for fused in (False, True):
        made = KD(
            llama(0),
            teacher=padded,
            objective=objective,
            fused=fused,
            args=arguments(tmp_path),
            eval_dataset=list(texts(4)),
        )
        found = made.evaluate()
        assert found["eval_cross_entropy"] > 0 and "eval_kl_to_teacher" not in found


def test_a_teacher_with_a_tokeniser_of_its_own(tmp_path):
    """Accumulated as at once; evaluated by the student's tokens alone."""
    pytest.importorskip("tokenizers")
    from kdlab.language import Retokenised, first_bytes, train_tokeniser

    words = "to be or not to be that is the question "
    few, many = (train_tokeniser([words * 9], n) for n in (262, 270))
    torch.manual_seed(0)
    shape = {"intermediate_size": 16, "num_attention_heads": 2, "hidden_size": 16, "num_hidden_layers": 1}
    student, teacher = (
        transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=n, **shape)) for n in (264, 270)
    )
    rows = [few.encode(words[n:]).ids[: 9 + n] for n in range(8)]
    data = [
        {
            "input_ids": torch.tensor(row + [0] * (17 - len(row))),
            "attention_mask": torch.tensor([1] * len(row) + [0] * (17 - len(row))),
            "labels": torch.tensor([-100] * 3 + row[3:] + [-100] * (17 - len(row))),
        }
        for row in rows
    ]
    losses = []
    for parts in (1, 2):
        made = KD(
            copy.deepcopy(student),
            teacher=Retokenised(teacher, many, few),
            objective=CrossEntropy() + MergedVocabulary(ForwardKL(), *first_bytes(few, many)) + MergedSpans(),
            args=arguments(tmp_path, per_device_train_batch_size=4 // parts, gradient_accumulation_steps=parts),
            train_dataset=data,
            eval_dataset=data,
        )
        made.train()
        losses.append([(log["loss"], log["MergedVocabulary"], log["MergedSpans"]) for log in steps(made)])
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-4, atol=1e-5)
    found = made.evaluate()
    assert found["eval_cross_entropy"] > 0 and "eval_kl_to_teacher" not in found


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")  # TRL's own default
def test_in_the_trainer_of_trl(tmp_path):
    trl = pytest.importorskip("trl")
    tokenizers = pytest.importorskip("tokenizers")
    datasets = pytest.importorskip("datasets")

    class SFT(Distil, trl.SFTTrainer):
        pass

    letters = {chr(97 + i): i for i in range(26)} | {"<pad>": 26, "<eos>": 27}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(letters, unk_token="a"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    tokeniser = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>")
    data = datasets.Dataset.from_dict({"text": ["abcabc", "hello", "distil", "ab"]})
    quiet = {
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "bf16": False,
        "dataloader_pin_memory": False,
    }
    args = trl.SFTConfig(
        tmp_path,
        max_steps=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        logging_steps=1,
        max_length=8,
        **quiet,
    )
    made = SFT(
        llama(0),
        teacher=llama(1, 24),
        objective=of_texts(),
        fused=True,
        args=args,
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokeniser,
    )
    made.train()
    assert steps(made)[0]["SoftTargets"] > 0
    assert made.evaluate()["eval_kl_to_teacher"] > 0


def test_in_a_loop_of_accelerate():
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    student, objective = llama(0), of_texts()
    distillation = Distillation(student, llama(1, 24), objective, fused=True)
    optimizer = torch.optim.SGD([*student.parameters(), *objective.parameters()], 0.1)
    model, optimizer = accelerator.prepare(student, optimizer)
    batches = [
        stacked(rows, "input_ids", "attention_mask", "labels") for rows in (list(texts())[:4], list(texts())[4:])
    ]
    counts = distillation.counts(batches)
    parts = [distillation(model, batch, counts=counts, progress=0.0) for batch in batches]
    accelerator.backward(sum(loss for loss, _ in parts))
    distillation.average_gradients()
    whole, _ = distillation(model, stacked(list(texts()), "input_ids", "attention_mask", "labels"), progress=0.0)
    assert sum(loss for loss, _ in parts).item() == pytest.approx(whole.item(), rel=1e-5)
    assert all(p.grad is not None for p in objective.parameters())
    distillation.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing_factor": 0.1}, "SmoothedLabels"),
        ({"gradient_accumulation_steps": 2, "objective": DIST()}, "DIST compare"),
        ({"gradient_accumulation_steps": 2, "how": {"gradient_norms": True}}, "run as one"),
        ({"how": {"optimizers": (torch.optim.SGD([torch.zeros(1)], 0.1), None)}}, "objective.parameters"),
    ],
)
def test_what_would_be_ignored_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        trained("texts", tmp_path, **options)


def test_terms_that_know_the_training_set_are_not_asked_of_another(tmp_path):
    memory = CRD("bert.pooler", student_width=16, teacher_width=24, examples=8, width=4, negatives=3)
    held_out = list(sentences(3))
    found = trainer("sentences", tmp_path, objective=CrossEntropy() + memory, eval_dataset=held_out).evaluate()
    assert found["eval_loss"] == pytest.approx(found["eval_cross_entropy"], rel=1e-5)


def test_what_does_not_fit_is_refused():
    with pytest.raises(TypeError, match="not 'kd'"):
        Distillation(llama(0), llama(1), "kd")
    with pytest.raises(ValueError, match="needs a teacher"):
        Distillation(llama(0), None, SoftTargets())
    with pytest.raises(ValueError, match="no causal language model"):
        Distillation(bert(0), bert(1), SoftTargets(), fused=True)
    with pytest.raises(TypeError, match="a batch is tensors by name, .*, not tuple"):
        Distillation(bert(0), bert(1), SoftTargets())(bert(0), (torch.ones(1, 2), torch.ones(1)))


def on_one_of_two(rank, port, folder, task):
    """One of two processes, each of which draws an objective of its own."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    objective = TASKS[task][2]()
    if rank:
        objective.reset_parameters()
    fused = {"fused": task == "texts"}
    made = trainer(
        task, folder, objective=objective, how=fused, per_device_train_batch_size=1, gradient_accumulation_steps=2, ddp_backend="gloo",
        eval_dataset=TASKS[task][1](7), per_device_eval_batch_size=2, **SCHEDULE,
    )  # fmt: skip
    made.train()
    found = {**state(made), "log": steps(made), "measured": made.evaluate()}
    if task == "texts":
        found["sharded"] = gradients_of_texts(rank)
    torch.save(found, folder / f"{rank}.pt")
    leave()


def gradients_of_texts(rank=None):
    """Of all texts at once; or of one process's half of them, where both models are sharded over two."""
    student, teacher = llama(0), llama(1, 24)
    objective = CrossEntropy() + SoftTargets() + AttentionMaps(LAYER + ".self_attn", normalise="queries")
    distillation = Distillation(student, teacher, objective, fused=True)
    rows = list(texts())
    if rank is not None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh, rows = init_device_mesh("cpu", (2,)), rows[rank::2]
        for model in (student, teacher):
            for layer in (*model.model.layers, model):
                fully_shard(layer, mesh=mesh)
        assert next(teacher.parameters()).to_local().numel() < next(llama(1, 24).parameters()).numel()
    batch = stacked(rows, "input_ids", "attention_mask", "labels")
    loss, _ = distillation(student, batch, counts=distillation.counts([batch]))
    loss.backward()
    return {name: getattr(p.grad, "full_tensor", lambda p=p: p.grad)() for name, p in student.named_parameters()}


SCHEDULE = {"max_grad_norm": 0.05, "weight_decay": 0.1}


@pytest.mark.parametrize("task", ["texts", "sentences"])
def test_two_processes_are_one(tmp_path, task):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(on_one_of_two, (port, tmp_path, task), nprocs=2, start_method="fork")
    one = trained(task, tmp_path / "one", eval_dataset=TASKS[task][1](7), **SCHEDULE)
    wanted = one.evaluate()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        for name, value in state(one).items():
            torch.testing.assert_close(found[name], value, **ROUNDING, msg=lambda m, name=name: f"{name}: {m}")
        assert found["log"] == [pytest.approx(entry, rel=1e-3) for entry in steps(one)]
        if task == "texts":
            torch.testing.assert_close(found["sharded"], gradients_of_texts(), **ROUNDING)
        measured = {
            k: v
            for k, v in found["measured"].items()
            if k in wanted and "loss" not in k and "second" not in k and "time" not in k
        }
        assert measured == pytest.approx({k: wanted[k] for k in measured}, rel=1e-4) and "eval_agreement" in measured
