"""Mistakes planted in copies of the package, one at a time, each with the test that must notice it.

``python tests/mutations.py`` plants all of them and prints who noticed; ``python tests/mutations.py jsd bank`` only those
whose description has one of these words in it. ``test_mutations.py`` does the same.

A mutation replaces a snippet that occurs exactly once in its file, so that code that has moved is an error here and not
a mistake that was never planted. It counts as caught if the test passes on the package as it is, and fails on the copy by
an assertion of its own: not by an error of syntax or import, nor by any other exception.
"""

import ast
import compileall
import gc
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")  # it forks: as in conftest.py

TESTS = Path(__file__).resolve().parent
PACKAGE = TESTS.parent / "kdlab"
SECONDS = 300  # that a child may take


@dataclass(frozen=True)
class Mutation:
    """A mistake to plant.

    Attributes:
        pitfall: what goes wrong, in words.
        file: where, inside the package.
        old, new: the snippet, and the mistake in its place.
        test: what must fail, as pytest selects it, inside ``test_pitfalls.py``.
        also: further (file, old, new), where the package has a second safeguard.
    """

    pitfall: str
    file: str
    old: str
    new: str
    test: str
    also: tuple[tuple[str, str, str], ...] = ()

    @property
    def node(self) -> str:
        return f"{TESTS / 'test_pitfalls.py'}::{self.test}"


SOFT = "objectives/response.py"
DIVERGENCES = "objectives/divergences.py"
SEQUENCE = "objectives/sequence.py"
TERMS = "objectives/terms.py"
LAYERS = "objectives/layer_terms.py"
MEMORY = "objectives/contrastive.py"
SCHEDULES = "objectives/schedules.py"
LOOP = "training/loop.py"
CHECKS = "training/checks.py"
STEP = "training/step.py"
STUDENT = "training/student.py"
GROUP = "training/group.py"
MICRO_BATCHES = "training/micro_batches.py"
IDENTITY = "training/identity.py"
OPTIMIZERS = "training/optimizers.py"
DETERMINISM = "training/determinism.py"
CHECKPOINT = "training/checkpoint.py"
STATE = "training/state.py"
MODULES = "training/modules.py"
EXAMPLES = "data/examples.py"
HUGGINGFACE = "huggingface/models.py"
DISTILLATION = "huggingface/distillation.py"
KEPT = "huggingface/caches.py"
WEIGHTS = "training/weights.py"
TEACHERS = "training/teachers.py"

