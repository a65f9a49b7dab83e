import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from keras import ops
from safetensors.numpy import load_file, save_file

import polyhead
from polyhead.data.residues import ATOM14_MASK, LETTERS
from polyhead.zoo import ESMConfig, ESMFold, ESMFoldConfig
from polyhead.zoo.esmfold import esm_tokens
from polyhead.zoo.folding import PAD, aligned_errors, apply_blocks
from tests.conftest import TENSORFLOW, peers

SIZES = dict(
    esm=ESMConfig(num_layers=2, dim=32, num_heads=4, intermediate_dim=48, max_length=64, head=None),
    num_blocks=2, dim=64, pair_dim=32, head_dim=16, pair_head_dim=8, position_bins=8, passes=2,
    num_iterations=2, structure_dim=24, structure_pair_dim=16, structure_heads=3,
    structure_head_dim=8, query_points=4, value_points=5, torsion_dim=12, lddt_dim=24,
)  # fmt: skip
RESIDUES = np.random.default_rng(0).integers(0, 21, (2, 11)).astype("int32")
RESIDUES[1, 7:] = PAD
KEPT = RESIDUES < PAD


many_operations = pytest.mark.skipif(
    not TENSORFLOW, reason="JAX compiles each operation for each shape, which takes minutes"
)


def small(seed=0, **overrides):
    """A small model with large random weights."""
    from polyhead.data import Residues

    model = ESMFold(ESMFoldConfig(**{**SIZES, **overrides}), Residues())
    random = np.random.default_rng(seed)
    for v in model.weights:
        v.assign(random.normal(0, 0.2, v.shape))
    return model


def array(x):
    return ops.convert_to_numpy(x)


@pytest.mark.parametrize("name, count", [("esmfold-v1", 3_525_038_915), ("fold-tiny", 323_362)])
def test_presets_have_their_numbers_of_parameters(name, count):
    assert ESMFold.count_parameters(ESMFold.PRESETS[name]) == count


@pytest.mark.parametrize("changes", [{}, dict(embed_residues=False, num_transitions=2)])
def test_its_weights_have_the_promised_shapes(changes):
    model = small(**changes)
    assert {v.path: tuple(v.shape) for v in model.weights} == dict(model.shapes(model.config))


@many_operations
def test_a_batch_and_padding_change_nothing():
    model = small()
    together = model.predict_structure({"residues": RESIDUES})
    for i, row in enumerate(RESIDUES):
        alone = model.predict_structure({"residues": row[None, KEPT[i]]})
        atoms = ATOM14_MASK[row[KEPT[i]]]
        for name, kept in (("positions", atoms), ("plddt", ...), ("pae", ...), ("ptm", ...)):
            found, expected = array(together[name])[i], array(alone[name])[0]
            if name != "ptm":
                found = found[KEPT[i]][:, KEPT[i]] if name == "pae" else found[KEPT[i]]
            np.testing.assert_allclose(found[kept], expected[kept], atol=1e-3)


def test_folding_does_not_change_the_model_s_chunks():
    model = small()
    model.fold("MKTAY", passes=1, chunk=2)
    assert [block.chunk for block in model.blocks] == [None, None]
    with pytest.raises(ValueError, match="chunk must be a positive integer: 'auto'"):
        model.export("unused", chunk="auto")


def in_turn(model, x, *masks):
    """The trunk's output, block by block; as `FoldingModel` computes it; and the same compiled."""
    random = np.random.default_rng(1)
    z = random.normal(size=(*x.shape[:2], x.shape[1], model.config.pair_dim)).astype("float32")
    s, pairs = x, z
    for block in model.blocks:
        s, pairs = block(s, pairs, *masks, training=False)
    yield s, pairs
    yield apply_blocks(model.blocks, x, z, *masks)
    compute = polyhead.training.compiled(
        model, lambda x, z: apply_blocks(model.blocks, x, z, *masks), "blocks"
    )
    yield compute(x, z)


