import zipfile

import numpy as np
import pytest
from keras import ops

import polyhead
from polyhead.data import alignment_features
from polyhead.data.residues import ATOM14_MASK, ATOM37_MASK, ATOM37_TO_ATOM14, LETTERS
from polyhead.zoo import AlphaFold, AlphaFoldConfig
from polyhead.zoo.folding import PAD
from polyhead.zoo.published import alphafold, table
from tests.conftest import TENSORFLOW

SIZES = dict(
    max_msa=4, max_extra=9, num_blocks=2, num_extra_blocks=1, dim=16, extra_dim=8, pair_dim=12,
    num_heads=4, num_pair_heads=2, outer_dim=3, passes=1, num_iterations=2, structure_dim=20,
    structure_heads=3, torsion_dim=12, lddt_dim=14, aligned_errors=True,
)  # fmt: skip
COMPILES = pytest.mark.skipif(not TENSORFLOW, reason="JAX compiles each operation")
QUERY = "MKTAYIAXGG"
PREDICTED = ("positions", "lddt", "errors", "distances", "resolved", "states")


def make_rows(count, query=QUERY, seed=0):
    """An alignment of random rows."""
    random, letters = np.random.default_rng(seed), list(LETTERS + "-")
    rows = ["".join(random.choice(letters, len(query))) for _ in range(count - 1)]
    return [query, *("".join("g" * (random.random() < 0.1) + x for x in row) for row in rows)]


def inputs(count=9, query=QUERY):
    found = alignment_features(make_rows(count, query), SIZES["max_msa"], SIZES["max_extra"])
    return {name: x[None] for name, x in found.items()}


def array(x):
    return ops.convert_to_numpy(x)


def small(**overrides):
    """A small model with large random weights."""
    model = AlphaFold(AlphaFoldConfig(**{**SIZES, **overrides}))
    random = np.random.default_rng(0)
    for v in model.weights:
        v.assign(random.normal(0, 0.3, v.shape))
    return model


@pytest.fixture(scope="module")
def model():
    return small()


@pytest.fixture(scope="module")
def usual(model):
    found = model(inputs())
    return {name: array(found[name]) for name in PREDICTED}


def close(found, expected):
    assert abs(expected).max() > 1e-2
    np.testing.assert_allclose(found, expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    "name, count",
    [
        ("model-3", 92_899_674),
        ("model-4", 92_899_674),
        ("model-5", 92_899_674),
        ("model-3-ptm", 92_907_930),
        ("model-4-ptm", 92_907_930),
        ("model-5-ptm", 92_907_930),
        ("alphafold-tiny", 131_734),
    ],
)
def test_presets_have_their_numbers_of_parameters(name, count):
    """The published ones are those of AlphaFold's JAX modules, see the last test."""
    assert AlphaFold.count_parameters(AlphaFold.PRESETS[name]) == count


def test_its_weights_have_the_promised_shapes(model):
    assert {v.path: tuple(v.shape) for v in model.weights} == dict(model.shapes(model.config))


@COMPILES
def test_a_batch_and_padding_change_nothing(model, usual):
    first, second = inputs(), inputs(6, QUERY[:6])
    sizes = {"residues": (2, 10), "msa": (2, 4, 10, 49), "extra": (2, 5, 10, 25)}
    batch = {name: np.full(shape, 5, first[name].dtype) for name, shape in sizes.items()}
    batch["residues"][:] = PAD
    masks = {"msa_mask": np.zeros((2, 4), "bool"), "extra_mask": np.zeros((2, 5), "bool")}
    for i, given in enumerate((first, second)):
        for name, x in given.items():
            batch[name][(i, *(slice(n) for n in x.shape[1:]))] = x[0]
            if name != "residues":
                masks[f"{name}_mask"][i, : x.shape[1]] = True
    together = model({**batch, **masks})
    alone = model(second)
    for name in PREDICTED:
        close(array(together[name])[0], usual[name][0])
        found, expected = array(together[name])[1, :6], array(alone[name])[0]
        found = found[:, :6] if name in ("errors", "distances") else found
        atoms = ATOM14_MASK[second["residues"][0]] if name == "positions" else ...
        close(found[atoms], expected[atoms])


def test_the_order_of_rows_does_not_matter(model, usual):
    given = inputs()
    given["msa"], given["extra"] = given["msa"][:, [0, 3, 1, 2]], given["extra"][:, ::-1]
    found = model(given)
    for name in PREDICTED:
        close(array(found[name]), usual[name])


