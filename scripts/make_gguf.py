#!/usr/bin/env python3
"""Makes tiny llama models with random weights, for tests that want a real llama-server but no real answers.

    $(scripts/peers-venv.sh) scripts/make_gguf.py --output FOLDER [--only NAME ...] [--seed N]

scripts/llama-server.sh models calls it and keeps what it makes. The models:

    tiny.gguf      2 layers, 64 wide, 4096 tokens of context; never ends by itself
    tiny-eos.gguf  the same, but its answers end by themselves, after about 100 tokens
    tiny-spm.gguf  as tiny, with a SentencePiece vocabulary and no chat template
    mid-16l.gguf   16 layers, 256 wide, f16: slow enough to be watched, large enough to be split by layers;
                   its vocabulary is that of tiny, which can therefore be its draft model

The same seed gives the same bytes on every machine: the weights are drawn from a uniform distribution, which
takes nothing but a multiplication, by numpy's RandomState, which numpy has promised never to change.

Random weights alone would talk gibberish made of broken UTF-8. Two measures make them useful:

- Hidden dimension 0 carries a constant. Every token's embedding has CONSTANT there, and no layer writes to it,
  so after the last norm it is always about 2, and column 0 of the output matrix is a logit bias per token.
- Those biases rule out every byte that is not printable ASCII (a server holds back half a character, and then events
  and tokens no longer match one to one), favour the pieces of words, and set how soon the end token is drawn.
"""

import argparse
import math
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np

CONSTANT = 4.0  # in hidden dimension 0 of every embedding

BIAS_NEVER = -100.0
BIAS_PIECE = 2.0
END_NEVER = -50.0
END_SOON = 3.3  # found by trial: lengths of 5 to some 500 tokens, the median near 100

ROPE_BASE = 10000.0
NORM_EPSILON = 1e-5

WORDS = """
    a about after all also an and any are as at back be because been but by can come could day do down each even
    find first for from get give go good great hand have he her here him his how if in into is it just know large
    life like line little long look make man many me more most much must my name new no not now number of off old on
    one only or other our out over own part people place read right said same say see seem she should show small so
    some still such take tell than that the their them then there these they thing think this time to turn two under
    up us use very want water way we well were what when where which who will with word work world would write year
    you your
""".split()