@pytest.mark.parametrize(
    "unlike",
    ["alpha", "chunk", *(pytest.param(x, marks=pytest.mark.slow) for x in ("none", "rank"))],
)
def test_each_block_has_its_own_weights(unlike):
    model = small(num_blocks=3)
    changed = model.blocks[1:2] if unlike in ("rank", "chunk") else model.blocks
    for i, block in enumerate(changed if unlike in ("rank", "alpha") else ()):
        block.attention.enable_lora(2, alpha=2.0 + i)
        for v in block.trainable_variables:
            v.assign(np.random.default_rng(i).normal(0, 0.2, v.shape))
    if unlike == "chunk":
        changed[0].chunk = 4
    x = np.random.default_rng(0).normal(size=(*RESIDUES.shape, model.config.dim))
    expected, *others = in_turn(model, x.astype("float32"), KEPT)
    for found in others:
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(array(a), array(b), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not TENSORFLOW, reason="TensorFlow's strategies")
@pytest.mark.slow
def test_each_block_has_its_own_weights_on_several_devices():
    import tensorflow as tf

    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        model = small(num_blocks=3)
    [plain] = small(num_blocks=3).fold(["MKTAYIAK"])
    with strategy.scope():
        [found] = model.fold(["MKTAYIAK"])
    np.testing.assert_allclose(found.positions, plain.positions, atol=1e-2)
    np.testing.assert_allclose(found.plddt, plain.plddt, atol=1e-2)


@pytest.mark.skipif(not TENSORFLOW, reason="TensorFlow's graphs")
@pytest.mark.parametrize("passes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_graph_has_the_block_once_per_loop(passes):
    import tensorflow as tf

    model = small(num_blocks=4)
    function = tf.function(lambda x: model.predict_structure(x, passes), autograph=False)
    spec = {"residues": tf.TensorSpec([None, None], tf.int32)}
    graph = function.get_concrete_function(spec).graph.as_graph_def()
    blocks = [f for f in graph.library.function if "apply_block" in f.signature.name]
    assert len(blocks) == passes


def test_only_the_trunk_is_trained():
    model = small()
    assert not [v.path for v in model.trainable_weights if v.path.startswith("esm/")]
    model.enable_lora(2)
    assert len(model.trainable_weights) == 2 * 2 * 2  # two blocks, two projections


@pytest.mark.parametrize(
    "chunk", [4, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 11, 100))]
)
def test_chunks_change_nothing(chunk):
    model = small()
    whole = array(model({"residues": RESIDUES})["positions"])
    for block in model.blocks:
        block.chunk = chunk
    np.testing.assert_allclose(array(model({"residues": RESIDUES})["positions"]), whole, atol=1e-4)


def test_positions_matter_only_by_their_differences():
    model, places = small(), np.arange(11)[None] * np.ones((2, 1))
    usual = array(model({"residues": RESIDUES})["errors"])[KEPT]
    moved = array(model({"residues": RESIDUES, "positions": places.astype("int32") + 40})["errors"])
    np.testing.assert_allclose(moved[KEPT], usual, atol=1e-4)
    places[:, 5:] += 100
    apart = array(model({"residues": RESIDUES, "positions": places.astype("int32")})["errors"])
    assert abs(apart[KEPT] - usual).max() > 0.1


def test_passes_feed_the_prediction_back():
    model = small()
    one, two, four = (
        array(model({"residues": RESIDUES}, passes=n)["distances"]) for n in (1, 2, 4)
    )
    assert abs(one - two).max() > 1e-3 < abs(two - four).max()
    np.testing.assert_array_equal(two, array(model({"residues": RESIDUES})["distances"]))


