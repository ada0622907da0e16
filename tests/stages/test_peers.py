"""Against TRL and PEFT: the same model, the same conversations, the same loss.

Their side is their own code from the text on: trainer, tokenisation by our chat template, collator, loss. Everything is
float32 on the CPU, where two orders of summation differ by some 1e-7 of a log-probability; a loss adds up to about a
hundred of them, so losses must agree to 1e-5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from liuli.model import Transformer, load, qwen3
from liuli.model.scalar import ScalarModel, load_scalar, save_scalar
from liuli.stages.dpo import DPOOptions, pairs_loss, summed, thumbs, thumbs_loss
from liuli.stages.experience import objective
from liuli.stages.grpo import GRPOOptions, grpo_experience, grpo_step
from liuli.stages.reward import Comparisons, RewardOptions, compare, shares, take_step
from liuli.stages.rollout import ModelActor, Rollouts, Scores, as_rollouts, judge_all, score_all
from liuli.stages.training import write_model
from liuli.text import Judged, Loader, Message, Preference, Tokenizer, pack_conversations, render_many
from liuli.text.tokenizer import SMALLEST
from liuli.train import Optimizer, OptimizerOptions, next_token
from liuli.train.loop import to_tensors
from liuli.train.policy import Spread, group_advantages, token_weights
from liuli.train.preference import dpo_loss

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers, about options that TRL sets

CONTEXT = 128
RELATIVE = 1e-5

Dialogue = list[dict[str, str]]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


# of different lengths, with and without a history, in two languages; of each the first answer is the better one
PROMPTS: list[Dialogue] = [
    [user("What is 2 + 2?")],
    [{"role": "system", "content": "Be short."}, user("Say hello.")],
    [user("法国的首都是哪里？")],
    [user("Name a fruit."), assistant("Apple."), user("Another one.")],
]
ANSWERS = [
    ("4", "It is 5, I am quite sure."),
    ("Hello!", "No."),
    ("巴黎。", "伦敦。"),
    ("Pear, for example.", "Apple."),
]


def messages(dialogue: Dialogue) -> tuple[Message, ...]:
    return tuple(Message(one["role"], one["content"]) for one in dialogue)


@dataclass
class Pair:
    """One policy and its reference, here and there."""

    ours: Transformer
    before: Transformer
    theirs: Any
    theirs_before: Any
    tokenizer: Tokenizer
    their_tokenizer: Any
    folder: Path


def moved(model: Transformer, seed: int, by: float = 0.05) -> Transformer:
    """The model with every weight changed, so that nothing is zero by chance."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * by)
    return model.eval()


@pytest.fixture(scope="module")
def libraries() -> SimpleNamespace:
    """TRL, transformers and PEFT, silent."""
    reason = "the peers are not installed: pip install 'trl>=1.0' peft"
    trl = pytest.importorskip("trl", reason=reason)
    peft = pytest.importorskip("peft", reason=reason)
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return SimpleNamespace(trl=trl, peft=peft, hf=transformers, dataset=datasets.Dataset.from_list)


@pytest.fixture
def pair(libraries: SimpleNamespace, tmp_path: Path) -> Pair:
    tokenizer = Tokenizer.train(["a"], SMALLEST)
    tokenizer.save(tmp_path / "tokenizer")
    torch.manual_seed(0)
    before = moved(Transformer(qwen3(SMALLEST, 32, 2, context=CONTEXT, heads=4, kv_heads=2, head_size=8)), 1)
    ours = Transformer(before.config)
    ours.load_state_dict(before.state_dict())
    moved(ours, 2, 0.02)
    for name, model in (("before", before), ("now", ours)):
        write_model(model, tmp_path / name, tokenizer, tmp_path / "tokenizer", {"stage": "test"})
    hf = libraries.hf
    theirs, theirs_before = (
        hf.AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32) for name in ("now", "before")
    )
    their_tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path / "now")
    return Pair(ours, before, theirs, theirs_before, tokenizer, their_tokenizer, tmp_path)


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    """What all trainers are told: float32, the CPU, no files, no noise."""
    return {
        "output_dir": str(folder / "trainer"),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
        "per_device_train_batch_size": len(PROMPTS),
        "per_device_eval_batch_size": len(PROMPTS),
    } | more


