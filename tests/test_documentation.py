"""The code in the reference pages runs as it stands."""

import importlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ranks import leave
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


COOKBOOK = sorted((ROOT / "book/cookbook").glob("*.md"))


@pytest.mark.parametrize("page", COOKBOOK, ids=lambda page: page.stem)
def test_a_page_of_the_cookbook_has_its_form(page):
    """The build executes it; what a reader sees of its code is sixty lines at most, which are told apart from the page's own models."""
    text = page.read_text(encoding="utf-8")
    shown = re.findall(r"```(?:python|\{code-block\} python)\n(.*?)```", text, re.DOTALL)
    assert sum(bool(line.strip()) for block in shown for line in block.splitlines()) <= 60
    titles = re.findall(r"(?m)^#+ (.*)", re.sub(r"(?s)```.*?```", "", text))
    assert titles[1] == "Yours here" and titles[-1] == "If it does not work"
    assert re.match(r"# .*\n\nYou have [^#]*?\. You want ", text) and "pip install" in text.split("##")[0]
    assert "```{code-block} python" in text and text.count('```python tags=["hide-cell"]') == 1
    assert re.search(r"\{doc\}`[^`]*<\.\./\.\./notebooks/\d\d_\w+>`", text.split("## If it does not work")[1])
    listed = (ROOT / "_toc.yml").read_text()
    assert f"- file: book/cookbook/{page.stem}\n" in listed


class Layered(nn.Module):
    """Modules of the names of transformers' Llama."""

    def __init__(self, width):
        super().__init__()
        self.model = nn.Module()
        self.model.embed = nn.Embedding(9, width)
        self.model.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(2))
        self.lm_head = nn.Linear(width, 9, bias=False)

    def forward(self, input_ids):
        hidden = self.model.embed(input_ids)
        for layer in self.model.layers:
            hidden = layer(hidden).tanh()
        return self.lm_head(hidden)