def test_ptm_of_sure_logits_is_exact():
    logits = np.full((2, 30, 30, 64), -1e9, "float32")
    logits[..., 0] = 0
    mask = np.arange(30)[None] < [[30], [20]]
    pae, ptm = map(array, aligned_errors(logits, mask.astype("float32")))
    width = 31 / 62
    sizes = 1.24 * (np.array([30, 20]) - 15) ** (1 / 3) - 1.8
    np.testing.assert_allclose(ptm, 1 / (1 + (width / 2 / sizes) ** 2), rtol=1e-6)
    np.testing.assert_allclose(pae, width / 2)


def test_proteins_are_folded_and_complexes_have_chains():
    model = small()
    one, two = model.fold(["mktayiakqr", "GGKX:MK"], passes=1, batch_size=2)
    assert one.sequence == "MKTAYIAKQR" and one.positions.shape == (10, 37, 3)
    alone = model.fold("MKTAYIAKQR", passes=1)
    np.testing.assert_allclose(alone.positions, one.positions, atol=1e-3)
    assert two.sequence == "GGKX:MK" and two.chain.tolist() == [0, 0, 0, 0, 1, 1]
    assert two.numbers.tolist() == [1, 2, 3, 4, 1, 2]
    assert two.pae.shape == (6, 6) and 0 < two.ptm < 1
    assert 0 <= two.plddt.min() and two.plddt.max() <= 100
    assert not two.mask[3].any()  # X


def test_chains_are_joined_by_25_glycines_and_their_positions_jump_by_512():
    """As in the reference (esm/esmfold/v1/misc.py), a linker belongs to the chain before it."""
    model = small()
    rows = model._read_chains(model.tokenizer, 0, "MK:AYV")
    assert [LETTERS[i] for i in rows["residues"]] == [*"MK", *"G" * 25, *"AYV"]
    assert rows["positions"].tolist() == [*range(27), 27 + 512, 28 + 512, 29 + 512]
    assert rows["chain"].tolist() == [0, 0, *[-1] * 25, 1, 1, 1]
    assert rows["kept"].tolist() == [True] * 2 + [False] * 25 + [True] * 3


@pytest.mark.parametrize(
    "sequence, message",
    [
        ("", "sequence 0 must have residues in each chain: ''"),
        ("MK:", "must have residues in each chain"),
        ("MK-V", "has '-', which is not a residue"),
        ("MK<mask>", "sequence 0, chain 0: there must be no <mask> in 'MK<mask>'"),
        ("MKJ", "'J' at position 3"),
        ("MK*", r"'\*' at position 3"),
        ("M" * 41, "at most 40 residues, and sequence 0 has 41"),
        ("MK:GG" * 2, "at most 40 residues"),
    ],
)
def test_other_sequences_are_refused(sequence, message):
    with pytest.raises(ValueError, match=message):
        small(max_length=40).fold(sequence)


def test_places_are_those_of_residues_in_their_chain():
    model, sequence = small(), "MKTAYIAKQR"
    usual = model.fold(sequence)
    np.testing.assert_array_equal(usual.pae, model.fold(sequence, places=np.arange(10) + 7).pae)
    gap = np.arange(10) + 3 * (np.arange(10) > 4)
    [found] = model.fold([sequence], places=[gap])
    assert not np.allclose(found.pae, usual.pae)
    inputs = {"residues": [[LETTERS.index(x) for x in sequence]], "positions": [gap]}
    expected = model.predict_structure({k: np.array(x, "int32") for k, x in inputs.items()})
    np.testing.assert_allclose(found.pae, array(expected["pae"])[0], atol=1e-3)
    for text, places, message in (
        ("MKT", [0, 1], "places of sequence 0 must be 3 rising integers"),
        ("MKT", [0, 2, 2], "places of sequence 0 must be 3 rising integers"),
        ("MKT", np.array([5, 3, 1], "uint64"), "must be 3 rising integers"),
        ("MKT", [0, 1, 2**31], "must be 3 rising integers"),
        ("MKT", [0, 1.5, 2], "places of sequence 0 must be 3 rising integers"),
        (["MKT"], [], "there must be places for each sequence: 0 / 1"),
        ("MK:T", [0, 1, 2], "places are for single chains, and sequence 0 has several"),
    ):
        with pytest.raises(ValueError, match=message):
            model.fold(text, places=places)