def whole_batch(trainer: Any) -> dict[str, torch.Tensor]:
    """All rows that the trainer has made of the text, by its own collator."""
    return dict(trainer.data_collator(list(trainer.train_dataset)))


@torch.no_grad()
def their_loss(trainer: Any, batch: dict[str, Any]) -> float:
    trainer.model.eval()  # the same loss as in training, without the trainer's own loop around it
    return float(trainer.compute_loss(trainer.model, dict(batch)))


def same(ours: float, theirs: float) -> None:
    assert ours == pytest.approx(theirs, rel=RELATIVE, abs=0)


def check_tokens(ours: Rollouts, ids: torch.Tensor, mask: torch.Tensor) -> None:
    """Both read the text as the same tokens, and learn from the same ones."""
    assert torch.equal(ours.tokens_BT, ids)
    assert torch.equal(ours.mask_BT, mask.bool())


# --- DPO and KTO -----------------------------------------------------------------------------------------------------


Answers = list[tuple[str, str]]


def preferences(answers: Answers = ANSWERS) -> list[Preference]:
    return [
        Preference(messages(prompt), messages([assistant(chosen)]), messages([assistant(rejected)]))
        for prompt, (chosen, rejected) in zip(PROMPTS, answers, strict=True)
    ]


def their_pairs(answers: Answers = ANSWERS) -> list[dict[str, Dialogue]]:
    return [
        {"prompt": prompt, "chosen": [assistant(chosen)], "rejected": [assistant(rejected)]}
        for prompt, (chosen, rejected) in zip(PROMPTS, answers, strict=True)
    ]


def dpo_trainer(libraries: SimpleNamespace, pair: Pair, answers: Answers = ANSWERS, **options: Any) -> Any:
    return libraries.trl.DPOTrainer(
        model=pair.theirs,
        ref_model=pair.theirs_before,
        args=libraries.trl.DPOConfig(**settings(pair.folder, beta=0.1, **options)),
        train_dataset=libraries.dataset(their_pairs(answers)),
        processing_class=pair.their_tokenizer,
    )


@torch.no_grad()
def our_dpo_loss(pair: Pair, data: Comparisons, options: DPOOptions) -> float:
    """The stage's loss of all pairs."""
    reference_B = score_all(ModelActor(pair.before), data.answers).log_probs_BT.sum(1)
    return float(pairs_loss(ModelActor(pair.ours), data, torch.arange(len(data)), reference_B, options)[0])


def test_dpo_loss_is_that_of_trl(libraries: SimpleNamespace, pair: Pair) -> None:
    trainer = dpo_trainer(libraries, pair)
    batch, data = whole_batch(trainer), compare(preferences(), pair.tokenizer, CONTEXT)
    answers = data.answers.part(torch.cat((data.chosen_P, data.rejected_P)))
    check_tokens(answers, batch["input_ids"], batch["completion_mask"])
    wanted = their_loss(trainer, batch)
    for micro_tokens in (100, 8192):  # in several parts and in one
        same(our_dpo_loss(pair, data, DPOOptions(beta=0.1, micro_tokens=micro_tokens)), wanted)


def test_smoothed_dpo_loss_is_that_of_trl(libraries: SimpleNamespace, pair: Pair) -> None:
    # TRL's "sigmoid" leaves label_smoothing aside and its "robust" is another loss (arXiv 2403.00409: the flipped term
    # is taken off, and the sum divided by 1 - 2 * smoothing). cDPO's formula stands in "aot", which sorts the gains of
    # the batch first: nothing is left to sort in a batch of one pair.
    trainer = dpo_trainer(libraries, pair, loss_type="aot", label_smoothing=0.2)
    batches = [dict(trainer.data_collator([row])) for row in trainer.train_dataset]
    wanted = sum(their_loss(trainer, batch) for batch in batches) / len(batches)
    data = compare(preferences(), pair.tokenizer, CONTEXT)
    same(our_dpo_loss(pair, data, DPOOptions(beta=0.1, smoothing=0.2)), wanted)


