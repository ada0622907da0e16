"""The model against independent judges: transformers, autograd of the plain form, a FLOP counter."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from liuli.errors import LiuliError
from liuli.model import Transformer, flops_per_token, load, parameter_count, qwen3, racer, save
from liuli.model.convert import export_config, import_config, import_folder
from liuli.model.ops import (
    CrossEntropyEager,
    NormAndRotateEager,
    RMSNormEager,
    TokenLogProbsEager,
    attention,
    cap,
    causal_attention,
    causal_mask,
    fused_attention,
    rotary_table,
    token_log_probs,
)
from liuli.text import Tokenizer
from liuli.train.loss import TensorBatch, next_token

SMALL = [
    qwen3(97, 64, 2, context=32),
    qwen3(97, 64, 3, context=32, heads=4, kv_heads=2, head_size=16, tied=True),
    replace(qwen3(97, 64, 2, context=32, heads=4, kv_heads=1, head_size=16), preset="llama", norm_eps=1e-5),
    racer(97, 64, 3, context=32),
    racer(700, 64, 2, context=32),
]


def build(config, seed=0):
    torch.manual_seed(seed)
    model = Transformer(config)
    with torch.no_grad():  # zero-initialised parts would hide mistakes
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    return model.eval()


@pytest.mark.parametrize("config", SMALL)
def test_parameter_count_is_exact(config):
    assert parameter_count(config)["total"] == sum(weight.numel() for weight in Transformer(config).parameters())


def added_product_flops(total, left, right, **_):
    """Of B products of (M, K) by (K, N), added in place: torch's counter knows `baddbmm` alone."""
    return 2 * math.prod(left) * right[2]


IN_PLACE = {torch.ops.aten.baddbmm_: added_product_flops}


@pytest.mark.parametrize("config", SMALL)
def test_flops_equal_the_flop_counter(config):
    model, tokens = build(config), torch.zeros(3, config.context, dtype=torch.long)
    with torch.no_grad(), FlopCounterMode(display=False) as forward:
        model(tokens)
    assert forward.get_total_flops() == flops_per_token(config)["forward"] * tokens.numel()
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as both:
        model(tokens).float().sum().backward()
    # the embedding needs no gradient of its input; all else costs two matmuls backward for one forward
    assert both.get_total_flops() == flops_per_token(config)["train"] * tokens.numel()


@pytest.mark.parametrize("config", SMALL)
def test_no_token_sees_a_later_one_or_another_document(config):
    model = build(config)
    tokens = torch.randint(0, config.vocab_size, (2, 20))
    documents = (torch.arange(20) >= 9).long().expand(2, 20)
    before = model(tokens, documents_BT=documents)
    changed = tokens.clone()
    changed[:, 4] = (changed[:, 4] + 1) % config.vocab_size
    after = model(changed, documents_BT=documents)
    moved = (before - after).abs().amax(-1) > 0
    assert not moved[:, :4].any() and moved[:, 4].all() and not moved[:, 9 + 1 :].any()
    later = tokens.clone()
    later[:, 15] = (later[:, 15] + 1) % config.vocab_size
    assert torch.equal(model(later)[:, :15], model(tokens)[:, :15])


@pytest.mark.parametrize("config", SMALL)
def test_separate_documents_give_the_logits_of_each_alone(config):
    model = build(config).double()
    frequencies = config.rope_base ** (-torch.arange(0, config.head_size, 2).double() / config.head_size)
    angles = torch.arange(config.context).double()[:, None] * frequencies.repeat(2)
    model.cos_TE, model.sin_TE = angles.cos(), angles.sin()  # of float32 they would differ by 1e-8 at other places
    tokens = torch.randint(0, 97, (1, 20))
    packed = model(tokens, documents_BT=(torch.arange(20) >= 8).long()[None])
    torch.testing.assert_close(packed[:, :8], model(tokens[:, :8]), atol=1e-10, rtol=0)
    torch.testing.assert_close(packed[:, 8:], model(tokens[:, 8:]), atol=1e-10, rtol=0)
    assert (model(tokens)[:, 8:] - packed[:, 8:]).abs().max() > 0.1  # as one document they are something else