MUTATIONS = [
    # T²
    Mutation(
        "T squared is left out of the soft targets",
        SOFT,
        "_reduced(_squared(temperature) * losses, mask, reduction, count)\n\n\ndef cross_entropy",
        "_reduced(losses, mask, reduction, count)\n\n\ndef cross_entropy",
        "test_temperature_squared_in_closed_form",
    ),
    Mutation(
        "T squared is left out of decoupled distillation",
        SOFT,
        "_reduced(_squared(temperature) * losses, mask, reduction, count)\n\n\ndef _decoupled",
        "_reduced(losses, mask, reduction, count)\n\n\ndef _decoupled",
        "test_temperature_squared[decoupled]",
    ),
    Mutation(
        "T squared is left out of one half of DIST",
        SOFT,
        "intra_weight * squared * intra",
        "intra_weight * intra",
        "test_temperature_squared[DIST]",
    ),
    Mutation(
        "T squared is applied only where the labels have a weight too",
        SOFT,
        "temperature=temperature, **how)\n    return hard_weight",
        "temperature=temperature, **how) / (1 if hard_weight else temperature**2)\n    return hard_weight",
        "test_temperature_squared_in_closed_form",
    ),
    Mutation(
        "T squared slips into the Jensen-Shannon divergence",
        DIVERGENCES,
        "(beta * (1 - beta)) if scaled else losses",
        "(beta * (1 - beta)) if scaled else losses * temperature**2",
        "test_no_temperature_squared_where_none_is_said[JSD]",
    ),
    Mutation(
        "the acceptance leaves out that a distance is half of the differences",
        DIVERGENCES,
        "apart = 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)",
        "apart = (log_p.exp() - log_q.exp()).abs().sum(-1)",
        "test_log_of_softmax[negative log acceptance]",
    ),
    # What is summed, and what is averaged
    Mutation(
        "the mean divides by the classes too",
        DIVERGENCES,
        "p * r + q - p).clamp(min=0.0).sum(-1)",
        "p * r + q - p).clamp(min=0.0).mean(-1)",
        "test_mean_over_classes",
    ),
    Mutation(
        "total variation divides by the classes too",
        DIVERGENCES,
        ".abs().sum(-1) / 2",
        ".abs().mean(-1) / 2",
        "test_mean_over_classes[total variation]",
    ),
    Mutation(
        "attention maps are summed over heads",
        "objectives/attention.py",
        ".sum((2, 3)).mean(1)",
        ".sum((2, 3)).sum(1)",
        "test_sums_and_means_are_those_of_the_published_weights",
    ),
    Mutation(
        "the paper's and the released form of attention transfer are exchanged",
        "objectives/attention.py",
        'if form == "released":',
        'if form == "paper":',
        "test_sums_and_means_are_those_of_the_published_weights",
    ),
    Mutation(
        "hidden states are summed over features",
        "objectives/features.py",
        "reduce(difference.square().mean(-1)",
        "reduce(difference.square().sum(-1)",
        "test_sums_and_means_are_those_of_the_published_weights",
    ),
    Mutation(
        "masked losses are divided by the count of all tokens",
        "objectives/reduction.py",
        "losses.numel() if mask is None else mask.sum()",
        "losses.numel()",
        "test_padding_weighs_nothing",
    ),
    Mutation(
        "the mask of DIST leaves padding among the examples",
        SOFT,
        "torch.ones_like(q[..., 0]) if mask is None else mask.to(q.dtype)",
        "torch.ones_like(q[..., 0])",
        "test_padding_weighs_nothing[DIST]",
    ),
    Mutation(
        "padded keys count in attention maps",
        "objectives/attention.py",
        "counted & mask[:, None, None, :] if queries == keys else",
        "counted.expand(-1, -1, -1, keys) if queries == keys else",
        "test_padding_weighs_nothing_in_attention",
    ),
    Mutation(
        "the term of attention maps leaves the mask out",
        LAYERS,
        '"mask": self.of_part(hidden_mask, layer), ',
        "",
        "test_padding_weighs_nothing_in_attention",
    ),
    Mutation(
        "accumulated gradients are normalised by each micro-batch",
        "objectives/reduction.py",
        "    if count is None:\n        ",
        "    if True:\n        ",
        "test_gradient_accumulation",
    ),
    Mutation(
        "the hard loss leaves the mask out",
        TERMS,
        "student_logits, labels, mask=mask, count=count, class_axis=self.class_axis",
        "student_logits, labels.clamp(min=0), count=count, class_axis=self.class_axis",
        "test_masks_and_counts_reach_every_term",
    ),
    Mutation(
        "hidden states leave the count out",
        LAYERS,
        "mask=counted, count=count)",
        "mask=counted)",
        "test_masks_and_counts_reach_every_term",
    ),
    Mutation(
        "each rank divides by its own count",
        "objectives/reduction.py",
        "torch.distributed.all_reduce(count)\n        count = count / torch.distributed.get_world_size()",
        "pass",
        "test_ranks_divide_by_the_count_of_all",
    ),
    Mutation(
        "the count of all ranks is not divided by their number",
        "objectives/reduction.py",
        "        count = count / torch.distributed.get_world_size()\n",
        "",
        "test_ranks_divide_by_the_count_of_all",
    ),
    # Which divergence
    Mutation(
        "squared error of probabilities stands in for the divergence",
        SOFT,
        "losses = _kl(log_softmax(teacher, temperature), log_softmax(student, temperature))",
        "losses = (log_softmax(student, temperature).exp() - log_softmax(teacher, temperature).exp()).square().mean(-1)",
        "test_divergence_not_squared_error_of_probabilities",
    ),
    Mutation(
        "what is called KL is a cross-entropy",
        DIVERGENCES,
        "return _reduced(_kl(log_p, log_q), mask, reduction, count)",
        "return _reduced(-(log_p.exp() * log_q).sum(-1), mask, reduction, count)",
        "test_divergence_not_cross_entropy",
    ),
    Mutation(
        "what is called cross-entropy is a KL",
        SOFT,
        "losses = -(p * log_q.masked_fill(p == 0, 0.0)).sum(-1)",
        "losses = (p * (p.log() - log_q)).sum(-1)",
        "test_divergence_not_cross_entropy",
    ),
    Mutation(
        "forward KL goes from student to teacher",
        DIVERGENCES,
        "return _reduced(_kl(log_p, log_q), mask, reduction, count)",
        "return _reduced(_kl(log_q, log_p), mask, reduction, count)",
        "test_direction[forward KL]",
    ),
    Mutation(
        "every term passes the student for the teacher and the teacher for the student",
        TERMS,
        "return type(self).function(student_logits, teacher_logits.detach(), **self.options, **how)",
        "return type(self).function(teacher_logits.detach(), student_logits, **self.options, **how)",
        "test_direction",
    ),
    Mutation(
        "beta of the Jensen-Shannon divergence weights the student",
        DIVERGENCES,
        "losses = beta * to_mixture[0] + (1 - beta) * to_mixture[1]",
        "losses = (1 - beta) * to_mixture[0] + beta * to_mixture[1]",
        "test_direction[JSD]",
    ),
    Mutation(
        "reverse KL goes from the teacher",
        DIVERGENCES,
        "return _reduced(_kl(log_q, log_p), mask, reduction, count)",
        "return _reduced(_kl(log_p, log_q), mask, reduction, count)",
        "test_direction[reverse KL]",
    ),
    Mutation(
        "skewed forward KL goes from the student",
        DIVERGENCES,
        "_reduced(_skewed(log_p, log_q, skew)",
        "_reduced(_skewed(log_q, log_p, skew)",
        "test_direction[skewed forward KL]",
    ),
    Mutation(
        "skewed reverse KL goes from the teacher",
        DIVERGENCES,
        "_reduced(_skewed(log_q, log_p, skew)",
        "_reduced(_skewed(log_p, log_q, skew)",
        "test_direction[skewed reverse KL]",
    ),
    Mutation(
        "decoupled distillation goes from student to teacher",
        SOFT,
        "_kl(p_true, q_true)",
        "_kl(q_true, p_true)",
        "test_direction[decoupled]",
    ),
    Mutation(
        "the unscaled Jensen-Shannon divergence jumps to the KL at beta 0",
        DIVERGENCES,
        "losses = 0.0 * (log_p.exp() + log_q.exp()).sum(-1)\n    elif",
        "losses = _kl(log_p, log_q)\n    elif",
        "test_divergences_do_not_jump_at_their_ends[JSD]",
    ),
    Mutation(
        "the scaled Jensen-Shannon divergence jumps at beta 1",
        DIVERGENCES,
        "losses / (beta * (1 - beta)) if scaled",
        "losses / beta if scaled",
        "test_divergences_do_not_jump_at_their_ends[scaled JSD]",
    ),
    # Numbers
    Mutation(
        "log of softmax",
        "objectives/softening.py",
        "torch.log_softmax((logits - logits.detach().amax(-1, keepdim=True)) / temperature, dim=-1)",
        "torch.log(torch.softmax((logits - logits.detach().amax(-1, keepdim=True)) / temperature, dim=-1))",
        "test_log_of_softmax",
    ),
    Mutation(
        "half precision is not left before the softmax",
        "objectives/softening.py",
        "    logits = full_precision(logits)\n    return torch.log_softmax(",
        "    return torch.log_softmax(",
        "test_log_of_softmax",
    ),
    Mutation(
        "the true class is masked by -1000",
        SOFT,
        "log_softmax(other, temperature)",
        "torch.log_softmax(log_q.scatter_add(-1, true, torch.full_like(log_q, -1000.0)), -1)",
        "test_masks_of_minus_a_thousand",
    ),
    Mutation(
        "keys that may not be seen are masked by -1000",
        "objectives/attention.py",
        "scores = scores.masked_fill(~seen, -math.inf)",
        "scores = scores - 1000.0 * ~seen",
        "test_masks_of_minus_a_thousand",
    ),
    Mutation(
        "chosen tokens are masked by -1000 among the rest",
        SEQUENCE,
        "logits.scatter(-1, index, -torch.inf)",
        "logits.scatter(-1, index, -1000.0)",
        "test_masks_of_minus_a_thousand",
    ),
    Mutation(
        "examples of the same class are masked by -1000",
        MEMORY,
        "scores.masked_fill(alike, -torch.inf)",
        "(scores - 1000.0 * alike)",
        "test_masks_of_minus_a_thousand",
    ),
    # Sequences
    Mutation(
        "labels are not shifted against the logits",
        SEQUENCE,
        "following = labels[:, 1:]",
        "following = labels[:, :-1]",
        "test_labels_in_step_with_logits",
    ),
    Mutation(
        "the teacher's logits are shifted the other way",
        SEQUENCE,
        "else teacher_logits[:, :-1]",
        "else teacher_logits[:, 1:]",
        "test_labels_in_step_with_logits",
    ),
    Mutation(
        "the number of ignored labels is not used",
        SEQUENCE,
        "following != ignore_index",
        "following != -1",
        "test_ignored_tokens_weigh_nothing",
    ),
    Mutation(
        "the mask is that of the labels before they are shifted",
        SEQUENCE,
        "following != ignore_index",
        "labels[:, :-1] != ignore_index",
        "test_ignored_tokens_weigh_nothing",
    ),
    Mutation(
        "the end is masked because padding has its number",
        SEQUENCE,
        "following != ignore_index",
        "(following != ignore_index) & (following != 0)",
        "test_end_of_sequence_is_learned_though_it_is_also_the_padding",
    ),
    Mutation(
        "the rest is left out, and the top k are renormalised",
        SEQUENCE,
        "if not rest:",
        "if True:",
        "test_top_k_teacher",
    ),
    Mutation(
        "the rest counts the chosen tokens again",
        SEQUENCE,
        "logits.scatter(-1, index, -torch.inf)",
        "logits",
        "test_top_k_teacher",
    ),
    Mutation(
        "vocabularies of different size are padded with zeros",
        "objectives/softening.py",
        "    student, teacher, temperature = classes_last(\n        class_axis, student_logits, teacher_logits",
        "    size = max(student_logits.shape[-1], teacher_logits.shape[-1])\n"
        "    student_logits, teacher_logits = (\n"
        "        torch.nn.functional.pad(x, (0, size - x.shape[-1])) for x in (student_logits, teacher_logits)\n"
        "    )\n"
        "    student, teacher, temperature = classes_last(\n        class_axis, student_logits, teacher_logits",
        "test_vocabularies_of_different_size",
    ),
    # Language models
    Mutation(
        "micro-batches of a text are divided by their own tokens",
        MICRO_BATCHES,
        '"count": global_count(which),',
        "",
        "test_micro_batches_of_texts_of_uneven_length",
    ),
    Mutation(
        "the labels of the prompt are learned in on-policy distillation",
        "language/text.py",
        "labels[:, : prompt - 1] = IGNORED",
        "labels[:, :0] = IGNORED",
        "test_nothing_is_learned_of_the_prompt",
    ),
    Mutation(
        "the cache of another teacher is used",
        "language/caches.py",
        'if teacher is not None and checksum(state_of(teacher).items()) != self.header["teacher"]:',
        "if False:",
        "test_a_cache_knows_whose_it_is",
    ),
    Mutation(
        "the cache of other blocks is used",
        "language/caches.py",
        "for tensor in (tokens.blocks, tokens.labels):",
        "for tensor in (tokens.labels,):",
        "test_a_cache_knows_whose_it_is",
    ),
    Mutation(
        "the largest entries are taken for drawn ones",
        "language/caches.py",
        'if kind == "sampled":',
        'if kind == "drawn":',
        "test_what_is_drawn_of_a_teacher_is_unbiased",
    ),
    Mutation(
        "the losses from hidden states forget the softcap",
        "objectives/vocabulary.py",
        "z[i].to(wide) if capped is None else student.softcap * capped,",
        "z[i].to(wide),",
        "test_losses_from_hidden_states_are_those_of_the_logits",
    ),
    Mutation(
        "the losses from hidden states forget the temperature",
        "objectives/vocabulary.py",
        "return log_softmax(logits, self.temperature)",
        "return torch.log_softmax(logits, -1)",
        "test_losses_from_hidden_states_are_those_of_the_logits",
    ),
    Mutation(
        "the divergences to a mixture from hidden states forget the temperature",
        "objectives/vocabulary.py",
        "logits = (logits - logits.amax(-1, keepdim=True)) / self.temperature",
        "logits = logits - logits.amax(-1, keepdim=True)",
        "test_losses_from_hidden_states_are_those_of_the_logits",
    ),
    Mutation(
        "stale keys and values are attended to after a cache is rewound",
        "models/gpt.py",
        "<= places[..., None]).unsqueeze(1)",
        "<= places[..., None].amax(0)).expand(len(tokens), 1, tokens.shape[1], -1)",
        "test_what_was_rewound_is_not_attended_to",
    ),
    # Models
    Mutation(
        "the recovered maps forget the scale of fused attention",
        "training/taps.py",
        "mask=attn_mask, scale=scale)",
        "mask=attn_mask)",
        "test_fused_path_is_the_reference_path",
    ),
    Mutation(
        "the recovered maps forget that fused attention is causal",
        "training/taps.py",
        "causal=is_causal",
        "causal=False",
        "test_fused_path_is_the_reference_path",
    ),
    Mutation(
        "grouped keys are repeated in the wrong order",
        "objectives/attention.py",
        "keys.repeat_interleave(queries.shape[-3] // keys.shape[-3], dim=-3)",
        "torch.cat([keys] * (queries.shape[-3] // keys.shape[-3]), dim=-3)",
        "test_fused_path_is_the_reference_path",
    ),
    Mutation(
        "the teacher's logits keep their gradient",
        TERMS,
        "return type(self).function(student_logits, teacher_logits.detach(), **self.options, **how)",
        "return type(self).function(student_logits, teacher_logits, **self.options, **how)",
        "test_distilled_from_itself",
    ),
    Mutation(
        "the teacher's layers keep their gradient",
        LAYERS,
        "yield found[0], found[1].detach()",
        "yield found[0], found[1]",
        "test_distilled_from_itself",
    ),
    Mutation(
        "the student's layers are passed for the teacher's",
        LAYERS,
        "yield found[0], found[1].detach()",
        "yield found[0], found[0].detach()",
        "test_distilled_from_itself",
    ),
    Mutation(
        "the positive is missing from the denominator",
        MEMORY,
        "return (scores.logsumexp(1) - positive).mean()",
        "own = torch.eye(*scores.shape, dtype=torch.bool, device=scores.device)\n"
        "    return (scores.masked_fill(own, -torch.inf).logsumexp(1) - positive).mean()",
        "test_positive_is_among_the_candidates",
    ),
    Mutation(
        "the positive is missing from the denominator of the memory",
        MEMORY,
        "total + (scores.logsumexp(1) - scores[:, 0]).mean()",
        "total + (scores[:, 1:].logsumexp(1) - scores[:, 0]).mean()",
        "test_positive_is_among_the_candidates",
    ),
    Mutation(
        "the memory bank is keyed by the position in the batch",
        MEMORY,
        "self.entries[index] = unit(moved)",
        "self.entries[: len(index)] = unit(moved)",
        "test_memory_is_keyed_by_example",
    ),
    # Temperatures and weights that change
    Mutation(
        "the curriculum temperature descends on the loss",
        SCHEDULES,
        "(1 + at(self.strength, progress)) * (self.theta.detach() - self.theta)",
        "(1 - at(self.strength, progress)) * (self.theta.detach() - self.theta)",
        "test_curriculum_temperature_ascends",
    ),
    Mutation(
        "the strength of the curriculum does not follow its schedule",
        SCHEDULES,
        "at(self.strength, progress)) * (self",
        "at(self.strength, 1.0)) * (self",
        "test_curriculum_temperature_ascends",
    ),
    Mutation(
        "the curriculum temperature can leave its range",
        SCHEDULES,
        "(self.maximum - self.minimum) * torch.sigmoid(theta)",
        "(self.maximum - self.minimum) * (0.5 + theta / 4).clamp(min=0.0)",
        "test_curriculum_temperature_stays_in_its_range",
    ),
    Mutation(
        "the temperature is not logged",
        TERMS,
        "if not isinstance(temperature, Real):",
        "if False:",
        "test_schedules_of_weights_and_temperatures_fire",
    ),
    Mutation(
        "the schedule of a weight stays at its start",
        TERMS,
        "at(weight, progress) for name, weight in",
        "at(weight, 0.0) for name, weight in",
        "test_schedules_of_weights_and_temperatures_fire",
    ),
    Mutation(
        "a step of a schedule never fires",
        SCHEDULES,
        "if progress >= part]",
        "if 100 * part <= progress]",
        "test_schedules_of_weights_and_temperatures_fire[step]",
    ),
    Mutation(
        "the schedule of a temperature stays at its start",
        TERMS,
        "temperature = at(self.temperature, progress)\n        return {",
        "temperature = at(self.temperature, 0.0)\n        return {",
        "test_schedules_of_temperatures_reach_every_term",
    ),
    Mutation(
        "the schedule of the temperature of decoupled distillation stays at its start",
        TERMS,
        "how = self._how(mask, count, progress, self.class_axis)\n        return response.decoupled_kd(",
        "how = self._how(mask, count, 0.0, self.class_axis)\n        return response.decoupled_kd(",
        "test_schedules_of_temperatures_reach_every_term",
    ),
    Mutation(
        "the loop never says how much of the training is done",
        STEP,
        "            progress=progress,",
        "            progress=0.0,",
        "test_schedules_of_weights_and_temperatures_fire",
    ),
    Mutation(
        "progress counts the steps of an epoch alone",
        STUDENT,
        "(len(self.history) + self.step / steps) / self.recipe.epochs",
        "self.step / steps",
        "test_schedules_of_weights_and_temperatures_fire",
    ),
    Mutation(
        "a milestone fires at one step alone",
        "training/recipe.py",
        "sum(epoch >= milestone for",
        "sum(epoch == milestone for",
        "test_schedule_of_the_learning_rate_fires[step]",
    ),
    Mutation(
        "the warm-up never fires",
        "training/recipe.py",
        "if epoch < self.warmup_epochs:",
        "if epoch < 0:",
        "test_schedule_of_the_learning_rate_fires[warm-up]",
    ),
    Mutation(
        "a typo keeps the learning rate from the optimiser",
        STUDENT,
        'group["lr"] = rate',
        'group["learning_rate"] = rate',
        "test_schedule_of_the_learning_rate_fires",
    ),
    # The loop
    Mutation(
        "the loop passes the student's logits for the teacher's",
        STEP,
        "            teacher_logits=teacher_logits,",
        "            teacher_logits=student_logits,",
        "test_student_and_teacher_are_their_own",
    ),
    Mutation(
        "the loop passes the student's layers for the teacher's",
        STEP,
        "            teacher_hidden=teacher_hidden,",
        "            teacher_hidden=student_hidden,",
        "test_student_and_teacher_are_their_own",
    ),
    Mutation(
        "the teacher runs with gradients",
        STEP,
        "@torch.no_grad()\n    def look",
        "@torch.enable_grad()\n    def look",
        "test_student_and_teacher_are_their_own",
    ),
    Mutation(
        "the teacher sees other images than the student",
        STEP,
        "looked[seed, view] = self.teacher(part)",
        "looked[seed, view] = self.teacher(part.flip(0))",
        "test_teacher_sees_what_the_student_sees",
    ),
    Mutation(
        "the teacher is in training mode",
        "training/measures.py",
        "    model.eval()\n",
        "    model.train()\n",
        "test_teacher_is_left_as_it_was",
    ),
    Mutation(
        "the teacher is not put back in its mode",
        "training/measures.py",
        "module.training = training",
        "pass",
        "test_teacher_is_left_as_it_was",
    ),
    Mutation(
        "the teacher keeps the hooks",
        "training/taps.py",
        "hook.remove()",
        "pass",
        "test_teacher_is_left_as_it_was",
    ),
    Mutation(
        "the student stays in evaluation mode after the first evaluation",
        GROUP,
        "            training_mode(s.model)\n",
        "",
        "test_student_left_in_evaluation_mode",
        also=(("training/measures.py", "module.training = training", "pass"),),
    ),
    Mutation(
        "the objective is left in evaluation mode, and its memory stays as it was",
        GROUP,
        "            s.objective.train()\n",
        "",
        "test_what_the_objective_learns_is_learned",
        also=((STUDENT, "        self.objective.train()\n", ""),),
    ),
    Mutation(
        "projectors are not given to the optimiser",
        OPTIMIZERS,
        "[*student.parameters(), *objective.parameters()]",
        "[*student.parameters()]",
        "test_what_the_objective_learns_is_learned",
    ),
    Mutation(
        "the data say the position in the batch for the index of the example",
        "data/images.py",
        "batch = self.seen(index, views), self.labels[index], index",
        "batch = self.seen(index, views), self.labels[index], torch.arange(len(index))",
        "test_memory_knows_the_examples_of_a_shuffled_epoch",
    ),
    Mutation(
        "the loop says the position in the batch for the index of the example",
        STEP,
        "            index=index,",
        "            index=torch.arange(len(index)),",
        "test_memory_knows_the_examples_of_a_shuffled_epoch",
    ),
    # Checkpoints
    Mutation(
        "the memory bank is not in the checkpoint",
        MEMORY,
        'self.register_buffer("entries", torch.empty(examples, width))',
        'self.register_buffer("entries", torch.empty(examples, width), persistent=False)',
        "test_everything_is_in_the_checkpoint",
    ),
    Mutation(
        "the normaliser of the contrast is not in the checkpoint",
        MEMORY,
        'self.register_buffer("normalisers", torch.zeros(2, dtype=torch.float64))',
        'self.register_buffer("normalisers", torch.zeros(2, dtype=torch.float64), persistent=False)',
        "test_each_part_of_the_checkpoint_is_needed[objective.terms.5.memory.normalisers]",
    ),
    Mutation(
        "nothing that the objective learned is in the checkpoint",
        CHECKPOINT,
        'tensors |= {f"objective.{k}": v for k, v in objective.state_dict().items()}',
        "pass",
        "test_everything_is_in_the_checkpoint",
        also=((CHECKPOINT, 'objective.load_state_dict(part("objective."))', "pass"),),
    ),
    Mutation(
        "the state of the optimiser is not put back",
        CHECKPOINT,
        'optimizer.load_state_dict({**optimizer.state_dict(), "state": state})',
        "pass",
        "test_everything_is_in_the_checkpoint",
    ),
    Mutation(
        "random numbers go on from whatever was drawn before",
        STEP,
        "            seed_torch(self.device, s.recipe.seed, *s.position)\n",
        "",
        "test_everything_is_in_the_checkpoint",
        also=(
            (
                STEP,
                'seed_torch(self.device, seed, *students[0].position, f"teacher\'s {which} view")',
                "pass",
            ),
        ),
    ),
    Mutation(
        "the epochs that are done are done again",
        STUDENT,
        'self.history, self.step = header["history"], header["step"]',
        'self.step = header["step"]',
        "test_everything_is_in_the_checkpoint",
    ),
    # Models, teachers and data as they come
    Mutation(
        "hard targets are the student's own",
        TERMS,
        "student, teacher.argmax(-1), mask=mask",
        "student, student.detach().argmax(-1), mask=mask",
        "test_distilled_from_itself",
    ),
    Mutation(
        "what is pooled is counted as tokens are",
        LAYERS,
        "counted, count = None, example_count",
        "counted, count = None, hidden_count",
        "test_what_is_pooled_is_counted_by_examples",
    ),
    Mutation(
        "in Trainer, a GPT-2 learns to say the token that it reads",
        DISTILLATION,
        'ForCausalLMLoss if "loss_function" in asks else None',
        "None",
        "test_labels_are_shifted_as_the_model_itself_shifts_them",
    ),
    Mutation(
        "in Trainer, a cache teaches rows of another text",
        "language/caches.py",
        "if input_ids is not None:",
        "if False:",
        "test_a_teacher_that_goes_by_places_sees_whose_they_are",
    ),
    Mutation(
        "in Trainer, kept logits teach whatever has their number",
        DISTILLATION,
        'if (by_index(teacher) or by_view(teacher)) and "input_ids" not in self.teacher.names:',
        "if False:",
        "test_a_teacher_that_goes_by_places_sees_whose_they_are",
    ),
    Mutation(
        "tokens that only fill a vocabulary up are measured",
        "training/measures.py",
        "log_q, log_p = (x[:, :number].log_softmax(-1) for x in (log_q, log_p))",
        "log_q, log_p = (x[:, :number] for x in (log_q, log_p))",
        "test_a_teacher_that_is_filled_up_is_measured_over_the_texts_tokens",
    ),
    Mutation(
        "in Trainer, hidden states are counted by labels",
        DISTILLATION,
        'hidden = masks.get("hidden_mask", examples)',
        'hidden = masks.get("mask", examples)',
        "test_parts_of_a_batch_add_up_in_any_loop",
    ),
    Mutation(
        "in Trainer, each part of pictures weighs as the whole",
        DISTILLATION,
        'part = _examples(seen) / counts["example_count"]',
        "part = 1.0",
        "test_parts_of_a_batch_add_up_in_any_loop",
    ),
    Mutation(
        "in Trainer, padding of sentences is matched",
        DISTILLATION,
        'masks = {} if read is None else {"hidden_mask": read}',
        "masks = {}",
        "test_parts_of_a_batch_add_up_in_any_loop",
    ),
    Mutation(
        "the head's weight is read past what is around it",
        HUGGINGFACE,
        "return self._own_logits(tokens, first, **given)\n",
        "return HeadLogits(unwrapped(self.model).base_model(input_ids=tokens)[0], "
        "unwrapped(self.model).get_output_embeddings().weight).dense()\n",
        "test_a_head_that_is_no_plain_map_is_called",
    ),
    Mutation(
        "a head with adapters is fused",
        HUGGINGFACE,
        "            not plain\n",
        "            False\n",
        "test_a_head_that_is_no_plain_map_is_called",
        also=(
            (HUGGINGFACE, "elsewhere = [name for", "elsewhere = [] and [name for"),
            (HUGGINGFACE, "or not _near(ours, last)", "or False"),
        ),
    ),
    Mutation(
        "fused logits are compared once, when they are asked for",
        HUGGINGFACE,
        'if tokens.device.type == "cpu":',
        "if False:",
        "test_a_fused_head_is_compared_as_it_runs",
    ),
    Mutation(
        "the softcap is looked for beside the text's configuration",
        HUGGINGFACE,
        'getattr(inner.config.get_text_config(), "final_logit_softcapping", None)',
        'getattr(inner.config, "final_logit_softcapping", None)',
        "test_a_nested_text_configuration_is_read[softcap]",
    ),
    Mutation(
        "what was written in vain stays in the cache of transformers",
        KEPT,
        "if self.lengths is self._held or",
        "if True or",
        "test_a_cache_of_transformers_forgets",
    ),
    Mutation(
        "positions go on from the longest row",
        KEPT,
        "positions = self.lengths[:, None] + new",
        "positions = self.longest + new.expand(len(tokens), -1)",
        "test_a_cache_of_transformers_forgets",
    ),
    Mutation(
        "the scale of a head is passed by",
        HUGGINGFACE,
        "HeadLogits(hidden * scale,",
        "HeadLogits(hidden,",
        "test_the_scale_of_a_head_is_read",
        also=((HUGGINGFACE, "or not _near(ours, last)", "or False"),),
    ),
    Mutation(
        "the context is looked for beside the text's configuration",
        HUGGINGFACE,
        'getattr(config, "max_position_embeddings", None)',
        'getattr(unwrapped(model).config, "max_position_embeddings", None)',
        "test_a_nested_text_configuration_is_read[context]",
    ),
    Mutation(
        "the teacher without adapters has them on",
        HUGGINGFACE,
        "with evaluation_mode(self._student), _turned_off(self._adapted):",
        "with evaluation_mode(self._student):",
        "test_adapters_are_off_in_their_own_teacher[logits]",
    ),
    Mutation(
        "turning adapters on again thaws those that were frozen",
        HUGGINGFACE,
        "p.requires_grad_(requires_grad)",
        "pass",
        "test_adapters_are_off_in_their_own_teacher[trained]",
    ),
    Mutation(
        "teacher and student are compared as objects",
        MODULES,
        "known, still = storages(teacher),",
        "known, still = {id(p) for p in teacher.state_dict(keep_vars=True).values()},",
        "test_a_student_that_shares_memory_is_no_student",
        also=((MODULES, "if _storage(tensor) in known:", "if id(tensor) in known:"),),
    ),
    Mutation(
        "a shared backbone's dropout runs in the teacher",
        STEP,
        "if self.shared:  # its",
        "if False:  # its",
        "test_a_shared_backbone_leaves_the_teacher_as_it_was[dropout]",
    ),
    Mutation(
        "a shared backbone's running statistics move in the teacher",
        MODULES,
        'getattr(layer, "track_running_stats", False)',
        "False",
        "test_a_shared_backbone_leaves_the_teacher_as_it_was[statistics]",
    ),
    Mutation(
        "frozen batch normalisation is put in training mode",
        MODULES,
        "layer.training = training\n",
        "pass\n",
        "test_a_frozen_layer_stays_frozen",
    ),
    Mutation(
        "a dropout without parameters counts as frozen",
        MODULES,
        "if not model.training and own and not any(",
        "if not model.training and not any(",
        "test_a_student_that_was_measured_trains_all_the_same",
    ),
    Mutation(
        "channels-last is asked of five axes",
        MODULES,
        "if tensor.ndim == 4 else",
        "if tensor.ndim >= 4 else",
        "test_a_convolution_of_three_axes_trains",
    ),
    Mutation(
        "a checksum passes over state that is no tensor",
        STATE,
        "    if rest:\n        digest",
        "    if False:\n        digest",
        "test_state_that_is_no_tensor_is_kept[checksum]",
    ),
    Mutation(
        "state that is no tensor is not written",
        CHECKPOINT,
        '(("state", rest), ("tied", tied))',
        '(("tied", tied),)',
        "test_state_that_is_no_tensor_is_kept[model]",
    ),
    Mutation(
        "a run is told by the shapes of its state, which not all of it has",
        STATE,
        "tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__",
        "tuple(v.shape)",
        "test_state_that_is_no_tensor_is_kept[run]",
    ),
    Mutation(
        "quantised tensors are taken for plain ones",
        STATE,
        "isinstance(value, Tensor) and not value.is_quantized",
        "isinstance(value, Tensor)",
        "test_a_quantised_teacher_teaches_and_is_stored",
    ),
    Mutation(
        "the name of the compiler's wrapper is stored",
        STATE,
        'part != "_orig_mod"',
        "True",
        "test_a_compiled_model_is_the_same_model",
    ),
    Mutation(
        "bfloat16 is fast where it is only supported",
        "training/precision.py",
        "torch.cuda.get_device_capability(device) >= (8, 0)",
        "torch.cuda.is_bf16_supported()",
        "test_bfloat16_that_is_emulated_is_not_fast",
    ),
    Mutation(
        "float16 has no gradient scaler",
        "training/precision.py",
        'if precision == "float16" else None',
        "if False else None",
        "test_small_gradients_are_scaled_in_float16",
    ),
    Mutation(
        "gradients are clipped with the scale on them",
        STEP,
        "s.scaler.unscale_(s.optimizer)",
        "pass",
        "test_gradients_are_scaled_back_before_they_are_used",
    ),
    Mutation(
        "gradient norms are measured with the scale on them",
        STEP,
        "norm.item() / scale",
        "norm.item()",
        "test_gradients_are_scaled_back_before_they_are_used",
    ),
    Mutation(
        "the gradient scale begins anew with each resumption",
        STUDENT,
        'self.scaler.load_state_dict(header["scaler"])',
        "pass",
        "test_a_run_in_float16_goes_on_with_its_scale",
    ),
    Mutation(
        "a data set draws from wherever the generators stand",
        EXAMPLES,
        "with _drawn_from(self.seed, index):",
        "if True:",
        "test_a_loader_can_be_gone_on_with",
    ),
    Mutation(
        "what is loaded begins anew after an interruption",
        EXAMPLES,
        "order)][start:]",
        "order)]",
        "test_a_loader_can_be_gone_on_with",
    ),
    Mutation(
        "a validation split is looked at after an epoch",
        LOOP,
        'validation = None if validation is None else as_split(validation, "validation")',
        "pass",
        "test_what_cannot_be_validated_is_known_at_once",
    ),
    Mutation(
        "labels of a validation are looked at after an epoch",
        CHECKS,
        "check_classes(labels)",
        "pass",
        "test_what_cannot_be_validated_is_known_at_once",
    ),
    Mutation(
        "a dictionary loses its mask on the way",
        "training/taps.py",
        "args, kwargs = (), dict(args[0])",
        'args, kwargs = (args[0]["input_ids"],), {}',
        "test_a_dictionary_is_read_by_its_names",
    ),
    Mutation(
        "attention maps that a module returns have its dropout's noise",
        "training/taps.py",
        "next((given for dropped, given in self.dropped if dropped is maps), maps)",
        "maps",
        "test_attention_maps_are_those_before_dropout",
    ),
    Mutation(
        "a micro-batch has the whole of a dictionary",
        MICRO_BATCHES,
        "    return {name: x[part] for name, x in value.items()} if isinstance(value, dict) else value[part]",
        "    return value if isinstance(value, dict) else value[part]",
        "test_a_dictionary_is_read_by_its_names",
    ),
    Mutation(
        "padding of a dictionary is matched",
        MICRO_BATCHES,
        "return mask.bool() if fits else None",
        "return None",
        "test_padding_of_a_dictionary_is_not_matched",
    ),
    Mutation(
        "padding of a text with one label is matched",
        STEP,
        'return {} if read is None else {"hidden_mask": read}',
        "return {}",
        "test_padding_of_a_text_with_one_label_is_not_matched",
    ),
    Mutation(
        "a token is learned from itself",
        EXAMPLES,
        "if counted.any() and torch.equal",
        "if False and torch.equal",
        "test_labels_that_are_the_tokens_themselves_are_refused",
    ),
    Mutation(
        "each class of a soft label is taken for a token",
        MICRO_BATCHES,
        "labels.new_ones(labels.shape[:-1] or labels.shape, dtype=torch.bool)",
        "labels.new_ones(labels.shape, dtype=torch.bool)",
        "test_soft_labels_are_one_an_example",
    ),
    Mutation(
        "soft labels are compared with the predicted class",
        "training/measures.py",
        "labels = labels.argmax(-1)",
        "labels = labels.argmin(-1)",
        "test_soft_labels_are_one_an_example",
    ),
    Mutation(
        "CIFAR-10 is told by its size",
        "data/images.py",
        "    if checksum != known:\n",
        "    if False:\n",
        "test_images_that_are_not_the_data_set_are_refused",
    ),
    Mutation(
        "gradient norms are asked of frozen parameters",
        TERMS,
        "[x for x in wrt if x.requires_grad]",
        "list(wrt)",
        "test_gradient_norms_pass_frozen_layers_by",
    ),
    # The study
    Mutation(
        "records are made of what stands in for the data",
        "study/run.py",
        "    if book is not None:\n        no_stand_in(data)",
        "    if False:\n        no_stand_in(data)",
        "test_no_record_is_made_of_what_stands_in_for_the_data",
    ),
    Mutation(
        "a plan takes what stands in for its data",
        "study/named.py",
        "return no_stand_in(load_text_data(name))",
        "return load_text_data(name)",
        "test_what_a_spec_names_is_not_what_stands_in_for_it",
    ),
    Mutation(
        "students of two teachers are taken for one arm",
        "study/runner.py",
        "if known[teacher] != weights:",
        "if False:",
        "test_students_of_two_teachers_are_not_one_arm",
    ),
    Mutation(
        "a teacher that has its record needs no checkpoint",
        "study/runner.py",
        'path.exists() if "checkpoint" in record else not kept',
        "True",
        "test_a_teacher_without_its_checkpoint_is_trained_again",
    ),
    Mutation(
        "whatever a teacher comes to once more is the recorded one",
        "study/runner.py",
        "if not same_numbers(recorded, finished.record):",
        "if False:",
        "test_a_teacher_that_is_trained_again_is_the_recorded_one",
    ),
    Mutation(
        "a process tidies up where another is at work",
        "study/runner.py",
        "_tidy(mine, out)",
        "_tidy(left, out)",
        "test_a_process_removes_no_lock_and_checkpoint_of_another[out]",
    ),
    Mutation(
        "a record elsewhere makes a checkpoint needless",
        "study/runner.py",
        ' and find_record(spec, out / "records")]',
        "]",
        "test_a_process_removes_no_lock_and_checkpoint_of_another[book]",
    ),
    Mutation(
        "an infinite gradient of float16 is recorded",
        "training/step.py",
        "return x if math.isfinite(x) else None",
        "return x",
        "test_a_gradient_without_room_in_float16_has_no_length",
    ),
    Mutation(
        "the best epoch can be chosen on the test split",
        "study/run.py",
        "validation=validation,",
        "validation=data.test,",
        "test_test_split_is_touched_once",
    ),
    Mutation(
        "the seed is a hyper-parameter of the method",
        "study/image_plans.py",
        "replace(recipe, seed=seed), source",
        "replace(recipe, seed=seed if source is None else seed + 100), source",
        "test_every_arm_is_treated_alike",
    ),
    Mutation(
        "the baseline is not tuned",
        "study/image_plans.py",
        "replace(recipe, seed=seed), source",
        "replace(recipe, seed=seed, learning_rate=recipe.learning_rate if source else 0.01), source",
        "test_every_arm_is_treated_alike",
    ),
    Mutation(
        "the table asks a spec for what it leaves to a default",
        "study/flat.py",
        'spec, how, origin = record["spec"], record["recipe"], record',
        'spec, how, origin = record["spec"], {"learning_rate": None, "seed": 0} | record["spec"]["recipe"], record',
        "test_what_a_spec_leaves_to_a_default_is_in_the_table",
    ),
    Mutation(
        "a default of attention transfer crashes",
        "objectives/attention.py",
        '    form: Form = "released",',
        '    form: Form = "published",',
        "test_every_default_runs[activation_attention]",
    ),
    Mutation(
        "a default of the soft targets crashes",
        SOFT,
        "    temperature: Temperature = 4.0,\n    mask: Mask | None = None,\n    count: Count | None = None,\n"
        '    reduction: Reduction = "batchmean",\n    class_axis: int | None = None,\n) -> Loss:\n    r"""The soft-target',
        "    temperature: Temperature = None,\n    mask: Mask | None = None,\n    count: Count | None = None,\n"
        '    reduction: Reduction = "batchmean",\n    class_axis: int | None = None,\n) -> Loss:\n    r"""The soft-target',
        "test_every_default_runs[soft_targets]",
    ),
    Mutation(
        "a default of training crashes",
        "training/measures.py",
        "batch_size: int = 500",
        "batch_size: int = 0",
        "test_every_default_of_training_runs[predict]",
    ),
    # What does not count, and what does not exist
    Mutation(
        "NaN at a masked position is computed with, and masked afterwards",
        "objectives/softening.py",
        "return x if mask is None or harmless else torch.where(mask.unsqueeze(-1), x, 0.0)",
        "return x",
        "test_what_is_masked_has_no_influence[soft targets-not looked at]",
    ),
    Mutation(
        "NaN at a masked position is refused",
        "objectives/checks.py",
        "counted = logits.detach() if mask is None or not _inspectable(mask) else logits.detach()[mask]",
        "counted = logits.detach()",
        "test_sentence_of_what_is_masked",
    ),
    Mutation(
        "NaN in masked attention reaches the gradient",
        "objectives/attention.py",
        "maps = torch.where(counted, student_maps, 0.0), torch.where(counted, teacher_maps, 0.0)",
        "maps = [torch.where(counted.any(-1, keepdim=True), x, 0.0) for x in maps]",
        "test_masked_features_and_labels_have_no_influence[not looked at]",
        also=(
            (
                "objectives/attention.py",
                "losses = (student - teacher).square().sum",
                "losses = (student - teacher).square().where(counted, 0.0).sum",
            ),
        ),
    ),
    Mutation(
        "nothing times minus infinity is NaN",
        DIVERGENCES,
        "r = log_ratio.masked_fill(p == 0, -1.0)",
        "r = log_ratio",
        "test_a_class_that_does_not_exist_is_as_if_it_were_not_there[forward KL-not looked at]",
    ),
    Mutation(
        "a class that does not exist is shuffled among those that do",
        SOFT,
        "last = true_class + 2.0 * teacher.isneginf()",
        "last = true_class + 0.0",
        "test_a_class_that_does_not_exist_is_as_if_it_were_not_there[shuffled-not looked at]",
    ),
    Mutation(
        "classes that do not exist count in correlations",
        SOFT,
        "inter = reduce(_squared(temperature) * (1 - _correlation(p, q, -1, exists)), mask)",
        "inter = reduce(_squared(temperature) * (1 - _correlation(p, q, -1)), mask)",
        "test_a_class_that_does_not_exist_is_as_if_it_were_not_there[DIST-looked at]",
    ),
    Mutation(
        "an infinite loss is returned",
        "objectives/checks.py",
        "if not _inspectable(losses) or torch.isfinite(losses).all():",
        "if True:",
        "test_probability_for_what_does_not_exist_is_refused",
    ),
    Mutation(
        "the head of a language model knows no words that do not exist",
        "objectives/vocabulary.py",
        "return product.masked_fill_(p == 0, 0.0) if self.partial else product",
        "return product.nan_to_num(0.1)",
        "test_heads_of_words_that_do_not_exist",
    ),
    # Precision
    Mutation(
        "autocast halves the digits of a relation",
        "objectives/relational.py",
        "@without_autocast\ndef similarity_preserving(",
        "def similarity_preserving(",
        "test_objectives_are_right_under_autocast",
    ),
    Mutation(
        "autocast reaches into a term of one's own",
        TERMS,
        'if "forward" in own:',
        "if not own:",
        "test_objectives_are_right_under_autocast",
    ),
    Mutation(
        "the constant of CRD overflows for good",
        MEMORY,
        "score, negatives = score.double(), negatives.double()",
        "score, negatives = score.float(), negatives.float()",
        "test_the_constant_of_crd_does_not_overflow",
        also=((MEMORY, "| ~torch.isfinite(first)", ""),),
    ),
    Mutation(
        "estimates of a divergence are computed in half precision",
        "objectives/policy.py",
        "log_policy, log_reference = full_precision(log_policy), full_precision(log_reference)",
        "log_policy, log_reference = log_policy + 0, log_reference + 0",
        "test_estimates_of_a_divergence_keep_their_digits",
    ),
    Mutation(
        "an estimate that overflows is returned",
        "objectives/policy.py",
        "and log_rho.max() > largest:",
        "and log_rho.max() > largest**2:",
        "test_estimates_of_a_divergence_keep_their_digits",
    ),
    Mutation(
        "probabilities in bfloat16 are refused for their rounding",
        "objectives/checks.py",
        "counted.sum(-1, dtype=torch.float64) - 1).abs().amax()",
        "counted.sum(-1) - 1).abs().amax()",
        "test_targets_in_half_precision_are_distributions",
        also=(
            ("objectives/checks.py", "if not off <= max(1e-3, torch.finfo(target.dtype).eps):", "if not off <= 1e-3:"),
        ),
    ),
    Mutation(
        "a cache keeps nothing of the rest of a sure teacher",
        "language/caches.py",
        "probabilities *= 1 - torch.from_numpy(self._rest[places])",
        "probabilities *= 1 - 0 * torch.from_numpy(self._rest[places])",
        "test_the_rest_of_a_sure_teacher_is_kept",
    ),
    # Inputs that are not what they seem
    Mutation(
        "log-probabilities are taken for probabilities",
        "objectives/sparse.py",
        "if _inspectable(self.probabilities) and _inspectable(self.tokens):",
        "if False:",
        "test_sparse_targets_are_checked",
    ),
    Mutation(
        "a truncated distribution is taken for a whole one",
        "objectives/sparse.py",
        "if not targets.rest and len(total) and total.min() < 1 - _close(p):",
        "if False:",
        "test_sparse_targets_are_checked",
    ),
    Mutation(
        "temperatures are broadcast into nonsense",
        "objectives/checks.py",
        "if logits is not None and not _spreads(shape, tuple(logits.shape)):",
        "if False:",
        "test_temperatures_are_one_a_distribution",
    ),
    Mutation(
        "maps are softened over their width",
        "objectives/softening.py",
        "(class_axis is None and logits.ndim < 4):",
        "class_axis is None:",
        "test_the_class_axis_is_said",
    ),
    Mutation(
        "a restricted head keeps the bias of other words",
        SEQUENCE,
        "bias = None if logits.bias is None else logits.bias[which]",
        "bias = None if logits.bias is None else logits.bias[: len(tokens)]",
        "test_vocabularies_are_restricted_where_it_is_advised",
    ),
    Mutation(
        "what is kept of other words stays among the chosen",
        SEQUENCE,
        "kept = targets.probabilities.where(there, 0.0)",
        "kept = targets.probabilities",
        "test_vocabularies_are_restricted_where_it_is_advised",
    ),
    Mutation(
        "measures broadcast labels against predictions",
        "training/measures.py",
        "    logits, labels = _counted(logits, labels, mask, class_axis)\n    return (logits.argmax",
        "    return (logits.argmax",
        "test_measures_check_what_losses_check",
    ),
    Mutation(
        "the divergence that is measured is NaN where words do not exist",
        "training/measures.py",
        ".masked_fill_(p == 0, 0.0).sum().item()",
        ".sum().item()",
        "test_measures_check_what_losses_check",
    ),
    Mutation(
        "gradient norms stop at a frozen layer",
        TERMS,
        "norms, wrt = {}, [x for x in wrt if x.requires_grad]",
        "norms, wrt = {}, [x for x in wrt if x.requires_grad][:1]",
        "test_gradient_norms_leave_out_frozen_layers",
    ),
    Mutation(
        "a fitted temperature multiplies a probability of zero with minus infinity",
        "training/measures.py",
        "z.masked_fill(z.isneginf(), 0.0)",
        "z",
        "test_a_fitted_temperature_is_of_what_counts",
    ),
    Mutation(
        "soft targets are learned where the label is -100",
        TERMS,
        'seen["mask"] = learned',
        "pass",
        "test_labels_of_minus_100_do_not_count_where_no_term_looks_at_them[SoftTargets(temperature=4)]",
    ),
    Mutation(
        "binary losses of maps take a row of a map for an example",
        "objectives/binary.py",
        "    return classes_last(class_axis, logits, *others, mask, fits=mask if of_examples else None)",
        "    return logits, *others, mask",
        "test_maps_of_labels_that_do_not_exclude_each_other",
    ),
    Mutation(
        "advantages are taken in half precision",
        "objectives/policy.py",
        "full_precision(returns) if returns.is_floating_point() else",
        "returns if returns.is_floating_point() else",
        "test_advantages_keep_their_digits",
    ),
    Mutation(
        "relations compare what stands in padding",
        LAYERS,
        "yield _counted(pair[0], counted), _counted(pair[1], counted)",
        "yield pair",
        "test_relations_do_not_look_at_padding",
    ),
    Mutation(
        "of a model of two parts, what is written is counted as what is read",
        LAYERS,
        "return given[name]",
        'return given["encoder"]',
        "test_each_part_of_a_model_has_the_mask_of_its_own",
    ),
    Mutation(
        "a bias of positions is taken for attention maps",
        "training/taps.py",
        "for x in output[:0:-1] if",
        "for x in output[1:] if",
        "test_of_what_an_attention_module_returns_maps_are_the_last",
    ),
    Mutation(
        "a rest that no single precision holds is not learned from hidden states",
        "objectives/sparse.py",
        "if (total > kind.tiny / kind.eps).all():",
        "if (total > 0).all():",
        "test_what_no_probability_of_single_precision_holds_is_learned_of_the_rest",
    ),
    Mutation(
        "a sparse entry of nothing is taken from the rest",
        "objectives/sparse.py",
        "return tokens.where(kept > 0, tokens",
        "return tokens.where(kept >= 0, tokens",
        "test_sparse_entries_of_nothing_are_not_there",
    ),
    Mutation(
        "the rounding of bfloat16 is judged by that of float32",
        "objectives/sparse.py",
        "p = counted_rows(targets.probabilities, mask)",
        "p = counted_rows(full_precision(targets.probabilities), mask)",
        "test_half_precision_is_a_distribution_for_every_term",
    ),
    Mutation(
        "labels are smoothed over classes that do not exist",
        TERMS,
        "        exists, classes = ~student.isneginf()",
        "        exists, classes = ~student.isnan()",
        "test_labels_are_smoothed_over_classes_that_exist",
    ),
    Mutation(
        "logits in one half precision cannot be looked at in an autocast to the other",
        "objectives/checks.py",
        "all(map(torch.isfinite, logits.aminmax()))",
        "torch.isfinite(torch.stack(logits.aminmax())).all()",
        "test_logits_of_another_half_than_autocast",
    ),
    Mutation(
        "what stands in padding goes through a projector",
        LAYERS,
        "            student = _counted(student, counted)  # before",
        "            # before",
        "test_padding_does_not_reach_a_projector[linear]",
    ),
    Mutation(
        "statistics without weights move though they are frozen",
        MODULES,
        "(list(model.buffers()) if within_training else [])",
        "[]",
        "test_statistics_without_weights_stay_frozen",
    ),
    # What users ask for
    Mutation(
        "soft labels are taken for those of tokens",
        MICRO_BATCHES,
        "return labels.new_ones(labels.shape[:-1] or labels.shape, dtype=torch.bool)",
        "return labels.new_ones(labels.shape, dtype=torch.bool)",
        "test_soft_labels",
    ),
    Mutation(
        "soft labels get a true class",
        "objectives/checks.py",
        '    if isinstance(labels, Tensor) and labels.is_floating_point():\n        raise TypeError(\n            f"{who} needs',
        '    if labels is None:\n        raise TypeError(\n            f"{who} needs',
        "test_soft_labels",
    ),
    Mutation(
        "tokens of large vocabularies are written in 16 bits",
        "data/tokens.py",
        "np.dtype(np.uint16 if vocabulary <= 2**16 else np.uint32)",
        "np.dtype(np.uint16 if vocabulary <= 2**32 else np.uint32)",
        "test_vocabularies_of_more_than_16_bits",
    ),
    Mutation(
        "texts go on after their end",
        "language/generation.py",
        "following = following.masked_fill(ended, 0)",
        "following = following + 0",
        "test_nothing_is_learned_after_the_end_of_a_text",
        also=(("language/generation.py", "if stop is not None and ended.all():", "if False:"),),
    ),
    Mutation(
        "what follows the end of a text is learned",
        "language/text.py",
        "return labels.masked_fill(places >= text_lengths(text, prompt, stop)[:, None], IGNORED)",
        "return labels",
        "test_nothing_is_learned_after_the_end_of_a_text",
    ),
    Mutation(
        "T squared is left out of multi-label distillation",
        "objectives/binary.py",
        "return reduce(_squared(temperature) * losses, examples, reduction, count)",
        "return reduce(losses, examples, reduction, count)",
        "test_labels_that_do_not_exclude_each_other",
    ),
    Mutation(
        "labels are averaged as classes are not",
        "objectives/binary.py",
        "losses = _kl(_with_absence(t), _with_absence(z)).where(counted, 0.0).sum(-1)",
        "losses = _kl(_with_absence(t), _with_absence(z)).where(counted, 0.0).mean(-1)",
        "test_labels_that_do_not_exclude_each_other",
    ),
    Mutation(
        "a mean above zero is taken for an interval above zero",
        "study/statements.py",
        'return "above" if d.low > 0 else "below"',
        'return "above" if d.mean > 0 else "below"',
        "test_an_interval_that_touches_zero_decides_nothing",
    ),
    Mutation(
        "a smaller number is called above, by a factor below one",
        "study/statements.py",
        "if (factor is not None and factor < 1) or (by",
        "if (factor is not None and factor < 0) or (by",
        "test_a_smaller_number_is_not_called_above",
    ),
    Mutation(
        "a statement is not tried on evidence to the contrary",
        "study/statements.py",
        "if alive := list(survivors(rule, of, level)):",
        "if alive := []:",
        "test_a_statement_is_tried_on_evidence_to_the_contrary",
    ),
    Mutation(
        "the leader is compared with those only that the author named",
        "study/statements.py",
        "others = [a for a in of.among if a != best]",
        "others = [a for a in of.among if a != best][:1]",
        "test_who_leads_is_judged_over_all_arms",
    ),
    Mutation(
        "records are blamed on the processor",
        "study/statements.py",
        'if self.source == "records" else f"this build',
        'if self.source == "theory" else f"this build',
        "test_records_are_not_blamed_on_the_processor",
    ),
    Mutation(
        "a plan forgets the teacher of its students",
        "study/when_it_pays.py",
        "return [language_teacher(), *students]",
        "return students",
        "test_a_plan_brings_the_teacher_of_its_students",
    ),
    Mutation(
        "smoothing is multiplied, and not its odds",
        "study/grown.py",
        "SmoothedLabels(_share(weight / 9))",
        "SmoothedLabels(min(1.0, 0.1 * weight))",
        "test_smoothing_stays_below_one_however_far_its_grid_grows",
    ),
    Mutation(
        "the best of many is judged as if it had been named beforehand",
        "study/statements.py",
        'of.differences(best, others, correction="tukey")',
        'of.differences(best, others, correction="dunnett")',
        "test_the_best_of_many_is_judged_as_chosen_by_its_mean",
    ),
    Mutation(
        "the best of many, in an answer, is judged as if it had been named beforehand",
        "study/answers.py",
        'if arm != first], correction="tukey")',
        'if arm != first], correction="dunnett")',
        "test_the_best_of_many_is_judged_as_chosen_by_its_mean",
    ),
    Mutation(
        "of many arms each is held against a level as if it were alone",
        "study/statements.py",
        "of.mean(arm, 1 - 0.05 / len(of.among))",
        "of.mean(arm)",
        "test_arms_above_a_level_are_so_at_once",
    ),
    Mutation(
        "a law is accepted that its own runs refuse",
        "study/power_law.py",
        "if strays is not None and strays < STRAYS:",
        "if strays is not None and strays < 0:",
        "test_a_law_that_its_own_runs_refuse_is_none",
    ),
    Mutation(
        "what no run has reached is taken for infinitely much",
        "study/power_law.py",
        "np.minimum(found, alone._reach / tokens)",
        "found",
        "test_what_no_run_has_reached_counts_as_the_longest_that_was_run",
    ),
    Mutation(
        "a run that diverged is waited for",
        "study/results.py",
        'seeds = [{r["recipe"]["seed"] for r in self.arm(name)} for name in names]',
        'seeds = [{r["recipe"]["seed"] for r in self.arm(name) if r["test"]} for name in names]',
        "test_a_run_that_diverged_is_not_waited_for",
    ),
    # Every field of a recipe
    Mutation(
        "recipe: the student runs without autocast",
        STEP,
        "    with autocast(s.device, s.recipe.precision):\n        student_logits",
        "    if True:\n        student_logits",
        "test_every_field_of_a_recipe_is_seen_from_inside[precision]",
    ),
    Mutation(
        "recipe: the teacher runs without autocast",
        STEP,
        "            stack.enter_context(autocast(self.device, students[0].recipe.precision))\n",
        "",
        "test_every_field_of_a_recipe_is_seen_from_inside[precision]",
    ),
    Mutation(
        "recipe: what the objective learns is not clipped",
        STEP,
        "clip_grad_norm_(s.parameters(),",
        "clip_grad_norm_(s.model.parameters(),",
        "test_every_field_of_a_recipe_is_seen_from_inside[max_gradient_norm]",
    ),
    Mutation(
        "recipe: one epoch less",
        "training/recipe.py",
        "len(history) >= self.epochs",
        "len(history) >= max(self.epochs - 1, 1)",
        "test_every_field_of_a_recipe_is_seen_from_inside[epochs]",
    ),
    Mutation(
        "recipe: batches have another size",
        GROUP,
        "            recipe.batch_size,\n            generator",
        "            recipe.batch_size // 2,\n            generator",
        "test_every_field_of_a_recipe_is_seen_from_inside[batch_size]",
    ),
    Mutation(
        "recipe: AdamW is Adam",
        OPTIMIZERS,
        'if recipe.optimizer == "adamw":',
        'if recipe.optimizer == "none":',
        "test_every_field_of_a_recipe_is_seen_from_inside[optimizer]",
    ),
    Mutation(
        "recipe: the learning rate is the default",
        "training/recipe.py",
        "            return self.learning_rate * self.decay ** sum(epoch >= milestone for milestone in self.milestones)\n        return self.learning_rate",
        "            return self.learning_rate * self.decay ** sum(epoch >= milestone for milestone in self.milestones)\n        return Recipe.learning_rate",
        "test_every_field_of_a_recipe_is_seen_from_inside[learning_rate]",
    ),
    Mutation(
        "recipe: there is no momentum",
        OPTIMIZERS,
        "torch.optim.SGD(parameters, rate, recipe.momentum,",
        "torch.optim.SGD(parameters, rate, 0.0,",
        "test_every_field_of_a_recipe_is_seen_from_inside[momentum]",
    ),
    Mutation(
        "recipe: the cosine falls to its middle",
        "training/recipe.py",
        "math.cos(math.pi * min(done, 1.0))",
        "math.cos(math.pi * min(done, 1.0) / 2)",
        "test_every_field_of_a_recipe_is_seen_from_inside[schedule]",
    ),
    Mutation(
        "recipe: only one milestone counts",
        "training/recipe.py",
        "sum(epoch >= milestone for milestone in self.milestones)",
        "any(epoch >= milestone for milestone in self.milestones)",
        "test_every_field_of_a_recipe_is_seen_from_inside[milestones]",
    ),
    Mutation(
        "recipe: the decay is half, whatever it is said to be",
        "training/recipe.py",
        "self.learning_rate * self.decay ** sum",
        "self.learning_rate * 0.5 ** sum",
        "test_every_field_of_a_recipe_is_seen_from_inside[decay]",
    ),
    Mutation(
        "recipe: there is no warm-up",
        "training/recipe.py",
        "return self.learning_rate * epoch / self.warmup_epochs",
        "return self.learning_rate",
        "test_every_field_of_a_recipe_is_seen_from_inside[warmup_epochs]",
    ),
    Mutation(
        "recipe: weights do not decay",
        OPTIMIZERS,
        "recipe.momentum, weight_decay=recipe.weight_decay",
        "recipe.momentum, weight_decay=0.0",
        "test_every_field_of_a_recipe_is_seen_from_inside[weight_decay]",
    ),
    Mutation(
        "recipe: nothing is augmented",
        GROUP,
        "            augment=recipe.augment,",
        "            augment=False,",
        "test_every_field_of_a_recipe_is_seen_from_inside[augment]",
    ),
    Mutation(
        "recipe: every seed has the same order",
        GROUP,
        'generator(seed, epoch, "order")',
        'generator(0, epoch, "order")',
        "test_every_field_of_a_recipe_is_seen_from_inside[seed]",
    ),
    Mutation(
        "recipe: the teacher's own view is the student's",
        STEP,
        'views[seed] if view == "own" else batches[seed][0]',
        "batches[seed][0]",
        "test_every_field_of_a_recipe_is_seen_from_inside[teacher_view]",
    ),
    Mutation(
        "recipe: nothing is mixed",
        GROUP,
        "if recipe.mixup:",
        "if False:",
        "test_every_field_of_a_recipe_is_seen_from_inside[mixup]",
    ),
    Mutation(
        "recipe: a teacher with a view of its own sees another mixture",
        "training/mixup.py",
        'generator(seed, epoch, step, "mixup")',
        "torch.Generator().manual_seed(torch.seed() % 2**63)",
        "test_every_field_of_a_recipe_is_seen_from_inside[mixup]",
    ),
    Mutation(
        "recipe: the teacher is always in evaluation mode",
        LOOP,
        'if recipe.teacher_mode == "train":',
        "if False:",
        "test_every_field_of_a_recipe_is_seen_from_inside[teacher_mode]",
    ),
    Mutation(
        "recipe: an epoch has all examples",
        LOOP,
        "recipe.epoch_examples or len(train)",
        "len(train)",
        "test_every_field_of_a_recipe_is_seen_from_inside[epoch_examples]",
        also=((GROUP, "        order = order[: recipe.epoch_examples]\n", ""),),
    ),
    Mutation(
        "recipe: a batch is run as one",
        STEP,
        "micro_batches(s.recipe.micro_batches, labels",
        "micro_batches(1, labels",
        "test_every_field_of_a_recipe_is_seen_from_inside[micro_batches]",
    ),
    Mutation(
        "micro-batches divide hidden states by the tokens with a label",
        MICRO_BATCHES,
        '"hidden_count": which.numel() if read is None',
        '"hidden_count": global_count(which) if read is None',
        "test_hidden_states_of_prompts_count_in_micro_batches",
    ),
    Mutation(
        "GRPO's deviation divides by G",
        "objectives/policy.py",
        "groups.std(1, keepdim=True)",
        "groups.std(1, correction=0, keepdim=True)",
        "test_the_deviation_of_a_group_is_that_of_a_sample",
    ),
    # What would go on unseen
    Mutation(
        "a term without a count runs in micro-batches",
        CHECKS,
        "if not {p.name for p in _asked(term)} & _COUNTS:",
        "if False:",
        "test_a_term_that_ignores_the_count_has_no_micro_batches",
    ),
    Mutation(
        "checkpoint: other inputs are not noticed",
        IDENTITY,
        "**(_inputs_checksum(train) if inputs else {}),",
        "",
        "test_a_run_does_not_go_on_with_other_inputs_or_another_forward_pass",
    ),
    Mutation(
        "checkpoint: another activation is not noticed",
        STATE,
        "parts.append((plain(name), type(part).__qualname__, options, _code(type(part))))",
        "parts.append((plain(name), _code(type(part))))",
        "test_a_run_does_not_go_on_with_other_inputs_or_another_forward_pass",
    ),
    Mutation(
        "checkpoint: the code of a forward pass is not noticed",
        STATE,
        "parts.append((plain(name), type(part).__qualname__, options, _code(type(part))))",
        'parts.append((plain(name), type(part).__qualname__.replace("Halved", "Doubled"), options))',
        "test_a_run_does_not_go_on_with_other_inputs_or_another_forward_pass",
    ),
    Mutation(
        "an epoch is reported after its checkpoint counts",
        CHECKPOINT,
        "        part.write_bytes(content)\n        if last is not None:\n            last()\n",
        "        if last is not None:\n            last()\n        part.write_bytes(content)\n",
        "test_each_epoch_is_reported_once[full disk]",
    ),
    Mutation(
        "an interrupted report leaves its epoch without a checkpoint",
        STUDENT,
        "                interrupted.append(error)",
        "                raise",
        "test_each_epoch_is_reported_once[interrupted]",
    ),
    Mutation(
        "a teacher's own view of vectors is the student's, silently",
        CHECKS,
        'if learner.recipe.teacher_view == "own" and not',
        "if False and not",
        "test_what_is_not_augmented_says_so",
    ),
    Mutation(
        "pictures in Examples are not cropped, silently",
        CHECKS,
        "if recipe.augment and isinstance(pictures",
        "if False and isinstance(pictures",
        "test_what_is_not_augmented_says_so",
    ),
    Mutation(
        "labels with two axes are always a text",
        STEP,
        "if counts.shape not in (shape[:-1], (shape[0], *shape[2:])):",
        "if False:",
        "test_labels_with_two_axes_are_not_taken_for_a_text",
    ),
    Mutation(
        "labels do not say where the classes are",
        "objectives/softening.py",
        "return -1 if beside_the_last else None",
        "return None",
        "test_labels_say_where_the_classes_are",
    ),
    Mutation(
        "images without a label are taken for those of class -100",
        TERMS,
        "return None if _inspectable(learned) and learned.all() else learned",
        "return None",
        "test_unlabelled_images_and_misshapen_labels",
    ),
    # Tasks of one's own
    Mutation(
        "recipe: an average forgets what it ought to keep",
        WEIGHTS,
        "mean.lerp_(self.live[name], 1 - decay)",
        "mean.lerp_(self.live[name], decay)",
        "test_every_field_of_a_recipe_is_seen_from_inside[ema_decay]",
    ),
    Mutation(
        "recipe: the student is left as it is after the last epoch",
        WEIGHTS,
        "self._fill(self.best or self.average)",
        "self._fill(self.average)",
        "test_every_field_of_a_recipe_is_seen_from_inside[best_by]",
    ),
    Mutation(
        "recipe: patience waits one epoch more",
        "training/recipe.py",
        "self.best_epoch(history) >= self.patience",
        "self.best_epoch(history) > self.patience",
        "test_every_field_of_a_recipe_is_seen_from_inside[patience]",
    ),
    Mutation(
        "labels of a regression are compared with the outputs of all examples",
        SOFT,
        "        target = target.unsqueeze(axis) if outputs.shape[axis] == 1 else target\n",
        "        target = target.expand(len(outputs), -1) if outputs.shape[axis] == 1 else target\n        outputs = outputs.expand_as(target)\n",
        "test_labels_of_a_regression_are_of_their_examples",
    ),
    Mutation(
        "a hint compares a part of the picture with the whole",
        "training/views.py",
        "found[layer] = resample(x, inside, ",
        "found[layer] = resample(x, teacher, ",
        "test_a_hint_compares_what_lies_at_one_place",
    ),
    Mutation(
        "what a service rounds to zero stays zero",
        TEACHERS,
        "log_p.clamp(min=math.log(self.smallest)).log_softmax(-1)",
        "log_p",
        "test_zeros_of_a_service_stand_for_something",
    ),
    Mutation(
        "kept logits of whole pictures teach crops",
        TEACHERS,
        "if augments(split) and any(recipe.augment",
        "if False and any(recipe.augment",
        "test_kept_logits_are_of_what_the_student_sees",
    ),
    Mutation(
        "a data set that draws seldom is taken for one that draws nothing",
        EXAMPLES,
        "return drew or first != again",
        "return first != again",
        "test_a_data_set_that_draws_is_told_from_one_that_does_not",
    ),
    Mutation(
        "kept logits of one drawing teach another, of a DataLoader",
        TEACHERS,
        "if draws(split):",
        "if False:",
        "test_kept_logits_are_of_what_the_student_sees",
    ),
    Mutation(
        "pictures that a model cannot read are said in PyTorch's words",
        "training/taps.py",
        "if torch.uint8 not in given or not",
        "if True or not",
        "test_pictures_that_a_model_cannot_read_are_said",
    ),
    Mutation(
        "an error inside a model is laid to its inputs",
        "training/taps.py",
        "if torch.uint8 not in given or not",
        "if False and not",
        "test_an_error_inside_a_model_is_its_own",
    ),
    Mutation(
        "a file that a question opened is shared by all workers",
        EXAMPLES,
        "generator=torch.Generator(), **self._workers(1))",
        "generator=torch.Generator())",
        "test_workers_do_not_share_a_file_that_a_question_opened",
    ),
    Mutation(
        "a data set that draws nothing is taken for one that draws",
        EXAMPLES,
        "return drew or first != again",
        "return True",
        "test_a_data_set_that_draws_is_told_from_one_that_does_not",
    ),
    Mutation(
        "what an optimiser keeps comes back in another memory layout",
        CHECKPOINT,
        "torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)",
        "value.contiguous()",
        "test_a_resumed_optimiser_keeps_its_state_in_the_layout_of_its_parameter",
    ),
    Mutation(
        "a teacher in training mode normalises the batches of several seeds together",
        STEP,
        'apart = students[0].recipe.teacher_mode == "train"',
        "apart = False",
        "test_a_teacher_in_training_mode_looks_at_each_seeds_batch_alone",
    ),
    Mutation(
        "float32 on a GPU is TF32",
        DETERMINISM,
        'flags.deterministic, flags.allow_tf32 = True, precision != "float32"',
        "flags.deterministic, flags.allow_tf32 = True, True",
        "test_on_another_device_its_streams_are_made_and_float32_is_no_tf32",
    ),
    Mutation(
        "on a device, tokens that do not count are learned from",
        "objectives/vocabulary.py",
        "slope = slope if kept is None else slope.masked_fill(~kept[:, None], 0.0)",
        "slope = slope if kept is None else slope.contiguous()",
        "test_tokens_that_do_not_count_are_computed_and_weigh_nothing",
    ),
    Mutation(
        "smoothed labels are made on the host",
        SOFT,
        "where = labels.device if isinstance(labels, Tensor) else None",
        "where = None",
        "test_smoothed_labels_are_made_where_the_labels_are",
    ),
    Mutation(
        "the five seeds of a benchmark are one",
        "benchmarks/by_hand.py",
        'seeds = range(5) if torch.device(settings.device).type == "cuda" else (0,) * 5',
        "seeds = (0,) * 5",
        "test_five_students_on_cuda_have_five_seeds",
    ),
    Mutation(
        "the teacher's logits are taken by the student's numbers of shared tokens",
        SEQUENCE,
        "restrict_vocabulary(teacher, self.teacher_tokens, rest=rest)",
        "restrict_vocabulary(teacher, self.tokens, rest=rest)",
        "test_a_shared_vocabulary_has_two_ways_to_number_it",
    ),
    Mutation(
        "a teacher with a tokeniser of its own is read a token too early",
        "language/two_tokenisers.py",
        "values[row, at] = logits[row, teacher]",
        "values[row, at] = logits[row, teacher - 1]",
        "test_a_teacher_with_its_own_tokeniser_is_read_where_tokens_of_both_end",
    ),
    Mutation(
        "a teacher with a tokeniser of its own is read behind a text that was cut off",
        "language/two_tokenisers.py",
        "shared = shared[:-1]",
        "shared = shared[:]",
        "test_a_teacher_with_its_own_tokeniser_is_read_where_tokens_of_both_end",
    ),
    Mutation(
        "a span of text counts of which some tokens do not",
        "objectives/aligned.py",
        "(counted.gather(1, end) - counted.gather(1, start) == lengths)",
        "(counted.gather(1, end) - counted.gather(1, start) > 0)",
        "test_a_span_of_two_tokens_is_their_product_and_counts_as_a_whole",
    ),
    Mutation(
        "with two tokenisers a mean is over the places where both have read the same, and parts of a batch do not add up",
        SEQUENCE,
        "return read.numel() if mask is None else mask.sum().clamp(min=1)",
        "return read.sum() if mask is None else (read & mask).sum().clamp(min=1)",
        "test_a_span_of_two_tokens_is_their_product_and_counts_as_a_whole",
    ),
    Mutation(
        "a text that has changed in place has the checksum that it had",
        "language/caches.py",
        "    if known is None or state is None or known[0] != state:\n",
        "    if known is None or state is None:\n",
        "test_a_text_is_hashed_once_and_again_where_it_has_changed",
    ),
    Mutation(
        "a checkpoint of a fused run goes on unfused",
        STUDENT,
        '            **leaves_logits("student", self.model),\n',
        "",
        "test_whether_logits_are_left_to_the_losses_is_in_a_checkpoint[student]",
    ),
    Mutation(
        "a part of a tensor is stored as the whole that it is tied to",
        CHECKPOINT,
        "place_of(tensor), tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device",
        "place_of(tensor), tensor.storage_offset()",
        "test_tied_weights_are_stored_once",
    ),
    Mutation(
        "what another process is writing is taken for what a killed one left",
        "files.py",
        "with suppress(OSError), _lock(left):",
        "with suppress(OSError):",
        "test_what_a_living_process_writes_is_not_taken_for_left",
    ),
    Mutation(
        "a folder that a killed writer left stops every later run",
        "files.py",
        "if path.is_dir() and not path.is_symlink():",
        "if False:",
        "test_what_a_killed_process_left_is_removed_before_a_run",
    ),
    Mutation(
        "a row that has ended is written over at the end of a context",
        "language/speculative.py",
        "proposed.where(open_rows[:, None], written.gather(1, places))",
        "proposed",
        "test_a_row_that_has_ended_stays_as_it_is_at_the_end_of_a_context",
    ),
    Mutation(
        "what a teacher said of one view is taken for what it said of another",
        "training/teachers.py",
        "return self.table[self.views[view], index]",
        "return self.table[self.views[view].flip(0), index]",
        "test_kept_logits_are_of_the_view_that_is_seen",
    ),
    Mutation(
        "NaN becomes a zero vector where values are not looked at",
        "objectives/features.py",
        "some = squared != 0",
        "some = squared > 0",
        "test_nan_stays_nan_on_a_device",
    ),
    Mutation(
        "a tokeniser that was set to cut loses the rest of a text",
        "language/tokeniser.py",
        "    copied.no_truncation()\n",
        "",
        "test_a_tokeniser_that_cuts_loses_no_text",
    ),
    Mutation(
        "a student that knows of a class that there is not has diverged",
        "training/step.py",
        "student_logits.detach().amax()",
        "student_logits.detach().sum()",
        "test_a_class_that_there_is_not_is_no_divergence",
    ),
    Mutation(
        "classes of a vocabulary are made of what a mask leaves out",
        "objectives/sequence.py",
        "_counted(z, mask) for z in (student_logits, teacher_logits)",
        "z for z in (student_logits, teacher_logits)",
        "test_masked_places_are_no_classes",
    ),
]