def as_on_the_page_on_engines(rank, ranks, folder):
    """Two steps of the page's loop, with both models sharded, and with a part of the batch; by itself without sharding."""
    from kdlab.objectives import CrossEntropy, SoftTargets

    torch.manual_seed(0)
    student, teacher, tokens = Layered(8), Layered(16), torch.randint(9, (4, 6))
    labels = tokens.where(torch.arange(6) < torch.tensor([[6], [1], [3], [2]]), -100)
    part = slice(rank * 4 // ranks, (rank + 1) * 4 // ranks)
    names = {"student": student, "teacher": teacher, "objective": CrossEntropy() + SoftTargets(temperature=2)}
    names["loader"] = [{"input_ids": tokens[part], "labels": labels[part]}] * 2
    meeting = f'process_group("gloo", "file://{folder}/meeting", rank={rank}, world_size={ranks})'
    changes = {'"cuda"': '"cpu"', "fused=True": "fused=False", "1e-5": "1e-2", "process_group()": meeting}
    changes['torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))\n'] = ""
    code = blocks("book/engines.md")[0]
    assert all(there in code for there in changes)
    for there, here in changes.items():
        code = code.replace(there, here)
    if ranks == 1:
        code = re.sub(r"(?m)^(torch.distributed|mesh).*\n|^for model(.*\n)*?(?=optimizer)", "", code)
    exec(code, names)
    return student.state_dict()


def on_one_of_two(rank, folder):
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    found = as_on_the_page_on_engines(rank, 2, folder)
    torch.save({name: value.full_tensor() for name, value in found.items()}, folder / f"{rank}.pt")
    leave()


def test_both_models_sharded_over_two_processes_as_the_page_on_engines_says_are_one(tmp_path):
    one = as_on_the_page_on_engines(0, 1, tmp_path)  # imports what both fork from
    torch.multiprocessing.start_processes(on_one_of_two, (tmp_path,), nprocs=2, start_method="fork")
    torch.manual_seed(0)
    assert not torch.equal(one["lm_head.weight"], Layered(8).lm_head.weight)
    for rank in range(2):
        for name, value in torch.load(tmp_path / f"{rank}.pt").items():
            torch.testing.assert_close(value, one[name], rtol=1e-4, atol=1e-5)


LIGHTNING = """
import os
import sys

from kdlab.objectives import CrossEntropy, HiddenMSE, Projector, SoftTargets
from transformers import BertConfig, BertForSequenceClassification

CODE


if __name__ == "__main__":
    devices, folder = int(sys.argv[1]), sys.argv[2]
    torch.manual_seed(0)
    shape = {"vocab_size": 50, "intermediate_size": 8, "num_attention_heads": 2, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    student, teacher = (BertForSequenceClassification(BertConfig(num_hidden_layers=n, hidden_size=8 * n, **shape)) for n in (1, 2))
    hint = HiddenMSE(("bert.encoder.layer.0", "bert.encoder.layer.1"), projector=Projector("linear", 8, 16))
    model = Distilled(student, teacher, CrossEntropy() + SoftTargets() + hint)
    lengths = torch.arange(16) % 5 + 2
    rows = [
        {"input_ids": torch.randint(50, (6,)), "attention_mask": (torch.arange(6) < n).long(), "labels": n % 2} for n in lengths
    ]
    rank = int(os.environ.get("LOCAL_RANK", 0))
    loader = torch.utils.data.DataLoader(rows[rank::devices], batch_size=8 // devices)
    trainer = pytorch_lightning.Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_epochs=2, use_distributed_sampler=False,
        default_root_dir=folder, logger=False, enable_progress_bar=False, enable_model_summary=False,
    )
    trainer.fit(model, loader)
    trainer.save_checkpoint(f"{folder}/{devices}.ckpt")
"""


def test_lightning_of_the_page_on_engines_with_two_processes_is_one(tmp_path):
    code = blocks("book/engines.md")[1]
    plain = "torch.optim.AdamW(self.parameters(), lr=1e-4)"
    assert plain in code  # Adam makes rounding of a gradient near zero large
    code = code.replace(plain, "torch.optim.SGD(self.parameters(), lr=0.1)")
    script = tmp_path / "train.py"
    script.write_text(LIGHTNING.replace("CODE", code))
    quiet = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
    found = {}
    for devices in (1, 2):
        subprocess.run([sys.executable, script, str(devices), tmp_path], env=quiet, check=True, capture_output=True)
        found[devices] = torch.load(tmp_path / f"{devices}.ckpt", weights_only=True)["state_dict"]
    assert not any(name.startswith("teacher") for name in found[1])
    assert any(name.startswith("objective") for name in found[1])
    for name, value in found[1].items():
        torch.testing.assert_close(found[2][name], value, rtol=1e-4, atol=1e-6)


def test_the_server_of_the_page_on_engines(monkeypatch):
    """A stand-in answers as vLLM does: of each token but the first, the likeliest rivals, and the token itself."""
    from kdlab.data import Tokens
    from kdlab.data.tokens import numbered
    from kdlab.models import GPT
    from kdlab.training import Recipe

    torch.manual_seed(0)
    known, student = GPT(50, width=8, layers=1, heads=1, context=8), GPT(50, width=8, layers=1, heads=1, context=8)

    def answer(request):
        asked, choices = json.loads(request.data), []
        for prompt in asked["prompt"]:
            log_p = known(torch.tensor([prompt[:-1]]))[0].log_softmax(-1)
            places = [None]
            for token, said in zip(prompt[1:], log_p, strict=True):
                top = {*said.topk(asked["prompt_logprobs"]).indices.tolist(), token}
                places.append({str(n): {"logprob": said[n].item(), "rank": 1} for n in top})
            choices.append({"prompt_logprobs": places})
        return io.StringIO(json.dumps({"choices": choices}))

    monkeypatch.setattr("urllib.request.urlopen", answer)
    train = Tokens(numbered(torch.randint(50, (65,)).tolist(), 50), 8, torch.ones(50).long())
    names = {"url": "http://localhost", "name": "teacher", "vocabulary": 50, "student": student, "train": train}
    names["recipe"] = Recipe(1, 4, augment=False)
    exec(blocks("book/engines.md")[2], names)
    tokens = next(train.batches(2))[0]
    said, exact = names["teacher"](tokens), known(tokens).softmax(-1)
    torch.testing.assert_close(said.probabilities, exact.gather(-1, said.tokens))
    assert said.rest and said.tokens.shape == (2, 8, 20)


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
