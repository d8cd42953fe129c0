"""The code in the reference pages runs as it stands."""

import importlib
import re
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[1]


def blocks(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


class Stage(nn.Module):
    """A stage as torchvision writes it: a convolution and a ReLU in place."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.conv(x))


class ResNetLike(nn.Module):
    """Modules of the names, strides and relative widths of torchvision's ResNets."""

    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 2, padding=1)
        for k, (inputs, outputs) in enumerate([(1, 1), (1, 2), (2, 4), (4, 8)], start=1):
            setattr(self, f"layer{k}", Stage(width * inputs, width * outputs, 1 if k == 1 else 2))
        self.fc = nn.Linear(8 * width, 10)

    def forward(self, x):
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        return self.fc(x.mean((2, 3)))


@pytest.fixture
def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(width, layers, heads):
        config = LlamaConfig(
            vocab_size=50,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=2,
            max_position_embeddings=64,
        )
        return LlamaForCausalLM(config)

    return make


def text_batch():
    tokens, real = torch.randint(50, (2, 12)), torch.ones(2, 12, dtype=torch.int64)
    real[1, 8:] = 0
    return {"input_ids": tokens, "attention_mask": real, "labels": tokens.masked_fill(real == 0, -100)}


def test_the_loop_for_images_of_the_api_page():
    student, teacher = ResNetLike(64), ResNetLike(256)
    before = {k: v.clone() for k, v in student.state_dict().items()}
    loader = [(torch.randn(4, 3, 32, 32), torch.randint(10, (4,)))]
    names = {"torch": torch, "student": student, "teacher": teacher, "loader": loader}
    exec(blocks("book/api.md")[0], names)
    assert torch.isfinite(names["loss"]) and len(names["terms"]) == 4
    assert all(not torch.equal(before[k], v) for k, v in student.state_dict().items())


def test_the_loop_for_language_models_of_the_api_page(llama):
    from kdlab.training import Taps

    names = {"torch": torch, "Taps": Taps, "student": llama(64, 2, 4), "teacher": llama(128, 4, 8)}
    exec(blocks("book/api.md")[1], names | {"loader": [text_batch()]})


def test_the_trainer_of_the_api_page(llama, tmp_path):
    from transformers import TrainingArguments

    from kdlab.objectives import CrossEntropy, SoftTargets

    rows = [{k: v[i] for k, v in text_batch().items()} for i in range(2) for _ in range(4)]
    arguments = TrainingArguments(
        tmp_path,
        max_steps=2,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=2,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        dataloader_pin_memory=False,
    )
    student, teacher = llama(64, 2, 4), llama(128, 4, 8)
    before = student.model.embed_tokens.weight.clone()
    names = {"student": student, "teacher": teacher, "args": arguments, "data": rows, "held_out": rows[:2]}
    exec(blocks("book/api.md")[2], names | {"objective": CrossEntropy() + SoftTargets(temperature=1)})
    assert not torch.equal(before, student.model.embed_tokens.weight)


def test_the_page_on_trainer(llama, tmp_path, monkeypatch):
    """In at most sixty lines altogether; as it stands, but for where it runs and how long."""
    from functools import partial

    import transformers

    monkeypatch.chdir(tmp_path)
    quick = {"use_cpu": True, "max_steps": 2, "report_to": "none", "disable_tqdm": True, "dataloader_pin_memory": False}
    quick |= {"save_strategy": "no", "eval_strategy": "no", "num_train_epochs": 1, "logging_steps": 1}
    arguments = transformers.TrainingArguments
    monkeypatch.setattr("transformers.TrainingArguments", lambda folder, **said: arguments(folder, **{**said, **quick}))
    monkeypatch.setattr("accelerate.Accelerator", partial(importlib.import_module("accelerate").Accelerator, cpu=True))
    code = blocks("book/trainer.md")
    assert sum(len(block.strip().splitlines()) for block in code) <= 60

    def bert(width, layers):
        shape = {"vocab_size": 50, "intermediate_size": width, "num_attention_heads": 2, "num_labels": 3}
        return transformers.BertForSequenceClassification(
            transformers.BertConfig(hidden_size=width, num_hidden_layers=layers, **shape)
        )

    batch = text_batch()
    rows = [{k: v[i] for k, v in batch.items()} for i in range(2)]
    sentences = [{**row, "labels": torch.tensor(i)} for i, row in enumerate(rows)]
    exec(code[0], names := {"student": bert(8, 1), "teacher": bert(16, 2), "train": sentences, "valid": sentences})
    assert names["trainer"].evaluate()["eval_agreement"] >= 0
    saved, info = transformers.BertForSequenceClassification.from_pretrained("student", output_loading_info=True)
    assert not info["unexpected_keys"] and saved.config.hidden_size == 8
    names |= {"student": llama(64, 2, 4), "teacher": llama(128, 4, 8), "train": rows}
    exec(code[1], names)
    assert {"CrossEntropy", "ReverseKL"} <= names["trainer"].state.log_history[0].keys()
    exec(code[2], names | {"loader": torch.utils.data.DataLoader(rows, batch_size=2)})