# ChatML: each message between <|im_start|> and <|im_end|>, of which the latter is the end token.
CHAT_TEMPLATE = (
    r"{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    r"{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass
class Vocabulary:
    model: str  # llama.cpp's name of the kind: "gpt2" is byte-level BPE, "llama" SentencePiece
    tokens: list[str] = field(default_factory=list)
    types: list[gguf.TokenType] = field(default_factory=list)
    biases: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)  # gpt2 only
    chat_template: str | None = None

    def add(self, token: str, bias: float, kind: gguf.TokenType = gguf.TokenType.NORMAL) -> int:
        self.tokens.append(token)
        self.types.append(kind)
        self.biases.append(bias)
        return len(self.tokens) - 1


@dataclass(frozen=True)
class Model:
    vocabulary: str
    end_bias: float
    layers: int
    width: int
    feed_forward: int
    heads: int
    kv_heads: int
    matrix_type: type
    context: int = 4096


TINY = dict(layers=2, width=64, feed_forward=128, heads=4, kv_heads=2, matrix_type=np.float32)
MODELS = {
    "tiny": Model("bpe", END_NEVER, **TINY),
    "tiny-eos": Model("bpe", END_SOON, **TINY),
    "tiny-spm": Model("spm", END_NEVER, **TINY),
    "mid-16l": Model(
        "bpe", END_NEVER, layers=16, width=256, feed_forward=768, heads=8, kv_heads=4, matrix_type=np.float16
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n", 1)[0], epilog=f"Models: {', '.join(MODELS)}."
    )
    parser.add_argument("--output", metavar="FOLDER", type=Path, required=True, help="where the files go; made if absent")
    parser.add_argument("--only", metavar="NAME", nargs="+", choices=MODELS, default=list(MODELS), help="make just these")
    parser.add_argument("--seed", metavar="N", type=int, default=1, help="other weights (default: %(default)s)")
    args = parser.parse_args()

    args.output.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        path = args.output / f"{name}.gguf"
        write_model(path, name, MODELS[name], args.seed)
        print(f"{path}  {path.stat().st_size:,} bytes")


def write_model(path: Path, name: str, model: Model, seed: int) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    head_width = model.width // model.heads
    half = model.matrix_type is np.float16

    writer.add_name(f"cnse {name}")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if half else gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(model.context)
    writer.add_embedding_length(model.width)
    writer.add_block_count(model.layers)
    writer.add_feed_forward_length(model.feed_forward)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.kv_heads)
    writer.add_rope_dimension_count(head_width)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_layer_norm_rms_eps(NORM_EPSILON)
    vocabulary = VOCABULARIES[model.vocabulary](writer, model.end_bias)
    writer.add_vocab_size(len(vocabulary.tokens))

    for tensor, data in weights(model, vocabulary.biases, np.random.RandomState(seed)):
        writer.add_tensor(tensor, data)

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def weights(model: Model, biases: list[float], random: np.random.RandomState):
    """Yields name and array of each tensor. Shapes are numpy's, the reverse of those that ggml shows."""

    def matrix(rows: int, columns: int, deviation: float) -> np.ndarray:
        limit = deviation * math.sqrt(3.0)  # of the uniform distribution with this standard deviation
        return (random.random_sample((rows, columns)) * (2.0 * limit) - limit).astype(model.matrix_type)

    def residual(rows: int, columns: int) -> np.ndarray:
        # All layers together add to the stream as much as two would, or the constant would drown in a deep model.
        data = matrix(rows, columns, 0.7 * math.sqrt(2.0 / model.layers / columns))
        data[0, :] = 0.0
        return data

    def projection(rows: int, columns: int) -> np.ndarray:
        return matrix(rows, columns, 1.0 / math.sqrt(columns))

    norm = np.ones(model.width, dtype=np.float32)
    head_width = model.width // model.heads

    embedding = matrix(len(biases), model.width, 1.0)
    embedding[:, 0] = CONSTANT
    yield "token_embd.weight", embedding

    for layer in range(model.layers):
        block = f"blk.{layer}"
        yield f"{block}.attn_norm.weight", norm
        yield f"{block}.attn_q.weight", projection(model.heads * head_width, model.width)
        yield f"{block}.attn_k.weight", projection(model.kv_heads * head_width, model.width)
        yield f"{block}.attn_v.weight", projection(model.kv_heads * head_width, model.width)
        yield f"{block}.attn_output.weight", residual(model.width, model.heads * head_width)
        yield f"{block}.ffn_norm.weight", norm
        yield f"{block}.ffn_gate.weight", projection(model.feed_forward, model.width)
        yield f"{block}.ffn_up.weight", projection(model.feed_forward, model.width)
        yield f"{block}.ffn_down.weight", residual(model.width, model.feed_forward)

    yield "output_norm.weight", norm
    output = matrix(len(biases), model.width, 2.5 / math.sqrt(model.width))
    output[:, 0] = biases
    yield "output.weight", output


def byte_level_bpe(writer: gguf.GGUFWriter, end_bias: float) -> Vocabulary:
    """A token per byte, then the beginnings of WORDS after a space, each one merge longer than the last."""
    vocabulary = Vocabulary("gpt2", chat_template=CHAT_TEMPLATE)
    characters = byte_characters()
    for byte in range(256):
        vocabulary.add(characters[byte], 0.0 if printable(byte) else BIAS_NEVER)
    space = characters[ord(" ")]
    for left, right in pieces(space):
        vocabulary.add(left + right, BIAS_PIECE)
        vocabulary.merges.append(f"{left} {right}")
    control = gguf.TokenType.CONTROL
    begin = vocabulary.add("<s>", BIAS_NEVER, control)
    vocabulary.add("<|im_start|>", BIAS_NEVER, control)
    end = vocabulary.add("<|im_end|>", end_bias, control)
    padding = vocabulary.add("<pad>", BIAS_NEVER, control)

    write_vocabulary(writer, vocabulary)
    writer.add_tokenizer_pre("default")
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(begin)
    writer.add_eos_token_id(end)
    writer.add_pad_token_id(padding)
    writer.add_add_bos_token(False)
    return vocabulary


def sentence_piece(writer: gguf.GGUFWriter, end_bias: float) -> Vocabulary:
    """As byte_level_bpe, in the way of SentencePiece: bytes are a fallback, characters are tokens of their own."""
    vocabulary = Vocabulary("llama")
    unknown = vocabulary.add("<unk>", BIAS_NEVER, gguf.TokenType.UNKNOWN)
    begin = vocabulary.add("<s>", BIAS_NEVER, gguf.TokenType.CONTROL)
    end = vocabulary.add("</s>", end_bias, gguf.TokenType.CONTROL)
    for byte in range(256):
        vocabulary.add(f"<0x{byte:02X}>", BIAS_NEVER, gguf.TokenType.BYTE)
    space = "\u2581"
    for character in [space] + [chr(byte) for byte in range(256) if printable(byte) and byte != ord(" ")]:
        vocabulary.add(character, 0.0)
    for left, right in pieces(space):
        vocabulary.add(left + right, BIAS_PIECE)

    write_vocabulary(writer, vocabulary)
    # The pair with the highest score merges first: earlier pieces, which are the beginnings of later ones, win.
    writer.add_token_scores([-float(index) for index in range(len(vocabulary.tokens))])
    writer.add_unk_token_id(unknown)
    writer.add_bos_token_id(begin)
    writer.add_eos_token_id(end)
    writer.add_add_bos_token(True)
    return vocabulary


VOCABULARIES = {"bpe": byte_level_bpe, "spm": sentence_piece}


def write_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    assert len(set(vocabulary.tokens)) == len(vocabulary.tokens), "a token stands twice"
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)


def pieces(space: str) -> list[tuple[str, str]]:
    """Every beginning of every word after a space, shortest first, as what is there already and one letter more."""
    beginnings = {space + word[:count] for word in WORDS for count in range(1, len(word) + 1)}
    return [(piece[:-1], piece[-1]) for piece in sorted(beginnings, key=lambda piece: (len(piece), piece))]


def printable(byte: int) -> bool:
    return 0x20 <= byte <= 0x7E


def byte_characters() -> list[str]:
    """GPT-2's map of bytes to visible characters: itself where it is one, else the next free one from U+0100 on."""
    characters, spare = [], 0x100
    for byte in range(256):
        if 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or 0xAE <= byte <= 0xFF:
            characters.append(chr(byte))
        else:
            characters.append(chr(spare))
            spare += 1
    return characters


if __name__ == "__main__":
    main()