@pytest.mark.slow
def test_chunks_change_nothing(model, usual):
    with model._chunks(3):
        assert {block.chunk for block in model.trunk} == {3}
        close(array(model(inputs())["positions"]), usual["positions"])
    assert {block.chunk for block in model.trunk} == {None}


@COMPILES
def test_passes_feed_the_prediction_back(model, usual):
    again = array(model(inputs(), passes=2)["distances"])
    assert abs(again - usual["distances"]).max() > 1e-2


@COMPILES
def test_positions_matter_only_by_their_differences(model, usual):
    places = np.arange(10)[None]
    moved = model({**inputs(), "positions": places + 40})
    close(array(moved["distances"]), usual["distances"])
    apart = model({**inputs(), "positions": places + 100 * (places > 4)})
    assert abs(array(apart["distances"]) - usual["distances"]).max() > 1e-2


@pytest.mark.slow
def test_alignments_are_folded(model):
    structure = model.fold(make_rows(9))
    assert structure.sequence == QUERY and structure.positions.shape == (10, 37, 3)
    assert structure.pae.shape == (10, 10) and 0 < structure.ptm < 1
    assert (structure.atom_plddt == structure.plddt[:, None]).all()
    assert not structure.mask[QUERY.index("X")].any()
    found = array(model(inputs())["positions"])[0]
    slots = ATOM37_TO_ATOM14[structure.residues][..., None]
    expected = np.take_along_axis(found, slots, axis=1) * structure.mask[..., None]
    np.testing.assert_allclose(structure.positions, expected, atol=1e-3)


@pytest.mark.slow
def test_one_sequence_has_a_structure_without_errors():
    structure = AlphaFold.preset("alphafold-tiny").fold("mktay", passes=2)
    assert structure.sequence == "MKTAY" and structure.pae is None and structure.ptm is None


def test_what_is_not_supported_is_refused(model):
    with pytest.raises(ValueError, match="row 1 must have 5 residues"):
        model.fold(["MKTAY", "MK"])
    with pytest.raises(ValueError, match="row 0 has 'ß', which is not a residue"):
        model.fold("mkß")
    with pytest.raises(TypeError, match="fold takes a string or a list of them: row 1 is None"):
        model.fold(["MKTAY", None])
    with pytest.raises(ValueError, match="passes must be a positive integer: 0"):
        model.fold("MKTAY", passes=0)
    with pytest.raises(ValueError, match="passes must be a positive integer: 0.5"):
        model.fold("MKTAY", passes=0.5)
    with pytest.raises(ValueError, match="LoRA is not supported by AlphaFold"):
        model.enable_lora(2)


def test_white_space_is_left_out(model):
    with pytest.raises(ValueError, match="row 1 must have 5 .* as the query: 2 in 'MK'"):
        model.fold(["MK TAY\n", "M K"])


@COMPILES
@pytest.mark.slow
def test_a_quantized_model_folds():
    model, rows = small(), make_rows(9)
    before = model.fold(rows)
    model.quantize("int8")
    after = model.fold(rows)
    assert 0 < abs(after.plddt - before.plddt).mean() < 0.1 * before.plddt.std() + 1


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_is_finite(policy):
    found = AlphaFold(AlphaFoldConfig(**SIZES), dtype=policy)(inputs())
    assert all(np.isfinite(array(found[name])).all() for name in PREDICTED)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(num_heads=3), "num_heads must divide dim: 16 / 3"),
        (dict(extra_dim=6), "num_heads must divide extra_dim: 6 / 4"),
        (dict(num_pair_heads=5), "num_pair_heads must divide pair_dim: 12 / 5"),
        (dict(pair_dropout=1.0), r"pair_dropout must be in \[0, 1\): 1.0"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        AlphaFoldConfig(**{**SIZES, **changes})


def test_it_is_saved_and_loaded(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = polyhead.load(tmp_path)
    assert type(again) is AlphaFold and again.config == model.config
    for a, b in zip(model.weights, again.weights, strict=True):
        np.testing.assert_array_equal(array(a), array(b))
    with pytest.raises(ValueError, match=r"AlphaFold is saved as \['polyhead'\]: 'huggingface'"):
        model.save_pretrained(tmp_path, format="huggingface")


def published(model):
    """The arrays of a file of AlphaFold with the weights of a model."""
    weights = {v.path: array(v) for v in model.weights}
    shapes = [(path, x.shape) for path, x in weights.items()]
    entries, _ = table.match(alphafold.rows(model.config, None), shapes, {})
    return {entry.name: table.write(entry, weights) for entry in entries}


OTHERS = dict(num_blocks=1, num_extra_blocks=2, aligned_errors=False)


@pytest.mark.parametrize("changes", [{}, pytest.param(OTHERS, marks=pytest.mark.slow)])
def test_published_files_are_read(changes, tmp_path):
    model, file = small(**changes), tmp_path / "params_model_3.npz"
    np.savez(file, **published(model))
    again = polyhead.load(file, max_msa=4, max_extra=9, passes=1, num_iterations=2)
    assert type(again) is AlphaFold and again.config == model.config
    for a, b in zip(model.weights, again.weights, strict=True):
        np.testing.assert_array_equal(array(a), array(b))


STACK = "alphafold/alphafold_iteration/evoformer/evoformer_iteration/"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda a: a.pop(f"{STACK}pair_transition/transition1//bias"), "pair_transition"),
        (lambda a: a.update(other=np.zeros(3, "float32")), "other"),
        (
            lambda a: a.update({f"{STACK[:40]}template_embedding//w": np.zeros(3, "float32")}),
            "is of templates, which AlphaFold does not have",
        ),
        (
            lambda a: a.update({f"{STACK}outer_product_mean//output_b": np.zeros((2, 5), "f")}),
            r"output_b has shape \(2, 5\), expected \(2, 12\)",
        ),
        (
            lambda a: a.update({f"{STACK}outer_product_mean//output_b": np.array([{}, 1])}),
            "is not an uncompressed array of floats",
        ),
    ],
)
def test_wrong_files_are_refused(change, message, tmp_path, arrays):
    arrays = dict(arrays)
    change(arrays)
    np.savez(tmp_path / "model.npz", **arrays)
    with pytest.raises(polyhead.CheckpointError, match=message):
        polyhead.load(tmp_path / "model.npz")


