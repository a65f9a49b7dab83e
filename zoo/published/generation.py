"""``generation_config.json``, for all families that generate text."""

from ..decoding import Sampling, Search
from .files import naming_errors
from .settings import Settings, read_ends, write_ends, write_settings

GENERATION = "generation_config.json"
SEARCH = (
    ("num_beams", "num_beams", 1),
    ("length_penalty", "length_penalty", 1.0),
    ("early_stopping", "early_stopping", False),
    ("renormalize_logits", "renormalized", False),
    ("no_repeat_ngram_size", "no_repeat_ngram_size", 0),
    ("forced_bos_token_id", "forced_begin", None),
)
SAMPLING = (
    ("temperature", "temperature", 1.0),
    ("top_k", "top_k", 50),
    ("top_p", "top_p", None),
    ("min_p", "min_p", None),
)
# Settings that Hugging Face's library may write at their neutral values.
NEUTRAL = {
    "typical_p": 1.0, "encoder_repetition_penalty": 1.0, "encoder_no_repeat_ngram_size": 0,
    "num_beam_groups": 1, "diversity_penalty": 0.0, "num_return_sequences": 1,
    "remove_invalid_values": False, "guidance_scale": 1.0, "penalty_alpha": 0.0,
    "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
}  # fmt: skip
# Sampling settings; they must be neutral, because translation never samples.
UNSAMPLED = {
    "do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "repetition_penalty": 1.0,
}  # fmt: skip
IGNORED = (
    "_from_model_config", "bos_token_id", "output_attentions", "output_hidden_states",
    "output_logits", "output_scores", "pad_token_id", "return_dict_in_generate",
    "transformers_version", "use_cache",
)  # fmt: skip
NAMES = {
    *(row[0] for row in SEARCH + SAMPLING), *NEUTRAL, *UNSAMPLED, "bad_words_ids",
    "forced_eos_token_id", "max_length", "max_new_tokens", "min_length", "min_new_tokens",
    "stop_strings",
}  # fmt: skip


def read_generation(s, g, ends, start_id=None):
    """Reads the fields ``search``, ``sampling`` and ``stop_strings`` of a configuration.

    Older models have these settings in config.json; they are ignored there if a
    generation_config.json exists, as in Hugging Face's library.

    Args:
        s: the `Settings` of config.json.
        g: those of generation_config.json.
        ends: the end tokens of config.json; the first is the model's, and always ends sequences.
        start_id: for translation models: the decoder's start token, which counts towards lengths
            in Hugging Face's library.
    """
    g = g if g.values else Settings(s.file, {n: s.values[n] for n in NAMES & s.values.keys()})
    s.ignore(*NAMES)
    end, counted = ends[0], start_id is not None
    for name, value in {**NEUTRAL, **(UNSAMPLED if counted else {})}.items():
        g.must(name, value)
    g.ignore(*IGNORED)
    if counted:
        g.must("decoder_start_token_id", start_id)
    found = read_ends(g, ends)
    if counted and end not in found:
        raise g.error("eos_token_id", found, f"{end!r:.50}, or a list with it")
    forced = g.get("forced_eos_token_id", None)
    if forced not in (None, end, [end]):
        raise g.error("forced_eos_token_id", forced, f"eos_token_id, {end!r:.50}, or none")
    sampled = g.flag("do_sample", False)
    with naming_errors(g.file):
        search = g.read(SEARCH)
        if not counted and (token := search.pop("forced_begin")) is not None:
            s.warnings.append(
                f"{g.file}: forced_bos_token_id, {token}, is ignored: in Hugging Face's library it "
                "is the second token, so it affects only prompts of one token"
            )
        # Hugging Face's max_length includes the prompt, ours does not.
        longest = g.get("max_length", None if counted else 100)
        longest = longest - 1 if counted and longest is not None else longest
        search["max_new_tokens"] = g.get("max_new_tokens", longest)
        shortest = max(g.get("min_length", 0) - counted, 0)
        if shortest and not counted:
            s.warnings.append(
                f"{g.file}: min_length, {shortest}, is ignored: it includes the prompt; "
                "min_new_tokens does not"
            )
            shortest = 0
        search["min_new_tokens"] = max(g.get("min_new_tokens", 0), shortest)
        search["forced_end"] = forced is not None
        # Hugging Face's library does not ban end tokens, even if they are listed.
        ends = [[token] for token in found]
        search["banned"] = [x for x in g.get("bad_words_ids", []) if x not in ends]
        search["stop_tokens"] = [token for token in found if token != end]
        sampling = g.read(SAMPLING)
        penalty = {"repetition_penalty": g.get("repetition_penalty", 1.0)}
        stop = g.get("stop_strings", ())
        if counted:
            g.must("stop_strings", None)  # translation has no stop strings
        g.all_read()
        sampling = Sampling(**(sampling if sampled else {"temperature": 0}), **penalty)
        search = Search(**search)
        penalized = sampling.repetition_penalty != 1
        if not counted and search.num_beams > 1 and (sampled or penalized):
            raise g.error("num_beams", search.num_beams, "1 with sampling or a penalty")
        return {"search": search, "sampling": sampling, "stop_strings": stop}


def write_generation(config, start_id=None):
    """Returns the ``generation_config.json`` of a configuration; defaults are left out.

    Raises:
        ValueError: the format cannot express a setting.
    """
    search, sampling = config.search, getattr(config, "sampling", None)
    if search.penalty != "power" and search.num_beams > 1 and search.length_penalty:
        raise ValueError(f"penalty must be 'power' in this format: {search.penalty!r}")
    if search.num_beams > 1:  # then ours does not sample, and theirs would
        sampling = None
    written = {"eos_token_id": write_ends(config)}
    if start_id is None and search.forced_begin is not None:
        raise ValueError(f"forced_begin must be None in this format: {search.forced_begin!r}")
    if start_id is not None:
        written |= {"decoder_start_token_id": start_id, "pad_token_id": config.pad_id}
    defaults = {row[0]: row[2] for row in SEARCH} | {"top_p": None, "min_p": None}
    values = write_settings(SEARCH, search)
    if search.max_new_tokens is not None:
        values["max_new_tokens"] = search.max_new_tokens
    if search.min_new_tokens:
        values["min_new_tokens"] = search.min_new_tokens
    if search.banned:
        values["bad_words_ids"] = [list(tokens) for tokens in search.banned]
    if search.forced_end:
        values["forced_eos_token_id"] = config.end_id
    if sampling is not None and sampling.temperature > 0:
        values |= write_settings(SAMPLING, sampling)
        values |= {"do_sample": True, "top_k": sampling.top_k or 0}
    if sampling is not None and sampling.repetition_penalty != 1:
        values["repetition_penalty"] = sampling.repetition_penalty
    if stop := getattr(config, "stop_strings", ()):
        values["stop_strings"] = list(stop)
    missing = object()
    return written | {n: v for n, v in values.items() if v != defaults.get(n, missing)}
