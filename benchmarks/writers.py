"""The contenders of decode.py: libraries that write tokens after prompts, greedy or by beams, and the files they open."""

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

CORES = os.cpu_count()
READ = 2**30  # bytes that are read to find the bandwidth
WAYS_TO_READ = 3  # times each
LIVELY = 4.0  # kernels so many times larger than at the start of training: else a model only repeats its last token
NEVER_ENDS = dict.fromkeys(("eos_token_id", "forced_eos_token_id", "bad_words_ids"))
# What a Marian checkpoint can hold of the model of Vaswani et al. 2017; targets begin with its last token, the padding.
MARIAN = dict(attention_bias=True, output_bias=True, interleaved_positions=False, norm_eps=1e-5, eos_token=0)
MARIAN |= dict(vocab_size=37001, pad_token=37000, decoder_start_token=37000)

Write = Callable[[np.ndarray, int, int], "list | np.ndarray"]  # prompts, numbers of tokens and beams to rows of tokens


class Writer(NamedTuple):
    """`weights`: their bytes. `gaps`: between the two best logits, where each of these tokens was written after these
    prompts. `read`: the bytes that must be read for a token after so many."""

    write: Write
    weights: int
    gaps: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    read: Callable[[float], float] | None = None


def make(model: str, folder: str) -> None:
    """Write the model's weights as a Hugging Face folder, and SmolLM2's also as GGUF files."""
    import jax

    from flaxllm import nn, preset
    from flaxllm.pretrained import from_pretrained, save_pretrained
    from real_weights import smollm2_gguf

    if model == "smollm2-135m":
        built, params = from_pretrained(smollm2_gguf())
        for kind in ("F32", "Q8_0"):
            _write_gguf(smollm2_gguf(), f"{folder}/{kind}.gguf", kind)
        Path(folder, "Q4_1.gguf").symlink_to(smollm2_gguf())
    else:
        built = preset(model, **MARIAN if model == "transformer-base" else {})
        flat = nn.flatten(built.init(jax.random.PRNGKey(0)))
        params = nn.unflatten({path: LIVELY * x if path.endswith("/kernel") else x for path, x in flat.items()})
        if model == "transformer-base":
            params["embedding"]["tokens"] = params["embedding"]["tokens"].at[built.config.pad_token].set(0.0)
    save_pretrained(folder, built, params)