def test_ipo_loss_is_that_of_trl_but_for_the_length(libraries: SimpleNamespace, pair: Pair) -> None:
    """Ours compares log-probabilities of whole answers, as the paper writes it (arXiv 2310.12036, eq. 17). TRL divides
    each answer's gain by its length first, which it says the paper's authors confirmed to it."""
    trainer = dpo_trainer(libraries, pair, loss_type="ipo")
    data = compare(preferences(), pair.tokenizer, CONTEXT)
    with torch.no_grad():
        ours_B, before_B = (summed(ModelActor(model), data.answers, 8192) for model in (pair.ours, pair.before))
    gain_B = (ours_B - before_B) / data.answers.mask_BT.sum(1)
    zeros_P = torch.zeros(len(data))
    loss_P = dpo_loss(gain_B[data.chosen_P], gain_B[data.rejected_P], zeros_P, zeros_P, 0.1, "ipo")
    same(float(loss_P.mean()), their_loss(trainer, whole_batch(trainer)))


def test_ipo_loss_of_answers_of_one_length_is_that_of_trl_rescaled(libraries: SimpleNamespace, pair: Pair) -> None:
    """(gap / n - 1 / (2 beta))^2 = (gap - 1 / (2 beta / n))^2 / n^2: TRL's beta is ours times the length."""
    answers = [("abc", "xyz"), ("one", "two"), ("yes", "no!"), ("123", "456")]
    trainer = dpo_trainer(libraries, pair, answers, loss_type="ipo")
    data, n = compare(preferences(answers), pair.tokenizer, CONTEXT), 4  # three bytes and the end
    ours = our_dpo_loss(pair, data, DPOOptions(kind="ipo", beta=0.1 / n))
    same(ours / n**2, their_loss(trainer, whole_batch(trainer)))


def test_kto_loss_is_that_of_trl(libraries: SimpleNamespace, pair: Pair) -> None:
    # TRL turns the answers by one place the other way than `thumbs` does ((x1, yn), (x2, y1), … not (x1, y2), …) and
    # within each batch instead of all data. Here there is one batch, and its rows go in backwards: the same pairs.
    judged = [
        Judged(messages(prompt), messages([assistant(answers[number % 2])]), number % 2 == 0)
        for number, (prompt, answers) in enumerate(zip(PROMPTS, ANSWERS, strict=True))
    ]
    rows = [
        {"prompt": prompt, "completion": [assistant(answers[number % 2])], "label": number % 2 == 0}
        for number, (prompt, answers) in enumerate(zip(PROMPTS, ANSWERS, strict=True))
    ]
    trainer = libraries.trl.KTOTrainer(
        model=pair.theirs,
        ref_model=pair.theirs_before,
        args=libraries.trl.KTOConfig(**settings(pair.folder, beta=0.1)),
        train_dataset=libraries.dataset(rows[::-1]),
        processing_class=pair.their_tokenizer,
    )
    batch, data = whole_batch(trainer), thumbs(judged, pair.tokenizer, CONTEXT)
    check_tokens(data.answers, batch["input_ids"].flip(0), batch["completion_mask"].flip(0))
    check_tokens(data.mismatched, batch["KL_input_ids"].flip(0), batch["KL_completion_mask"].flip(0))
    before = ModelActor(pair.before)
    reference_B, far_B = (score_all(before, part).log_probs_BT.sum(1) for part in (data.answers, data.mismatched))
    options = DPOOptions(kind="kto", beta=0.1)
    _, figures = thumbs_loss(ModelActor(pair.ours), data, torch.arange(4), reference_B, far_B, options)
    assert figures["kl"] > 0  # not the floor of the estimate
    same(figures["loss"], their_loss(trainer, batch))