def test_the_page_on_policies(llama, tmp_path, monkeypatch, capsys):
    """With a tokeniser of words and a chat template; as it stands, but for where it runs and how long."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    monkeypatch.chdir(tmp_path)
    quick = {"use_cpu": True, "max_steps": 2, "report_to": "none", "disable_tqdm": True, "dataloader_pin_memory": False}
    arguments = transformers.TrainingArguments
    quick |= {"save_strategy": "no", "logging_steps": 1}
    monkeypatch.setattr("transformers.TrainingArguments", lambda folder, **said: arguments(folder, **{**said, **quick}))
    words = ["<end>", "<user>", "<answer>", "what", "is", "a", "teacher", "student"]
    whole = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="a"))
    whole.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=whole, eos_token="<end>", pad_token="<end>")
    tokenizer.chat_template = (
        "{% for m in messages %}<user> {{ m.content }} {% endfor %}{% if add_generation_prompt %}<answer>{% endif %}"
    )
    names = {"student": llama(64, 1, 4), "teacher": llama(128, 1, 8), "tokenizer": tokenizer}
    names["prompts"] = ["what is a teacher", "a student", "what", "is a student a teacher"]
    before = names["student"].model.embed_tokens.weight.clone()
    code = [block.replace("tokens=128", "tokens=8") for block in blocks("book/on_policy.md")]
    assert sum(len(block.strip().splitlines()) for block in code) <= 60
    for block in code:
        exec(block, names)
    assert names["train"][1]["input_ids"] == [1, 5, 7, 2] and "ReverseKL" in names["trainer"].state.log_history[0]
    assert not torch.equal(before, names["student"].model.embed_tokens.weight)
    assert "times the square of its mean" in capsys.readouterr().out


def test_the_study_of_the_api_page(digits, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kdlab.study.runner.load", lambda name: digits)
    exec(blocks("book/api.md")[3], names := {})
    assert names["mine"].missing == 0 and "n = 3" in capsys.readouterr().out


def test_the_tasks_of_ones_own_of_the_api_page(monkeypatch, tmp_path, digits):
    """In at most twenty lines each; one after another, as they stand."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("kdlab.study.runner.load", lambda name: digits)
    network = "from torch import nn\n\ndef small(classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(3072, classes))\n"
    (tmp_path / "nets_of_mine.py").write_text(network)
    names, code = {}, blocks("book/api.md")[5:]
    assert len(code) == 4
    for block in code:
        assert len(block.strip().splitlines()) <= 20
        exec(block, names)
    assert names["history"][-1]["validation"]["error"] > 0 and len(names["losses"]) == 16
    assert len(list((tmp_path / "my-study" / "records").glob("mine.alone.*.json"))) == 1


def test_on_tokens_is_once_on_the_api_page():
    page = (ROOT / "book/api.md").read_text(encoding="utf-8")
    for module in re.findall(r"automodule:: (kdlab\.objectives\.\w+)\n((?:   :.*\n)*)", page):
        terms = [
            x
            for x in vars(importlib.import_module(module[0])).values()
            if getattr(x, "__module__", "") == module[0] and hasattr(x, "on_tokens")
        ]
        assert not terms or "on_tokens" in module[1], module[0]
    assert page.count("Term.on_tokens\n") == 1


def test_the_examples_of_the_readme_follow_on_each_other(monkeypatch):
    from dataclasses import replace

    from kdlab import data

    whole = data.load_digits()
    few = replace(whole, train=whole.train[:64], validation=whole.validation[:32], test=whole.test[:32])
    monkeypatch.setattr(data, "load_digits", lambda: few)
    names = {}
    for block in blocks("README.md"):
        exec(block, names)
    assert len(names["objective"].terms) == 4