#: What must not count as caught, and how the complaint begins.
CONTROLS = {
    "survived": Mutation("nothing", TERMS, "SEEN = frozenset(", "SEEN = frozenset(  #", "test_direction"),
    "not planted: the snippet occurs 0": Mutation("moved", TERMS, "no such code", "", "test_direction"),
    "not planted: the snippet occurs 3": Mutation(
        "several times", TERMS, "return response.cross_entropy(", "", "test_direction"
    ),
    "not planted: the mistake is no Python": Mutation("syntax", TERMS, "SEEN = ", "SEEN = = ", "test_direction"),
    "no assertion failed, but tests": Mutation("import", TERMS, "SEEN = ", "SEEN = no_such_name or ", "test_direction"),
    "no assertion failed, but test_direction": Mutation(
        "crash",
        DIVERGENCES,
        "return _reduced(_kl(log_p, log_q), mask",
        "return _reduced(no_such_name, mask",
        "test_direction",
    ),
}


class NotPlanted(Exception):
    """A snippet that is not there, or not once, or a mistake that is no Python."""


def plant(mutation: Mutation, package: Path) -> None:
    """Write the mistake into a copy of the package."""
    for file, old, new in ((mutation.file, mutation.old, mutation.new), *mutation.also):
        path = package / file
        source = path.read_text(encoding="utf-8")
        if source.count(old) != 1:
            raise NotPlanted(f"the snippet occurs {source.count(old)} times in kdlab/{file}:\n{old}")
        source = source.replace(old, new)
        try:
            ast.parse(source)
        except SyntaxError as error:
            raise NotPlanted(f"the mistake is no Python in kdlab/{file}: {error}") from None
        path.write_text(source, encoding="utf-8")
        for stale in path.parent.glob(f"__pycache__/{path.stem}.*"):
            stale.unlink()