# --- GRPO ------------------------------------------------------------------------------------------------------------


def as_ours(batch: dict[str, torch.Tensor]) -> Rollouts:
    """TRL's batch (prompts padded left, answers right) as rollouts (all padding on the right)."""
    real_BT = torch.cat((batch["prompt_mask"], batch["completion_mask"]), 1).bool()
    drawn_BT = torch.cat((torch.zeros_like(batch["prompt_mask"]), batch["completion_mask"]), 1).bool()
    order_BT = torch.argsort(~real_BT, dim=1, stable=True)
    tokens_BT = torch.cat((batch["prompt_ids"], batch["completion_ids"]), 1).gather(1, order_BT)
    B = len(tokens_BT)
    return Rollouts(
        tokens_BT,
        drawn_BT.gather(1, order_BT),
        torch.zeros(tokens_BT.shape),
        real_BT.sum(1),
        torch.ones(B, dtype=torch.bool),
        torch.arange(B),
    )


def spread_out(values: torch.Tensor, batch: dict[str, torch.Tensor], rollouts: Rollouts) -> torch.Tensor:
    """TRL's numbers of answer tokens at the places where ours stand."""
    drawn = values[batch["completion_mask"].bool()]
    return torch.zeros(rollouts.mask_BT.shape).masked_scatter(rollouts.mask_BT, drawn)


@dataclass
class Drawn:
    """Answers that TRL has drawn from its policy and scored, as it and as we hold them."""

    trainer: Any
    batch: dict[str, torch.Tensor]
    rollouts: Rollouts
    scores_B: torch.Tensor
    old: Scores
    reference_BT: torch.Tensor


GROUP, LONGEST, BETA = 4, 48, 0.3


def drawn_by_trl(libraries: SimpleNamespace, pair: Pair, kind: str, **options: Any) -> Drawn:
    """Eight answers, some of which end by themselves; kind: GRPO or RLOO."""
    given: list[float] = []

    def reward(completions: Sequence[Dialogue], **_: Any) -> list[float]:
        texts = [completion[0]["content"] for completion in completions]
        given[:] = [text.count("a") - 0.1 * len(text) for text in texts]
        return given

    rows = 2 * GROUP
    sizes = {"per_device_train_batch_size": rows, "per_device_eval_batch_size": rows, "num_generations": GROUP}
    drawing = {"max_completion_length": LONGEST, "top_k": 0, "top_p": 1.0, "beta": BETA}
    # two rounds of steps: the log-probabilities that the answers were drawn with are kept
    trainer = getattr(libraries.trl, f"{kind}Trainer")(
        model=pair.theirs,
        reward_funcs=reward,
        args=getattr(libraries.trl, f"{kind}Config")(
            **settings(pair.folder, **sizes, **drawing, num_iterations=2, **options)
        ),
        train_dataset=libraries.dataset([{"prompt": prompt} for prompt in PROMPTS]),
        processing_class=pair.their_tokenizer,
    )
    trainer.ref_model.load_state_dict(pair.theirs_before.state_dict())  # it begins as the policy itself
    trainer.model.eval()
    batch = trainer._generate_and_score_completions([{"prompt": p} for p in PROMPTS[1:3] for _ in range(GROUP)])
    rollouts = as_ours(batch)
    assert len(set(rollouts.mask_BT.sum(1).tolist())) > 1
    actors = [ModelActor(model, trainer.temperature) for model in (pair.ours, pair.before)]
    old, reference = (score_all(actor, rollouts) for actor in actors)
    return Drawn(trainer, batch, rollouts, torch.tensor(given), old, reference.log_probs_BT)


