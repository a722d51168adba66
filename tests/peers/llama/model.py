"""Writes a tiny Llama model with random weights: what it says is noise, and the same noise for the same prompt.

usage: model.py OUT.gguf
"""

import sys

import gguf
import numpy as np

HIDDEN, LAYERS, HEADS, KV_HEADS, INNER, CONTEXT = 64, 2, 2, 1, 128, 2048
HEAD = HIDDEN // HEADS

# Byte-level BPE as GPT-2 has it: each byte has a printable character.
printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
hidden = [byte for byte in range(256) if byte not in printable]
characters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}
merges = ["t h", "th e", "i n", "a n", "e r"]
special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
tokens = [characters[byte] for byte in range(256)] + [merge.replace(" ", "") for merge in merges] + special
types = [gguf.TokenType.NORMAL] * (len(tokens) - len(special)) + [gguf.TokenType.CONTROL] * len(special)
while len(tokens) % 64:
    tokens.append(f"[PAD{len(tokens)}]")
    types.append(gguf.TokenType.UNUSED)

model = gguf.GGUFWriter(sys.argv[1], "llama")
model.add_name("tiny")
model.add_context_length(CONTEXT)
model.add_embedding_length(HIDDEN)
model.add_block_count(LAYERS)
model.add_feed_forward_length(INNER)
model.add_head_count(HEADS)
model.add_head_count_kv(KV_HEADS)
model.add_rope_dimension_count(HEAD)
model.add_layer_norm_rms_eps(1e-5)
model.add_vocab_size(len(tokens))
model.add_file_type(gguf.LlamaFileType.ALL_F32)
model.add_tokenizer_model("gpt2")
model.add_tokenizer_pre("gpt-2")
model.add_token_list(tokens)
model.add_token_types(types)
model.add_token_merges(merges)
model.add_bos_token_id(tokens.index("<s>"))
model.add_eos_token_id(tokens.index("<|im_end|>"))
model.add_add_bos_token(False)
model.add_chat_template(
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

random = np.random.default_rng(1)


def weights(name, *shape, spread):
    model.add_tensor(name, (random.standard_normal(shape) * spread).astype(np.float32))


def ones(name):
    model.add_tensor(name, np.ones(HIDDEN, dtype=np.float32))


weights("token_embd.weight", len(tokens), HIDDEN, spread=1.0)
ones("output_norm.weight")
head = (random.standard_normal((len(tokens), HIDDEN)) * 0.15).astype(np.float32)
# Printable ASCII only, so that the noise is text and never ends by itself.
head[[n for n in range(len(tokens)) if not 32 <= n < 127]] = 0
head[32:127] += np.sign(head[32:127]) * 0.2
model.add_tensor("output.weight", head)
for layer in range(LAYERS):
    block = f"blk.{layer}."
    ones(block + "attn_norm.weight")
    ones(block + "ffn_norm.weight")
    weights(block + "attn_q.weight", HEADS * HEAD, HIDDEN, spread=0.12)
    weights(block + "attn_k.weight", KV_HEADS * HEAD, HIDDEN, spread=0.12)
    weights(block + "attn_v.weight", KV_HEADS * HEAD, HIDDEN, spread=0.12)
    weights(block + "attn_output.weight", HIDDEN, HEADS * HEAD, spread=0.12)
    weights(block + "ffn_gate.weight", INNER, HIDDEN, spread=0.12)
    weights(block + "ffn_up.weight", INNER, HIDDEN, spread=0.12)
    weights(block + "ffn_down.weight", HIDDEN, INNER, spread=0.12)
model.write_header_to_file()
model.write_kv_data_to_file()
model.write_tensors_to_file()
model.close()