def _write_gguf(source: Path, path: str, kind: str) -> None:
    """The same file with its matrices in another form; vectors are in float32."""
    import gguf

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name != "general.architecture" and not name.startswith("GGUF."):
            array = field.types[0] == gguf.GGUFValueType.ARRAY
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=field.types[-1] if array else None)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        form = gguf.GGMLQuantizationType[kind if values.ndim > 1 else "F32"]
        writer.add_tensor(tensor.name, gguf.quantize(values, form), raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _flaxllm(folder: Path, quantize: str | None = None) -> Writer:
    import jax
    import jax.numpy as jnp

    import flaxllm
    from flaxllm.decoding.reading import empty_cache, has_encoder
    from flaxllm.models.quantize import num_bytes
    from flaxllm.pretrained import from_pretrained

    model, params = from_pretrained(folder)
    params = flaxllm.prepare(model, params, quantize)

    def write(prompts: np.ndarray, num_new: int, num_beams: int) -> np.ndarray:
        options = dict(temperature=0.0, stop_tokens=(), num_beams=num_beams)
        return flaxllm.generate(model, params, prompts, num_new, **options).tokens

    @jax.jit
    def gaps(params: dict, prompts: jax.Array, written: jax.Array) -> jax.Array:
        if has_encoder(model):
            start = jnp.full((len(written), 1), model.config.decoder_start_token)
            hidden = model.apply(params, prompts, jnp.concatenate([start, written[:, :-1]], axis=1)).hidden
        else:
            tokens = jnp.concatenate([prompts, written[:, :-1]], axis=1)
            hidden = model.apply(params, tokens).hidden[:, prompts.shape[1] - 1 :]
        best = jax.lax.top_k(model.unembed(params, hidden), 2)[0]
        return best[..., 0] - best[..., 1]

    def read(length: float) -> float:
        """All weights but those of which only a row is looked up, and the keys and values of the tokens before."""
        kept = jax.tree.leaves(jax.eval_shape(lambda: empty_cache(model, 1, 1).layers))
        each = sum(part.size * part.dtype.itemsize for part in kept)
        return weights - num_bytes(params["embedding"].get("positions", {})) + length * each

    weights = num_bytes(params)
    return Writer(write, weights, partial(gaps, params), read)


def _transformers(folder: Path) -> Writer:
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    architecture = transformers.AutoConfig.from_pretrained(folder).architectures[0]
    model = getattr(transformers, architecture).from_pretrained(folder, dtype=torch.float32).eval()
    for name in NEVER_ENDS:
        setattr(model.generation_config, name, None)

    def write(prompts: np.ndarray, num_new: int, num_beams: int) -> np.ndarray:
        tokens = torch.from_numpy(prompts)
        options = dict(do_sample=False, num_beams=num_beams, max_new_tokens=num_new)
        return model.generate(tokens, attention_mask=torch.ones_like(tokens), **options)[:, -num_new:].numpy()

    return Writer(write, sum(parameter.nbytes for parameter in model.parameters()))


def _llama_cpp(folder: Path, kind: str) -> Writer:
    import llama_cpp

    path = folder / f"{kind}.gguf"
    plain = dict(type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32) if kind == "F32" else {}
    model = llama_cpp.Llama(str(path), n_ctx=4096, n_threads=CORES, n_threads_batch=CORES, verbose=False, **plain)

    def write(prompts: np.ndarray, num_new: int, num_beams: int) -> list[list[int]]:
        model.reset()  # forgets the last prompt, whose beginning it would not read again
        return [list(islice(model.generate(prompts[0].tolist(), temp=0.0), num_new))]

    return Writer(write, path.stat().st_size)


def _ctranslate2(folder: Path) -> Writer:
    import ctranslate2
    import transformers
    from ctranslate2.converters import TransformersConverter

    transformers.logging.disable_progress_bar()

    config = transformers.AutoConfig.from_pretrained(folder)
    names = [str(number) for number in range(config.vocab_size)]  # the library knows tokens by their names only
    names[config.pad_token_id] = "<pad>"
    numbers = {name: number for number, name in enumerate(names)}

    class Converter(TransformersConverter):
        def load_tokenizer(self, *_: object, **options: object) -> SimpleNamespace:
            return SimpleNamespace(
                get_vocab=lambda: numbers,
                convert_ids_to_tokens=names.__getitem__,
                pad_token="<pad>",
                eos_token=names[config.eos_token_id],
                unk_token=names[2],
            )

    path = folder / "ctranslate2"
    Converter(str(folder)).convert(str(path), quantization="float32")
    model = ctranslate2.Translator(str(path), compute_type="float32", inter_threads=1, intra_threads=CORES)

    def write(prompts: np.ndarray, num_new: int, num_beams: int) -> list[list[int]]:
        options = dict(beam_size=num_beams, min_decoding_length=num_new, max_decoding_length=num_new)
        results = model.translate_batch([[names[token] for token in row] for row in prompts], **options)
        return [[numbers[name] for name in result.hypotheses[0]] for result in results]

    return Writer(write, (path / "model.bin").stat().st_size)


def read_bandwidth() -> float:
    """Bytes a second, by the fastest of several ways to read memory with all cores."""
    import jax
    import jax.numpy as jnp
    import torch

    values = np.ones(READ // 4, np.float32)
    shared, rows = torch.from_numpy(values), torch.from_numpy(values).view(2**14, -1)
    ones, sum_jitted, array = torch.ones(rows.shape[1]), jax.jit(jnp.sum), jnp.asarray(values)
    with ThreadPoolExecutor(CORES) as threads:
        ways = [
            lambda: list(threads.map(np.sum, np.array_split(values, CORES))),
            lambda: sum_jitted(array).block_until_ready(),
            lambda: shared.sum(),
            lambda: rows @ ones,
        ]
        return READ / min(seconds(way) for way in ways * WAYS_TO_READ)


def seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def installed(package: str) -> bool:
    return find_spec(package.replace("llama-cpp-python", "llama_cpp")) is not None


CONTENDERS: dict[str, Callable[[Path], Writer]] = {
    "flaxllm": _flaxllm,
    "transformers": _transformers,
    "llama.cpp": partial(_llama_cpp, kind="F32"),
    "flaxllm int8": partial(_flaxllm, quantize="int8"),
    "llama.cpp Q8_0": partial(_llama_cpp, kind="Q8_0"),
    "flaxllm int4": partial(_flaxllm, quantize="int4"),
    "llama.cpp Q4_1": partial(_llama_cpp, kind="Q4_1"),
    "CTranslate2": _ctranslate2,
}