@pytest.mark.parametrize(("theirs", "ours"), [("dapo", "token"), ("grpo", "sequence"), ("dr_grpo", "constant")])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_grpo_loss_is_that_of_trl(
    libraries: SimpleNamespace, pair: Pair, theirs: str, ours: Spread, temperature: float
) -> None:
    # TRL's defaults are later: advantages over the standard deviation, and k3 times the ratio (DeepSeek-V3.2), which
    # turns its gradient into that of KL(policy || reference). Here are both as GRPO and Dr. GRPO published them.
    published = {"scale_rewards": "none", "use_bias_correction_kl": False}
    d = drawn_by_trl(libraries, pair, "GRPO", loss_type=theirs, temperature=temperature, **published)
    for mine, other in ((d.old.log_probs_BT, "old_per_token_logps"), (d.reference_BT, "ref_per_token_logps")):
        torch.testing.assert_close(mine, spread_out(d.batch[other], d.batch, d.rollouts), rtol=1e-5, atol=1e-5)
    options = GRPOOptions(steps=1, group=GROUP, leash="loss", kl="k3", beta=BETA, spread=ours, max_tokens=LONGEST)
    e = grpo_experience(d.rollouts, d.old, d.reference_BT, d.scores_B, BETA, options)
    advantages_B = e.advantages_BT.sum(1) / d.rollouts.mask_BT.sum(1)
    torch.testing.assert_close(advantages_B, d.batch["advantages"], rtol=1e-5, atol=1e-6)

    # the policy has moved since, so that some ratios are clipped
    write_model(moved(pair.ours, 3, 0.02), pair.folder / "later", pair.tokenizer, pair.folder / "tokenizer", {})
    later = libraries.hf.AutoModelForCausalLM.from_pretrained(pair.folder / "later", dtype=torch.float32)
    d.trainer.model.load_state_dict(later.state_dict())
    step = grpo_step(options)
    weights_BT = token_weights(d.rollouts.mask_BT, step.spread, step.constant)
    with torch.no_grad():
        loss, figures = objective(ModelActor(pair.ours, temperature).score(d.rollouts), e, weights_BT, step)
    assert 0.01 < figures["clip_fraction"] < 0.99
    same(float(loss), their_loss(d.trainer, d.batch))


def test_rloo_advantages_with_the_leash_in_the_reward_are_those_of_trl(libraries: SimpleNamespace, pair: Pair) -> None:
    d = drawn_by_trl(libraries, pair, "RLOO")
    options = GRPOOptions(steps=1, group=GROUP, leash="reward", kl="k1", beta=BETA, advantage="rloo")
    e = grpo_experience(d.rollouts, d.old, d.reference_BT, d.scores_B, BETA, options)
    advantages_B = e.advantages_BT.sum(1) / d.rollouts.mask_BT.sum(1)
    torch.testing.assert_close(advantages_B, d.batch["advantages"], rtol=1e-5, atol=1e-5)


def test_grpo_advantages_by_the_standard_deviation_are_those_of_trl_but_for_a_factor(
    libraries: SimpleNamespace, pair: Pair
) -> None:
    """TRL divides by the sample's deviation (n - 1), ours by the group's own (n); arXiv 2402.03300 does not say which.
    Ours are larger by sqrt(n / (n - 1)), one factor for all groups. TRL adds 1e-4 to the deviation: 1e-3 of it here."""
    d = drawn_by_trl(libraries, pair, "GRPO", scale_rewards="group")
    ours_NG = group_advantages(d.scores_B.view(-1, GROUP), "std") / (GROUP / (GROUP - 1)) ** 0.5
    torch.testing.assert_close(ours_NG.flatten(), d.batch["advantages"], rtol=1e-3, atol=0)


# --- reward models ---------------------------------------------------------------------------------------------------


def scalar_folder(pair: Pair, members: int = 1) -> tuple[Path, ScalarModel]:
    """A reward model of the policy with random heads and offsets, written to a folder."""
    body = Transformer(pair.ours.config)
    body.load_state_dict(pair.ours.state_dict())
    torch.manual_seed(0)
    model = ScalarModel(body, members).eval()
    model.offsets_E.copy_(torch.randn(members))
    tokenizer, path = pair.tokenizer, pair.folder / "reward"
    special = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.end, "pad_token_id": tokenizer.pad}
    save_scalar(model, path, tokenizer_folder=pair.folder / "tokenizer", provenance={"stage": "test"}, special=special)
    return path, model