def test_the_blocks_of_the_trunk_can_be_recomputed():
    model = small()
    for remat in (True, False):
        model.compile("sgd", "mse", remat=remat)
        assert [block.remat for block in model.blocks] == [remat] * len(model.blocks)


def test_counts_are_positive():
    model = small()
    with pytest.raises(ValueError, match="length must be a positive integer: 0"):
        model.memory(0)
    with pytest.raises(ValueError, match="passes must be a positive integer: 0"):
        model({"residues": RESIDUES}, passes=0)


def test_what_memory_cannot_hold_is_refused_before_it_starts():
    model = small()
    assert model.memory(200) > 3.5 * model.memory(100)
    assert model.memory(100, batch_size=3) == pytest.approx(3 * model.memory(100), rel=0.05)
    assert model.memory(100, chunk=8) < model.memory(100, chunk=None)
    with pytest.raises(MemoryError, match="1 x 1,000,000 residues need about .* GB are available"):
        small(max_length=10**6).fold(["MK", "G" * 10**6])


@pytest.mark.parametrize(
    "available, chunk, message",
    [
        (30e9, 64, "need about 40 GB .* 30 GB are .*: fold shorter .* or use chunk=1 .* 22 GB"),
        (8e9, 64, "need about 40 GB of memory, and 8 GB are available: fold shorter sequences$"),
        (8e9, "auto", "need about 22 GB of memory, and 8 GB are .*: fold shorter sequences$"),
    ],
)
def test_an_error_of_memory_has_a_remedy(available, chunk, message, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=available))
    with pytest.raises(MemoryError, match=f"1 x 3,000 residues {message}"):
        small().fold("G" * 3000, chunk=chunk)


def test_an_export_s_readme_has_an_estimate_for_its_longest_sequence(monkeypatch):
    found = []
    monkeypatch.setattr("polyhead.serving.export.export", lambda *given: found.extend(given))
    model = small(max_length=3000)
    model.export("unused")
    assert "3,000 residues, the longest that the export takes, needs about 40.3 GB" in found[-1]
    assert model.memory(3000, chunk=64) == 40_320_000_000


def test_masked_residues_are_seen_as_places_only():
    model = small()
    masked = np.zeros_like(KEPT)
    masked[:, 3] = True
    other = RESIDUES.copy()
    other[:, 3] = (other[:, 3] + 1) % 20

    def states(residues, **given):
        return array(model({"residues": residues, **given}, passes=1)["states"])

    np.testing.assert_allclose(
        states(RESIDUES, masked=masked)[KEPT], states(other, masked=masked)[KEPT], atol=1e-5
    )
    assert abs(states(RESIDUES) - states(other))[KEPT].max() > 1e-3


def test_it_is_saved_and_loaded(tmp_path):
    model = small()
    model.save_pretrained(tmp_path)
    again = polyhead.load(tmp_path)
    assert type(again) is ESMFold and again.config == model.config
    for a, b in zip(model.weights, again.weights, strict=True):
        np.testing.assert_array_equal(array(a), array(b))


@many_operations
def test_half_precision_is_finite():
    for policy in ("mixed_bfloat16", "mixed_float16"):
        found = ESMFold(ESMFoldConfig(**SIZES), dtype=policy)({"residues": RESIDUES})
        assert all(np.isfinite(array(x)).all() for x in (found["positions"], found["lddt"]))


@pytest.mark.slow
def test_a_quantized_model_folds(tmp_path):
    model, sequence = small(), "MKTAYIAKQR"
    [before] = model.fold([sequence], passes=1)
    model.quantize("int8")
    [after] = model.fold([sequence], passes=1)
    assert 0 < abs(after.plddt - before.plddt).mean() < 0.1 * before.plddt.std() + 1
    model.save_pretrained(tmp_path)
    [again] = polyhead.load(tmp_path).fold([sequence], passes=1)
    np.testing.assert_allclose(again.positions, after.positions, atol=1e-3)
    np.testing.assert_allclose(again.plddt, after.plddt, atol=1e-3)