@pytest.fixture(scope="module")
def arrays(model):
    return published(model)


def test_files_that_are_not_arrays_are_refused(tmp_path, arrays):
    file = tmp_path / "model.npz"
    with pytest.raises(FileNotFoundError):
        polyhead.load(file)
    file.write_bytes(b"PK no zip")
    with pytest.raises(polyhead.CheckpointError, match="model.npz is not an .npz file"):
        polyhead.load(file)
    np.savez_compressed(file, **arrays)
    with pytest.raises(polyhead.CheckpointError, match="not an uncompressed array"):
        polyhead.load(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00")
    with pytest.raises(polyhead.CheckpointError, match="model.npz is not an .npz file"):
        polyhead.load(file)
    np.savez(
        file, **{**arrays, f"{STACK}pair_transition/transition1//bias": np.full((2, 48), np.nan)}
    )
    with pytest.raises(polyhead.CheckpointError, match="finite"):
        polyhead.load(file)
    with pytest.raises(polyhead.CheckpointError, match="num_blocks|lacks|expected"):
        np.savez(file, **arrays)
        polyhead.load(file, num_blocks=3)


def reference_config(name, **sizes):
    """The configuration of AlphaFold's JAX modules, in float32, with sizes of ours."""
    from alphafold.model import config

    model = config.model_config(name).model
    model.calc_extended_ptm = False
    settings, c, heads = model.global_config, model.embeddings_and_evoformer, model.heads
    settings.bfloat16, settings.deterministic, settings.zero_init = False, True, False
    for way in ("outgoing", "incoming"):  # as in the published files
        c.evoformer[f"triangle_multiplication_{way}"].fuse_projection_weights = False
    if not sizes:
        return model
    c.evoformer_num_block, c.extra_msa_stack_num_block = 2, 1
    c.msa_channel, c.extra_msa_channel, c.pair_channel, c.seq_channel = 16, 8, 12, 20
    c.evoformer.msa_row_attention_with_pair_bias.num_head = SIZES["num_heads"]
    c.evoformer.msa_column_attention.num_head = SIZES["num_heads"]
    for way in ("starting", "ending"):
        c.evoformer[f"triangle_attention_{way}_node"].num_head = SIZES["num_pair_heads"]
    for way in ("outgoing", "incoming"):
        c.evoformer[f"triangle_multiplication_{way}"].num_intermediate_channel = 12
    c.evoformer.outer_product_mean.num_outer_channel = SIZES["outer_dim"]
    structure = heads.structure_module
    structure.num_channel, structure.num_head, structure.num_layer = 20, 3, 2
    structure.sidechain.num_channel, heads.predicted_lddt.num_channels = 12, 14
    return model


def reference_inputs(given):
    """The features of AlphaFold for inputs of ours of one protein, and those of the first pass."""
    residues, msa, extra = (given[name][0] for name in ("residues", "msa", "extra"))
    length = len(residues)
    features = dict(
        aatype=residues,
        residue_index=np.arange(length),
        seq_mask=np.ones(length, "float32"),
        target_feat=np.eye(22, dtype="float32")[residues + 1],
        msa_feat=msa,
        msa_mask=np.ones(msa.shape[:2], "float32"),
        extra_msa=extra[..., :23].argmax(-1),
        extra_has_deletion=extra[..., 23],
        extra_deletion_value=extra[..., 24],
        extra_msa_mask=np.ones(extra.shape[:2], "float32"),
        atom14_atom_exists=ATOM14_MASK[residues].astype("float32"),
        atom37_atom_exists=ATOM37_MASK[residues].astype("float32"),
        residx_atom37_to_atom14=ATOM37_TO_ATOM14[residues],
    )

    def previous(dim, pair_dim):
        sizes = dict(msa_first_row=dim, pair=(length, pair_dim), pos=(37, 3))
        shapes = {name: (length, *np.atleast_1d(size)) for name, size in sizes.items()}
        return {f"prev_{name}": np.zeros(shape, "float32") for name, shape in shapes.items()}

    return features, previous


def transformed(config):
    haiku = pytest.importorskip("haiku", reason="Haiku is not installed: EXTRAS=parity")
    from alphafold.model import modules

    return haiku.transform(
        lambda batch: modules.AlphaFold_noE(config)(
            batch, is_training=False, return_representations=True
        )
    )


@pytest.mark.slow
def test_predictions_match_the_reference(tmp_path):
    jax = pytest.importorskip("jax", reason="jax is not installed: EXTRAS=parity")
    pytest.importorskip("alphafold", reason="AlphaFold is not installed: EXTRAS=parity")
    theirs, given = transformed(reference_config("model_3_ptm", **SIZES)), inputs()
    features, previous = reference_inputs(given)
    state, key = previous(16, 12), jax.random.PRNGKey(0)
    random = np.random.default_rng(0)
    params = {
        scope: {
            name: (random.normal(0, 0.3, x.shape) + (name == "scale")).astype("float32")
            for name, x in arrays.items()
        }
        for scope, arrays in jax.eval_shape(theirs.init, key, {**features, "prev": state}).items()
    }
    named = {f"{s}//{name}": x for s, arrays in params.items() for name, x in arrays.items()}
    np.savez(tmp_path / "params.npz", **named)
    ours, apply = polyhead.load(tmp_path / "params.npz", num_iterations=2), jax.jit(theirs.apply)
    residues = features["aatype"]
    for passes in (1, 2):
        expected = apply(params, key, {**features, "prev": state})
        state = expected["prev"]
        found = ours(given, passes=passes)
        confidence = ours.predict_structure(given, passes)
        slots = ATOM37_TO_ATOM14[residues][..., None]
        positions = np.take_along_axis(array(found["positions"])[0], slots, axis=1)
        positions = positions * ATOM37_MASK[residues][..., None]
        for mine, wanted, tolerance in (
            (positions, expected["structure_module"]["final_atom_positions"], 1e-3),
            (found["states"][0], expected["representations"]["structure_module"], 1e-4),
            (found["lddt"][0], expected["predicted_lddt"]["logits"], 1e-4),
            (found["distances"][0], expected["distogram"]["logits"], 1e-4),
            (found["msa"][0], expected["masked_msa"]["logits"], 1e-4),
            (found["resolved"][0], expected["experimentally_resolved"]["logits"], 1e-4),
            (confidence["plddt"][0], expected["plddt"], 1e-3),
            (confidence["pae"][0], expected["predicted_aligned_error"], 1e-3),
            (confidence["ptm"][0], expected["ptm"], 1e-5),
        ):
            wanted = np.asarray(wanted)
            np.testing.assert_allclose(array(mine), wanted, atol=tolerance, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["model-3", "model-5-ptm"])
def test_published_models_have_the_tensors_of_the_reference(preset):
    jax = pytest.importorskip("jax", reason="jax is not installed: EXTRAS=parity")
    pytest.importorskip("alphafold", reason="AlphaFold is not installed: EXTRAS=parity")
    features, previous = reference_inputs(inputs())
    batch = {**features, "prev": previous(256, 128)}
    theirs = transformed(reference_config(preset.replace("-", "_")))
    expected = jax.eval_shape(theirs.init, jax.random.PRNGKey(0), batch)
    config = AlphaFold.PRESETS[preset]
    entries, _ = table.match(alphafold.rows(config, None), AlphaFold.shapes(config), {})
    assert {entry.name: table.shape_of(entry) for entry in entries} == {
        f"{scope}//{array}": x.shape
        for scope, arrays in expected.items()
        for array, x in arrays.items()
    }