@pytest.mark.parametrize("centring", [0.0, 0.3])
def test_reward_loss_is_that_of_trl(libraries: SimpleNamespace, pair: Pair, centring: float) -> None:
    # one pair a prompt: TRL's mean is over pairs, ours over prompts (arXiv 2203.02155, eq. 1). The offset is not
    # TRL's to see, and is 0 while a reward model is trained.
    path, model = scalar_folder(pair)
    model.offsets_E.zero_()
    trainer = libraries.trl.RewardTrainer(
        model=libraries.hf.AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32),
        args=libraries.trl.RewardConfig(**settings(pair.folder, center_rewards_coefficient=centring or None)),
        train_dataset=libraries.dataset(their_pairs()),
        processing_class=pair.their_tokenizer,
    )
    batch, data = whole_batch(trainer), compare(preferences(), pair.tokenizer, CONTEXT)
    answers = data.answers.part(torch.cat((data.chosen_P, data.rejected_P)))
    assert torch.equal(answers.tokens_BT, batch["input_ids"])
    wanted = their_loss(trainer, batch)
    options = RewardOptions(members=1, centring=centring, micro_tokens=100)
    rows, optimizer = torch.arange(len(data)), Optimizer(model, OptimizerOptions())
    same(take_step(model, optimizer, data, rows, shares(data, options), options, 0.0)["loss"], wanted)


@pytest.mark.parametrize("members", [1, 3])
def test_a_reward_folder_gives_transformers_the_same_scores(
    libraries: SimpleNamespace, pair: Pair, members: int
) -> None:
    path, model = scalar_folder(pair, members)
    theirs = libraries.hf.AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()
    answers = compare(preferences(), pair.tokenizer, CONTEXT).answers
    wanted_BE, offsets_E = judge_all(model, answers), torch.tensor(theirs.config.score_offsets)
    pad = pair.tokenizer.pad
    rows = [tokens[:length] for tokens, length in zip(answers.tokens_BT, answers.lengths_B.tolist(), strict=True)]
    for side in ("left", "right"):
        for more in (0, 1, 17):
            T = max(map(len, rows)) + more
            ids, real = torch.full((len(rows), T), pad), torch.zeros(len(rows), T, dtype=torch.int64)
            for number, row in enumerate(rows):
                place = slice(T - len(row), T) if side == "left" else slice(0, len(row))
                ids[number, place], real[number, place] = row, 1
            with torch.no_grad():
                got_BE = theirs(input_ids=ids, attention_mask=real).logits + offsets_E
            assert (got_BE - wanted_BE).abs().max() < 1e-4


# --- SFT -------------------------------------------------------------------------------------------------------------


def test_sft_loss_on_packed_rows_is_that_of_trl_on_padded_ones(libraries: SimpleNamespace, pair: Pair) -> None:
    rows = [
        {"prompt": prompt, "completion": [assistant(chosen)]}
        for prompt, (chosen, _) in zip(PROMPTS, ANSWERS, strict=True)
    ]
    trainer = libraries.trl.SFTTrainer(
        model=pair.theirs,
        args=libraries.trl.SFTConfig(**settings(pair.folder, completion_only_loss=True)),
        train_dataset=libraries.dataset(rows),
        processing_class=pair.their_tokenizer,
    )
    # only the last answer is learned, as in TRL's prompt and completion
    dialogues = [
        (*(replace(one, train=False) for one in messages(row["prompt"])), *messages(row["completion"])) for row in rows
    ]
    packed = pack_conversations(render_many(dialogues, pair.tokenizer), 96, pair.folder / "rows")
    assert len(packed) < len(rows)
    batch = to_tensors(next(Loader(packed, len(packed), 0)), slice(None), "cpu", pair.tokenizer.bos)
    theirs = whole_batch(trainer)
    assert int(batch.weights_BT.sum()) == int((theirs["labels"] != -100).sum())
    with torch.no_grad():
        loss = next_token(pair.ours, batch) / batch.weights_BT.sum()
    same(float(loss), their_loss(trainer, theirs))


