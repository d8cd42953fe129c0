"""What the loop does with models: where they are, in which mode, and whether two of them are two."""

import warnings
from collections.abc import Iterator
from os import PathLike

import torch
from torch import Tensor, nn

from .state import take_apart, unpacked


def check_model(model: object, what: str = "a model") -> None:
    """That it is a model, and not the name of one, its class or a function.

    Raises:
        TypeError: if not.
    """
    if isinstance(model, nn.Module):
        return
    advice = "."
    if isinstance(model, (str, PathLike)):
        advice = f": load it first, such as AutoModelForCausalLM.from_pretrained({str(model)!r}) of transformers."
    elif isinstance(model, type):
        advice = f": make one of it, {model.__name__}(…)."
    elif callable(model):
        advice = "; of a function make a teacher: kdlab.training.FunctionTeacher(function, name)."
    raise TypeError(f"{what} is a torch.nn.Module, not {named(model)}{advice}")


def named(given: object) -> str:
    """What was given in place of something, for a sentence."""
    if isinstance(given, (str, PathLike)):
        return f"the name {str(given)!r}"
    return f"the class {given.__name__}" if isinstance(given, type) else type(given).__name__


def moved_to(model: nn.Module, device) -> torch.memory_format:
    """Move a model to a device and return how its maps lie in memory: channels last, which convolutions are faster in.

    Contiguous where that would not be safe: on a CPU without AVX-512, the gradient of a 1×1 convolution with stride and fewer than
    eight input channels writes past its buffer where the channels are last (oneDNN of torch 2.13: the process dies, or other
    numbers change). Such a model is trained in the other layout on every CPU, so that a run does not depend on which it is.
    """
    narrow = any(
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and layer.stride != (1, 1)
        and layer.in_channels < 8
        for layer in model.modules()
    )
    on_cpu = torch.device(device).type == "cpu"
    layout = torch.contiguous_format if narrow and on_cpu else torch.channels_last
    # As Module.to with a layout, which would ask it of five axes too.
    model.to(device)._apply(lambda tensor: tensor.contiguous(memory_format=layout) if tensor.ndim == 4 else tensor)
    return layout


def training_mode(model: nn.Module) -> None:
    """Put a model in training mode, but for what is frozen.

    A layer is frozen if it is in evaluation mode and has parameters, of which none is trained (``requires_grad=False``); or, in a model
    that is in training mode, if it has statistics alone. It stays as it is with all that is in it: its batch normalisation keeps its
    statistics, its dropout stays off.
    """
    modes = [(layer, layer.training) for layer in _frozen(model)]
    model.train()
    for layer, training in modes:
        layer.training = training


def _frozen(model: nn.Module, within_training: bool = False) -> Iterator[nn.Module]:
    own = list(model.parameters()) or (list(model.buffers()) if within_training else [])
    if not model.training and own and not any(p.requires_grad for p in own):
        yield from model.modules()
    else:
        for child in model.children():
            yield from _frozen(child, within_training or model.training)


def check_two(student: nn.Module, teacher: nn.Module) -> None:
    """That training the student does not move its teacher: they share neither what is trained nor running statistics.

    Raises:
        ValueError: if they do.
    """
    if teacher is student:
        raise ValueError("student and teacher are one and the same model: nothing would be learned.")
    known, still = storages(teacher), {id(layer) for layer in _frozen(student) if not layer.training}
    for path, layer in student.named_modules():
        moving = [(name, p) for name, p in layer.named_parameters(recurse=False) if p.requires_grad]
        advice = (
            "Give the teacher weights of its own, a copy.deepcopy of its model made before the student was made of it"
        )
        if getattr(layer, "track_running_stats", False) and id(layer) not in still:
            moving += layer.named_buffers(recurse=False)
            advice += f"; or freeze the layer, {path}.requires_grad_(False).eval()"
        for name, tensor in moving:
            if _storage(tensor) in known:
                raise ValueError(
                    f"student and teacher share {f'{path}.{name}'.lstrip('.')!r}: training the one would change the other. {advice}; or, if "
                    "the student has adapters of peft, take the model without them, kdlab.huggingface.without_adapter(student)."
                )


def warn_of_half_precision(student: nn.Module) -> None:
    """Warn of weights that are trained in half precision: a step of less than one part in 256 of a weight, in bfloat16, leaves it as it was.

    ``transformers`` loads a model in the type that it was saved in, which is bfloat16 for most language models.
    """
    kinds = {p.dtype for p in student.parameters() if p.requires_grad and p.is_floating_point()}
    if half := kinds & {torch.bfloat16, torch.float16}:
        kind = str(half.pop()).removeprefix("torch.")
        warnings.warn(
            f"{type(student).__name__} is trained in {kind}, in which small steps are lost to rounding: load it with dtype='float32' "
            "(student.float()), and let its arithmetic alone be in half precision, by precision= of the recipe or bf16=True of the trainer's arguments.",
            stacklevel=2,
        )


def share_layers(student: nn.Module, teacher: nn.Module) -> bool:
    """Whether they have layers in common, which are in training mode when the student learns."""
    return not {id(layer) for layer in student.modules()}.isdisjoint(id(layer) for layer in teacher.modules())


def storages(module: nn.Module) -> set:
    """Where a module's tensors lie: those that share memory have one storage, whatever they are called."""
    state = module.state_dict(keep_vars=True)
    tensors, _ = take_apart({name: unpacked(value) for name, value in state.items()})
    return {_storage(tensor) for tensor in tensors.values() if tensor.numel()} - {None}


def _storage(tensor: Tensor):
    if tensor.is_meta:
        return None
    try:
        return tensor.device, tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # of a kind of tensor that has none of its own
        return id(tensor)
