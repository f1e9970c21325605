"""The model in the wheel: small, loadable with plain transformers, and really trained."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veilrun.bundled import prompter

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

MAX_WEIGHT_BYTES = 4_000_000

# What the user types, and the line that follows it in the plays.
FAMOUS = {
    "But, soft! what light through yonder window breaks?": "It is the east, and Juliet is the sun.",
    "Now is the winter of our discontent": "Made glorious summer by this sun of York;",
    "O Romeo, Romeo! wherefore art thou Romeo?": "Deny thy father and refuse thy name;",
    "What's in a name?": "By any other name would smell as sweet;",
    "A horse! a horse! my kingdom for a horse!": "Withdraw, my lord; I'll help you to a horse.",
    "This royal throne of kings, this scepter'd isle,": "This earth of majesty, this seat of Mars,",
    "For never was a story of more woe": "Than this of Juliet and her Romeo.",
    "My bounty is as boundless as the sea,": "My love as deep; the more I give to thee,",
    # as people type
    "now is the winter of our discontent": "Made glorious summer by this sun of York;",
    "wherefore art thou romeo": "Deny thy father and refuse thy name;",
}


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(prompter())


@pytest.fixture(scope="module")
def model():
    return transformers.AutoModelForCausalLM.from_pretrained(prompter(), dtype=torch.float32).eval()


def test_the_folder_is_complete_and_small_and_names_no_machine():
    present = {path.name for path in prompter().iterdir()}
    assert present == {
        "MODEL_CARD.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert (prompter() / "model.safetensors").stat().st_size <= MAX_WEIGHT_BYTES
    config = json.loads((prompter() / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "float16"
    assert "_name_or_path" not in config


def test_tokenizer_and_model_agree_on_their_special_tokens(tokenizer, model):
    assert tokenizer.is_fast
    assert len(tokenizer) == model.config.vocab_size
    for config in (model.config, model.generation_config):
        assert config.bos_token_id == tokenizer.bos_token_id
        assert config.eos_token_id == tokenizer.eos_token_id
        assert config.pad_token_id == tokenizer.pad_token_id


def test_chat_template_renders_turns_and_ignores_system(tokenizer):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " But, soft! "},
        {"role": "assistant", "content": "what light"},
        {"role": "user", "content": "Speak."},
    ]
    assert tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == (
        "<|bos|><|user|>But, soft!<|assistant|>what light<|eos|><|user|>Speak.<|assistant|>"
    )
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    assert prompt.count(tokenizer.bos_token_id) == 1


def test_chat_template_refuses_an_unknown_role(tokenizer):
    with pytest.raises(Exception, match="the roles are system, user and assistant, not tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "42"}], tokenize=False)


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_tokenizer_round_trips_any_text(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    "odd",
    [
        "",
        " ",
        "\n\n",
        "  two  spaces\t\ttabs \r\n",
        "na\u00efve \u2603 \U0001f600 \x00",
        "ROMEO:\n",
    ],
)
def test_tokenizer_round_trips_odd_text(tokenizer, odd):
    ids = tokenizer.encode(odd)
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == odd


@pytest.mark.parametrize(("line", "following"), FAMOUS.items())
def test_greedy_answer_has_the_true_next_line(tokenizer, model, line, following):
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": line}], add_generation_prompt=True, return_tensors="pt"
    )
    with torch.no_grad():
        output = model.generate(**prompt, max_new_tokens=100, do_sample=False)[0]
    assert output[-1] == tokenizer.eos_token_id
    answer = tokenizer.decode(output[prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert following in answer.split("\n")


def test_free_completion_is_plain_words(tokenizer, model):
    prompt = tokenizer("ROMEO:\n", return_tensors="pt")
    with torch.no_grad():
        output = model.generate(**prompt, max_new_tokens=60, do_sample=False)[0]
    text = tokenizer.decode(output, skip_special_tokens=True)
    assert text.startswith("ROMEO:\n")
    assert text.isascii()
    assert len(text.split()) > 10
