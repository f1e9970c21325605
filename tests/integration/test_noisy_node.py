"""A noisy copy from end to end: command line, stock engine, proxy; only the answers are worse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
import typer
from transformers import AutoModelForCausalLM, AutoTokenizer

from veilrun.cli.check import check
from veilrun.cli.encrypt import EndsName, encrypt
from veilrun.demo import child
from veilrun.equivariant.client import ClientKit, find_client_kit
from veilrun.errors import UsageError
from veilrun.keys import MasterKey, save_key

KEY = MasterKey(bytes(range(32)))
PROMPT = "Once upon a time"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    save_key(KEY, tmp_path / "my.key", "secret", scrypt_log2_n=12)
    (tmp_path / "passphrase").touch(mode=0o600)
    (tmp_path / "passphrase").write_text("secret")
    return tmp_path / "my.key"


def sealed_continuation(folder: Path, plain: Path, kit: ClientKit, n_tokens: int) -> str:
    """What stock transformers makes of the noisy checkpoint, put back into text."""
    tokenizer = AutoTokenizer.from_pretrained(plain)
    ids = tokenizer(PROMPT)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    inputs = torch.tensor([kit.codec.encode(ids)])
    made = model.generate(inputs, max_new_tokens=n_tokens, do_sample=False)[0].tolist()
    text: str = tokenizer.decode(kit.codec.decode(made), skip_special_tokens=True)
    return text[len(PROMPT) :]


async def test_the_chain_serves_a_noisy_copy(
    stories: Path, tmp_path: Path, key_file: Path, capsys: pytest.CaptureFixture[str]
):
    passphrase = tmp_path / "passphrase"
    out = tmp_path / "out"
    encrypt(str(stories), out, key_file, noise=0.25, passphrase_file=passphrase, as_json=True)
    made = json.loads(capsys.readouterr().out)
    assert made["strength"] == "covariant"
    assert made["noise"] == {"embedding": 0.25, "head": 0.05, "expansion": 16}
    assert json.loads((out / "config.json").read_text())["hidden_size"] == 64 + 32
    with pytest.raises(typer.Exit):  # it reports the loss, and 0.95 is not reached
        check(str(stories), out, key_file, passphrase_file=passphrase, as_json=True)
    shares = [one["top_token_share"] for one in json.loads(capsys.readouterr().out)]
    assert all(0.5 < one < 0.95 for one in shares)
    kit = find_client_kit(key_file, KEY, made["fingerprint"])
    node = ["node", str(out), "--port", "0", "--json", "--identity", str(tmp_path / "identity")]
    proxy = ["proxy", "--key", str(key_file), "--passphrase-file", str(passphrase)]
    async with child(node) as at:
        where: list[Any] = ["--node", at["url"], "--pin", at["pin"], "--port", "0", "--json"]
        async with (
            child([*proxy, *where]) as ready,
            openai.AsyncOpenAI(base_url=ready["url"], api_key="x", max_retries=0) as client,
        ):
            answer = await client.completions.create(
                model=kit.name, prompt=PROMPT, max_tokens=24, temperature=0
            )
    assert answer.choices[0].text == sealed_continuation(out, stories, kit, 24)


def test_options_that_do_not_fit_are_refused(stories: Path, tmp_path: Path, key_file: Path):
    with pytest.raises(UsageError, match="--expansion belongs to --noise"):
        encrypt(str(stories), tmp_path / "out", key_file, expansion=16)


def test_ends_stay_with_the_client_by_option(
    stories: Path, tmp_path: Path, key_file: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    passphrase = tmp_path / "passphrase"
    encrypt(
        str(stories), out, key_file, ends=EndsName.client, passphrase_file=passphrase, as_json=True
    )
    made = json.loads(capsys.readouterr().out)
    assert made["ends"] == "client"
    assert find_client_kit(key_file, KEY, made["fingerprint"]).ends_file is not None