def make(folder, half=False):
    """Saves Hugging Face's model of the same sizes, with random weights."""
    torch, transformers = peers()
    torch.manual_seed(0)
    structure = dict(
        sequence_dim=24, pairwise_dim=16, ipa_dim=8, resnet_dim=12, num_heads_ipa=3,
        num_qk_points=4, num_v_points=5, num_blocks=2,
    )  # fmt: skip
    trunk = dict(
        num_blocks=2, sequence_state_dim=64, pairwise_state_dim=32, sequence_head_width=16,
        pairwise_head_width=8, position_bins=8, max_recycles=2, chunk_size=None,
        structure_module=structure,
    )  # fmt: skip
    config = transformers.EsmConfig(
        vocab_size=33, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        position_embedding_type="rotary", token_dropout=True, mask_token_id=32, pad_token_id=1,
        layer_norm_eps=1e-5, emb_layer_norm_before=False, max_position_embeddings=64,
        is_folding_model=True,
        esmfold_config=dict(fp16_esm=half, lddt_head_hid_dim=24, trunk=trunk),
    )  # fmt: skip
    theirs = transformers.EsmForProteinFolding(config).eval()
    with torch.no_grad():
        for p in theirs.parameters():  # also those that are initially zero
            p.normal_(0, 0.2)
    theirs.save_pretrained(folder)
    return theirs


def run(theirs, residues, passes):
    torch, _ = peers()
    given, mask = torch.tensor(np.where(residues < PAD, residues, 0)).long(), residues < PAD
    with torch.no_grad():
        return theirs(given, torch.tensor(mask).long(), num_recycles=passes - 1)