class Witness:
    """What pytest saw: each exception of the package's copy, and whether an assertion of a test raised it."""

    def __init__(self, package: Path):
        self.package, self.seen, self.passed = str(package), [], 0

    def pytest_runtest_makereport(self, item, call):
        import pytest

        if call.excinfo is None:
            self.passed += call.when == "call"
        else:
            asserted = issubclass(call.excinfo.type, (AssertionError, pytest.fail.Exception))
            outside = not str(call.excinfo.traceback[-1].path).startswith(self.package)
            self.seen.append((item.name, call.excinfo.exconly(), asserted and outside and call.when == "call"))

    def pytest_collectreport(self, report):
        if report.failed:
            self.seen.append((report.nodeid, str(report.longrepr), False))


def start_child(nodes: list[str], room: Path, *options: str) -> int:
    """Fork; in the child import the package from ``room`` and run the tests. What it saw it leaves in a file there."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(SECONDS)
            sink = os.open(room / "output.txt", os.O_WRONLY | os.O_CREAT)
            os.dup2(sink, 1)
            os.dup2(sink, 2)
            (room / "answer.json").write_text(json.dumps(_tested(nodes, room, options)))
            status = 0
        except BaseException:  # noqa: BLE001 - the parent is told, whatever it is
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def what_it_saw(room: Path, status: int) -> dict:
    """The answer of a child that ended with ``status``."""
    if status != 0:
        output = (room / "output.txt").read_text(errors="replace")
        return {"passed": 0, "seen": [["the child", f"ended with status {status}: {output[-2000:]}", False]]}
    return json.loads((room / "answer.json").read_text())


def _tested(nodes, room, options):
    import pytest

    sys.path.insert(0, str(room))
    import kdlab

    witness = Witness(Path(kdlab.__file__).parent)
    assert witness.package == str(room / "kdlab"), witness.package
    code = pytest.main(
        [*nodes, *options, f"-c{TESTS.parent / 'pyproject.toml'}", "-oaddopts=", "-pno:cacheprovider", "--assert=plain",
         "--tb=no", f"--basetemp={room / 'temporary'}"],
        plugins=[witness],
    )  # fmt: skip
    if code not in (0, 1):
        witness.seen.append(("pytest", f"ended with {code!r}", False))
    return {"passed": witness.passed, "seen": witness.seen}


def warm_up() -> None:
    """Import once what every child needs; not the package itself."""
    import hypothesis  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import pytest  # noqa: F401
    import safetensors.torch  # noqa: F401
    import scipy.stats  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import torch
    import typechecked  # noqa: F401

    torch.set_num_threads(1)  # a process that has threads cannot be forked
    layer = torch.nn.Linear(2, 2)
    for kind in (torch.optim.SGD, torch.optim.Adam):
        layer(torch.ones(1, 2)).sum().backward()
        kind(layer.parameters(), 0.1).step()
    gc.collect()
    gc.freeze()  # so that children copy less of the memory
    assert "kdlab" not in sys.modules


def outcomes(mutations: list[Mutation]):
    """Plant each mutation and yield (mutation, what came of it, seconds); it is ``"caught"`` or a complaint.

    As many children run at a time as there are cores, each with one thread; they come as they end.
    """
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    warm_up()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder).resolve()
        sound = folder / "sound"
        shutil.copytree(PACKAGE, sound / "kdlab")  # once: all mutations are of one state of the package
        compileall.compile_dir(sound, quiet=2)
        nodes = sorted({mutation.node for mutation in mutations})
        parts, children = [nodes[part::cores] for part in range(cores)], {}
        for number, part in enumerate(filter(None, parts)):
            room = folder / f"sound-{number}"
            shutil.copytree(sound, room)
            children[start_child(part, room)] = room
        for child, room in children.items():
            for name, error, _ in what_it_saw(room, os.waitpid(child, 0)[1])["seen"]:
                raise SystemExit(f"{name} fails without any mutation: {error}")

        running = {}

        def ended():
            child, status = os.wait()
            mutation, room, started = running.pop(child)
            outcome = verdict(what_it_saw(room, status))
            shutil.rmtree(room)
            return mutation, outcome, time.perf_counter() - started

        for number, mutation in enumerate(mutations):
            started, room = time.perf_counter(), folder / str(number)
            shutil.copytree(sound / "kdlab", room / "kdlab")
            try:
                plant(mutation, room / "kdlab")
            except NotPlanted as error:
                yield mutation, f"not planted: {error}", time.perf_counter() - started
                continue
            running[start_child([mutation.node], room, "--maxfail=1")] = mutation, room, started
            if len(running) == cores:
                yield ended()
        while running:
            yield ended()


def verdict(result: dict) -> str:
    """``"caught"`` if a test's own assertion failed, and nothing else did."""
    for name, error, asserted in result["seen"]:
        if not asserted:
            return f"no assertion failed, but {name} ended by {error}"
    return "caught" if result["seen"] else f"survived: {result['passed']} tests passed"


def main(words: list[str]) -> int:
    chosen = [m for m in MUTATIONS if not words or any(word.lower() in m.pitfall.lower() for word in words)]
    started, caught = time.perf_counter(), 0
    for mutation, outcome, seconds in outcomes(chosen):
        caught += outcome == "caught"
        print(f"{seconds:5.1f} s  {mutation.pitfall:<80}  {mutation.file:<26}  {mutation.test}", flush=True)
        if outcome != "caught":
            print(f"         ^ {outcome}", flush=True)
    print(f"caught {caught} of {len(chosen)} in {time.perf_counter() - started:.0f} s")
    return 0 if chosen and caught == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