def test_eager_rms_norm_has_the_gradient_of_the_plain_form():
    x = torch.randn(5, 7, 16, dtype=torch.float64, requires_grad=True)
    gain = torch.randn(16, requires_grad=True)

    def plain(x, gain):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * gain

    up = torch.randn(5, 7, 16, dtype=torch.float64)
    wanted = torch.autograd.grad(plain(x, gain), (x, gain), up)
    got = torch.autograd.grad(RMSNormEager.apply(x, gain, 1e-6), (x, gain), up)
    for a, b in zip(wanted, got, strict=True):
        torch.testing.assert_close(a.float(), b.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("with_gain", [True, False])
def test_eager_norm_and_rotate_has_value_and_gradient_of_the_plain_form(with_gain):
    cos, sin = rotary_table(7, 8, 100.0)
    x = torch.randn(3, 7, 4, 8, requires_grad=True)
    gain = torch.randn(4, 8, requires_grad=True) if with_gain else None

    def plain(x, gain):
        normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1 if gain is None else gain)
        first, second = normed.chunk(2, dim=-1)
        return normed * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]

    inputs = (x, gain) if with_gain else (x,)
    up = torch.randn(3, 7, 4, 8)
    value = NormAndRotateEager.apply(x, gain, cos, sin, 1e-6)
    torch.testing.assert_close(value, plain(x, gain), atol=1e-5, rtol=1e-5)
    wanted = torch.autograd.grad(plain(x, gain), inputs, up)
    for a, b in zip(wanted, torch.autograd.grad(value, inputs, up), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_eager_cross_entropy_has_value_and_gradient_of_the_plain_form(softcap):
    count = CrossEntropyEager.CHUNK + 50  # more than one chunk
    x, head = torch.randn(count, 16, requires_grad=True), torch.randn(40, 16, requires_grad=True)
    targets, weights = torch.randint(0, 40, (count,)), torch.rand(count).round()

    def plain(x, head):
        losses = F.cross_entropy(cap(x @ head.T, softcap), targets, reduction="none")
        return (losses * weights).sum()

    for scale in (50, 1):  # of 50: probabilities that float32 cannot hold
        value = CrossEntropyEager.apply(scale * x, head, targets, weights, softcap)
        torch.testing.assert_close(value, plain(scale * x, head), rtol=1e-5, atol=1e-3)
    wanted = torch.autograd.grad(plain(x, head), (x, head))
    for a, b in zip(wanted, torch.autograd.grad(value, (x, head)), strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(("softcap", "temperature", "barred"), [(0.0, 1.0, 0), (5.0, 0.7, 3)])
def test_token_log_probs_are_those_of_the_plain_form_and_so_is_their_gradient(softcap, temperature, barred):
    count = 2 * TokenLogProbsEager.CHUNK + 50
    x, head = torch.randn(count, 16, requires_grad=True), (3 * torch.randn(40, 16)).requires_grad_()
    targets, weights = torch.randint(barred, 40, (count,)), torch.randn(count)
    ban = torch.zeros(40).index_fill(0, torch.arange(barred), -torch.inf)

    def plain(x, head):
        log_probs = torch.log_softmax((cap(x @ head.T, softcap) + ban) / temperature, dim=-1)
        return log_probs[torch.arange(count), targets], torch.distributions.Categorical(logits=log_probs).entropy()

    made = token_log_probs(x, head, targets, softcap, temperature, ban)
    torch.testing.assert_close(made, plain(x, head), rtol=1e-5, atol=1e-4)
    with torch.no_grad():  # scored with and without gradients: the same to the last bit
        assert all(map(torch.equal, made, token_log_probs(x, head, targets, softcap, temperature, ban)))
    wanted = torch.autograd.grad((plain(x, head)[0] * weights).sum(), (x, head))
    for a, b in zip(wanted, torch.autograd.grad((made[0] * weights).sum(), (x, head)), strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=1e-4)


def test_a_token_that_could_never_be_drawn_has_no_log_probability_of_nan():
    x, head = torch.tensor([[200.0]]), torch.tensor([[1.0], [-1.0]])  # its probability is below what floats hold
    assert torch.equal(token_log_probs(x, head, torch.tensor([1]))[0], torch.tensor([-400.0]))


def test_attention_equals_torch_scaled_dot_product():
    q, k, v = torch.randn(3, 2, 4, 12, 8)
    mixed, weights = attention(q, k, v, causal_mask(12, None, q.dtype, q.device), 8**-0.5)
    torch.testing.assert_close(mixed, F.scaled_dot_product_attention(q, k, v, is_causal=True), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 12))


@pytest.mark.parametrize("own", [False, True], ids=["one mask for all", "documents"])
@pytest.mark.parametrize("T", [12, 300, 600])
def test_attention_in_blocks_and_its_gradient_equal_attention(own, T):
    q, k, v = torch.randn(3, 2, 4, T, 8, dtype=torch.float64, requires_grad=True)
    mask = causal_mask(T, torch.randint(0, 2, (2, T)) if own else None, q.dtype, q.device)
    whole, blocks, weights = (
        attention(q, k, v, mask, 0.3)[0],
        causal_attention(q, k, v, mask, 0.3),
        torch.randn(2, 4, T, 8),
    )
    torch.testing.assert_close(blocks, whole)
    wanted = torch.autograd.grad((whole * weights).sum(), (q, k, v))
    torch.testing.assert_close(torch.autograd.grad((blocks * weights).sum(), (q, k, v)), wanted)


def test_fused_attention_equals_attention():
    q, k, v = torch.randn(2, 4, 300, 8), torch.randn(2, 4, 340, 8), torch.randn(2, 4, 340, 8)  # 40 were there before
    mask = causal_mask(340, torch.randint(0, 2, (2, 340)), q.dtype, q.device)[:, 40:]
    whole = attention(q, k, v, mask, 8**-0.5)[0]
    torch.testing.assert_close(fused_attention(q, k, v, mask, 8**-0.5), whole, atol=1e-6, rtol=1e-5)


def test_scoring_without_gradients_gives_the_very_same_numbers():
    """Another order of sums, in bfloat16, moves an unlikely token's probability by a tenth."""
    model, tokens = build(qwen3(97, 64, 2, context=320)), torch.randint(0, 97, (2, 320))
    with torch.no_grad():
        scored = model(tokens)
    assert torch.equal(model(tokens), scored)


def test_compiled_form_equals_eager_form(monkeypatch):
    config = racer(97, 64, 3, context=300)  # more than one block of queries
    model, tokens = build(config), torch.randint(0, 97, (2, 300))
    batch = TensorBatch(tokens, tokens.roll(-1, 1), torch.ones(2, 300))
    eager = next_token(model, batch)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(next_token(model, batch), eager, rtol=1e-5, atol=1e-4)


def test_qwen3_and_llama_folders_open_in_transformers_with_equal_logits_and_equal_greedy_text(tmp_path):
    transformers = pytest.importorskip("transformers")
    for number, config in enumerate(SMALL[:3]):
        model = build(config)
        path = tmp_path / str(number)
        save(model, path, tokenizer_folder=None, provenance={"stage": "test"})
        theirs = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        tokens = torch.randint(0, 97, (3, 30))
        with torch.no_grad():
            assert (theirs(tokens).logits - model(tokens)).abs().max() < 1e-4
            wanted = theirs.generate(
                tokens[:1, :5], max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0
            )
            got = tokens[:1, :5]
            for _ in range(20):
                got = torch.cat((got, model(got)[:, -1:].argmax(-1)), dim=1)
        assert torch.equal(wanted, got)


@pytest.mark.parametrize("kind", ["Qwen3", "Llama"])
def test_folder_written_by_transformers_opens_here(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=120, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        intermediate_size=80, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    theirs = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    theirs.save_pretrained(tmp_path)
    ours, tokens = load(tmp_path), torch.randint(0, 120, (2, 40))
    with torch.no_grad():
        assert (theirs(tokens).logits - ours(tokens)).abs().max() < 1e-4


@pytest.mark.parametrize(
    "change",
    [{"num_hidden_layers": None}, {"vocab_size": "many"}, {"num_attention_heads": 0}, {"num_key_value_heads": 0},
     {"rope_scaling": "linear"}, {"hidden_size": None, "head_dim": None}, {"rms_norm_eps": "small"},
     {"rms_norm_eps": None}, {"tie_word_embeddings": "false"}],
)  # fmt: skip
def test_a_config_that_describes_no_model_is_one_clear_error(change):
    good = export_config(build(SMALL[0]).config)
    with pytest.raises(LiuliError, match=r"here|model config"):
        import_config(good | {"rope_parameters": None} | change, "here")


@pytest.mark.parametrize("change", [{"norm_eps": "small"}, {"softcap": [15]}, {"tied": "no"}, {"value_layers": 3}])
def test_a_racers_config_with_a_word_for_a_number_is_one_clear_error(change):
    with pytest.raises(LiuliError, match=r"describes no model(?s:.*)here"):
        import_config(export_config(SMALL[3]) | change, "here")


@pytest.mark.parametrize(
    "template",
    ["{% for message in messages %}", "{{ 1 / 0 }}", "{{ messages | no_such }}"],
    ids=["torn", "0", "filter"],
)
def test_a_folder_with_a_chat_template_that_fails_is_not_imported(template, tmp_path):
    Tokenizer.train(["a"], 272).save(tmp_path / "tokenizer")
    save(build(qwen3(272, 64, 1, context=32)), tmp_path / "m", tokenizer_folder=tmp_path / "tokenizer", provenance={})
    for name in ("manifest.json", "liuli.json"):  # as from elsewhere
        (tmp_path / "m" / name).unlink()
    import_folder(tmp_path / "m", tmp_path / "good")
    (tmp_path / "m" / "chat_template.jinja").write_text(template)
    with pytest.raises(LiuliError, match="the chat template fails"):
        import_folder(tmp_path / "m", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("config", SMALL)
def test_save_then_load_is_the_same_model(config, tmp_path):
    model = build(config)
    save(model, tmp_path / "m", tokenizer_folder=None, provenance={"stage": "test"})
    tokens = torch.randint(0, config.vocab_size, (2, 16))
    assert load(tmp_path / "m").config == config
    assert torch.equal(load(tmp_path / "m")(tokens), model(tokens))


def test_trace_names_every_activation_and_changes_nothing():
    model, seen = build(SMALL[0]), {}
    tokens = torch.randint(0, 97, (1, 10))
    traced = model(tokens, trace=lambda name, tensor: seen.update({name: tensor}))
    assert torch.equal(traced, model(tokens))
    assert {"blocks.0.attention.weights", "blocks.1.feed_forward.output", "blocks.1.residual", "final"} <= set(seen)
    assert seen["blocks.0.attention.weights"].shape == (1, 2, 10, 10)