@pytest.mark.parametrize("passes", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_predictions_match_the_reference(passes, tmp_path):
    theirs = make(tmp_path)
    ours = polyhead.load(tmp_path)
    expected = {k: v for k, v in run(theirs, RESIDUES, passes).items()}
    found = ours({"residues": RESIDUES}, passes=passes)
    pairs = KEPT[:, :, None] & KEPT[:, None]
    atoms = ATOM14_MASK[np.minimum(RESIDUES, 20)] & KEPT[..., None]
    for name, theirs_name, kept, tolerance in (
        ("states", "states", KEPT, 1e-4),
        ("distances", "distogram_logits", pairs, 1e-4),
        ("errors", "ptm_logits", pairs, 1e-4),
        ("residues", "lm_logits", KEPT, 1e-4),
        ("positions", "positions", atoms, 1e-3),
        ("torsions", "angles", KEPT, 1e-4),
    ):
        wanted = expected[theirs_name].numpy()
        wanted = wanted[-1] if theirs_name in ("states", "positions", "angles") else wanted
        np.testing.assert_allclose(array(found[name])[kept], wanted[kept], atol=tolerance)
    found = ours.predict_structure({"residues": RESIDUES}, passes)
    np.testing.assert_allclose(
        array(found["plddt"])[KEPT], 100 * expected["plddt"].numpy()[KEPT], atol=1e-3
    )
    np.testing.assert_allclose(
        array(found["pae"])[pairs], expected["predicted_aligned_error"].numpy()[pairs], atol=1e-3
    )
    # The reference has one score for the whole batch, which counts padding: so one at a time.
    for i, row in enumerate(RESIDUES):
        alone = run(theirs, row[None, KEPT[i]], passes).ptm
        np.testing.assert_allclose(array(found["ptm"])[i], alone.item(), atol=1e-5)


def test_files_are_those_of_the_reference(tmp_path):
    _, transformers = peers()
    theirs = make(tmp_path / "theirs")
    ours = polyhead.load(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours", format="huggingface")
    back, report = transformers.EsmForProteinFolding.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for name, tensor in theirs.state_dict().items():
        np.testing.assert_allclose(back.state_dict()[name].numpy(), tensor.numpy(), atol=1e-7)
    again = polyhead.load(tmp_path / "ours")
    assert again.config == ours.config


@many_operations
@pytest.mark.slow
def test_a_file_like_the_published_one_is_read(tmp_path):
    """Its language model is float16, also the rotations, and has no regression of contacts."""
    theirs = make(tmp_path / "theirs", half=True).float()
    file = tmp_path / "theirs" / "model.safetensors"
    tensors = {k: v for k, v in load_file(file).items() if "contact_head" not in k}
    [name] = [name for name in tensors if name.endswith("inv_freq")]
    rates = tensors.pop(name)
    assert rates.dtype == np.float16
    for i in range(2):
        tensors[f"esm.encoder.layer.{i}.attention.self.rotary_embeddings.inv_freq"] = rates
    tensors["esm.embeddings.position_ids"] = np.arange(64)[None]
    tensors["esm.embeddings.position_embeddings.weight"] = np.ones([64, 32], "float16")
    save_file(tensors, file)
    ours = polyhead.load(tmp_path / "theirs")
    assert ours.config.esm.half_rates
    row = np.random.default_rng(0).integers(0, 20, (1, 300)).astype("int32")
    np.testing.assert_allclose(
        array(ours({"residues": row}, passes=1)["states"]),
        run(theirs, row, 1).states[-1].numpy(),
        atol=1e-3,
    )
    ours.save_pretrained(tmp_path / "ours", format="huggingface")
    assert polyhead.load(tmp_path / "ours").config == ours.config


def test_the_language_model_reads_amino_acids():
    tokens = polyhead.data.Residues().tokens(LETTERS)[1:-1]
    assert [polyhead.data.Residues().pieces([i])[0] for i in esm_tokens(ESMConfig())] == [
        *tokens, "<pad>", "<mask>",
    ]  # fmt: skip


@pytest.mark.slow
def test_an_export_answers_as_python_does(tmp_path):
    model = small()
    version = model.export(tmp_path)
    assert "4,000 residues, the longest" in (tmp_path / "README.md").read_text()
    texts = ["mktayiakqr", "", "G", "MKJ#日", "M" * 40, "MK - V.<mask>"]
    known = [texts[0], texts[2], "MKXXX", texts[4], "MKXVXX"]
    requests = [("serving_default", {"sequence": texts}), ("arrays", {"sequence": texts})]
    lines = "".join(json.dumps({"signature_name": n, "inputs": x}) + "\n" for n, x in requests)
    command = [sys.executable, "-m", "polyhead.serving.loader", str(version)]
    done = subprocess.run(command, input=lines, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folded, arrays = map(json.loads, done.stdout.splitlines())
    assert folded["length"] == arrays["length"] == [10, 0, 1, 5, 40, 6]
    at = [0, 2, 3, 4, 5]
    for i, structure in zip(at, model.fold(known), strict=True):
        length = folded["length"][i]
        np.testing.assert_allclose(folded["ptm"][i], structure.ptm, atol=1e-5)
        np.testing.assert_allclose(folded["plddt"][i][:length], structure.plddt, atol=1e-3)
        np.testing.assert_allclose(folded["mean_plddt"][i], structure.plddt.mean(), atol=1e-3)
        pae = np.array(arrays["pae"][i])[:length, :length]
        np.testing.assert_allclose(pae, structure.pae, atol=1e-3)
        found, expected = folded["pdb"][i].splitlines(), structure.pdb().splitlines()
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert one[:30] == other[:30]  # all but rounded numbers
            if one.startswith("ATOM"):
                pairs = zip(one[30:66].split(), other[30:66].split(), strict=True)
                assert all(abs(float(a) - float(b)) < 0.011 for a, b in pairs)