def test_trl_learns_from_all_answers_of_a_conversation_as_we_do(libraries: SimpleNamespace, pair: Pair) -> None:
    """Its assistant_only_loss reads the mask off our chat template."""
    dialogues = [[*prompt, assistant(chosen)] for prompt, (chosen, _) in zip(PROMPTS, ANSWERS, strict=True)]
    trainer = libraries.trl.SFTTrainer(
        model=pair.theirs,
        args=libraries.trl.SFTConfig(**settings(pair.folder, assistant_only_loss=True)),
        train_dataset=libraries.dataset([{"messages": dialogue} for dialogue in dialogues]),
        processing_class=pair.their_tokenizer,
    )
    rows = list(trainer.train_dataset)
    for row, rendered in zip(rows, render_many(map(messages, dialogues), pair.tokenizer), strict=True):
        assert row["input_ids"] == rendered.tokens
        assert [label != -100 for label in row["labels"]] == [weight > 0 for weight in rendered.weights]


# --- PEFT ------------------------------------------------------------------------------------------------------------


def adapted(libraries: SimpleNamespace, model: Any, folder: Path, **options: Any) -> Any:
    """The model with a LoRA adapter that is not zero, saved, loaded again and merged."""
    lora = libraries.peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "gate_proj", "down_proj"], **options
    )
    with_adapter = libraries.peft.get_peft_model(model, lora)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in with_adapter.named_parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
                assert "lora" in name or "score" in name
    with_adapter.save_pretrained(folder)
    base = type(model).from_pretrained(model.config._name_or_path, dtype=torch.float32)
    return libraries.peft.PeftModel.from_pretrained(base, folder).merge_and_unload()


def test_a_lora_adapter_on_our_folder_merges_and_comes_back(libraries: SimpleNamespace, pair: Pair) -> None:
    merged = adapted(libraries, pair.theirs, pair.folder / "adapter", task_type="CAUSAL_LM").eval()
    merged.save_pretrained(pair.folder / "merged")
    pair.their_tokenizer.save_pretrained(pair.folder / "merged")
    ours, tokens = load(pair.folder / "merged"), torch.randint(16, SMALLEST, (3, 40))
    with torch.no_grad():
        wanted = merged(tokens).logits
        assert (wanted - ours(tokens)).abs().max() < 1e-4
        assert (wanted - pair.ours(tokens)).abs().max() > 0.1  # the adapter did something
    dialogue = PROMPTS[3]
    ids = pair.their_tokenizer.apply_chat_template(dialogue, add_generation_prompt=True)["input_ids"]
    back = Tokenizer.load(pair.folder / "merged")
    assert (
        as_rollouts([messages(dialogue)], [messages([assistant("x")])], back, CONTEXT).tokens_BT[0, :-2].tolist() == ids
    )


@pytest.mark.parametrize("members", [1, 3])
def test_a_reward_model_trained_by_peft_comes_back(libraries: SimpleNamespace, pair: Pair, members: int) -> None:
    path, before = scalar_folder(pair, members)
    theirs = libraries.hf.AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32)
    merged = adapted(libraries, theirs, pair.folder / "adapter", task_type="SEQ_CLS", modules_to_save=["score"]).eval()
    merged.save_pretrained(pair.folder / "merged")
    tokens = torch.randint(16, SMALLEST, (3, 40))
    with torch.no_grad():
        wanted_BE = merged(tokens).logits + before.offsets_E
        assert (load_scalar(pair.folder / "merged")(tokens)[:, -1] - wanted_BE).abs().max() < 1e-4
        assert (before(tokens)[:, -1] - wanted_BE).abs().max() > 0.1  # the adapter did something
