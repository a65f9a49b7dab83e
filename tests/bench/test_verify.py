"""`make verify`, rehearsed: logical devices, a `docker` of our own, and a folder as the hub."""

import os
import subprocess
import sys

import pytest

from tests.test_package import ROOT


def verify(folder, *arguments, **environment):
    """Runs `bench/verify.py` in a folder; returns its status and its lines."""
    done = subprocess.run(
        [sys.executable, ROOT / "bench" / "verify.py", *arguments],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder), **environment},
        capture_output=True,
        text=True,
    )
    assert done.stdout, done.stderr
    return done.returncode, done.stdout.splitlines()


@pytest.fixture
def fake_docker(tmp_path):
    """A folder for the path, with a `docker` that serves exports itself."""
    path = tmp_path / "bin" / "docker"
    path.parent.mkdir()
    script = ROOT / "tests" / "bench" / "fake_docker.py"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
    path.chmod(0o755)
    return f"{path.parent}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture
def hub(tmp_path):
    """A folder with random models of the names on the hub, by Hugging Face's library."""
    torch = pytest.importorskip("torch", reason="torch is not installed: EXTRAS=parity")
    import transformers as t

    torch.manual_seed(0)
    small = dict(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
        intermediate_size=48,
    )  # fmt: skip
    models = {
        "distilbert/distilgpt2": t.GPT2LMHeadModel(
            t.GPT2Config(vocab_size=50, n_positions=32, n_embd=32, n_layer=2, n_head=4,
                         bos_token_id=0, eos_token_id=0)
        ),
        "Helsinki-NLP/opus-mt-en-de": t.MarianMTModel(
            t.MarianConfig(vocab_size=50, d_model=32, encoder_layers=1, decoder_layers=1,
                           encoder_ffn_dim=48, decoder_ffn_dim=48, encoder_attention_heads=4,
                           decoder_attention_heads=4, max_position_embeddings=64,
                           activation_function="swish", scale_embedding=True,
                           pad_token_id=49, decoder_start_token_id=49)
        ),
        "google-t5/t5-small": t.T5ForConditionalGeneration(
            t.T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4,
                       decoder_start_token_id=0)
        ),
        "google/flan-t5-small": t.T5ForConditionalGeneration(
            t.T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=3,
                       feed_forward_proj="gated-gelu", tie_word_embeddings=False,
                       decoder_start_token_id=0)
        ),
        "facebook/bart-base": t.BartForConditionalGeneration(
            t.BartConfig(vocab_size=50, d_model=32, encoder_layers=1, decoder_layers=1,
                         encoder_ffn_dim=48, decoder_ffn_dim=48, encoder_attention_heads=4,
                         decoder_attention_heads=4, max_position_embeddings=64)
        ),
        "WinKawaks/vit-tiny-patch16-224": t.ViTForImageClassification(
            t.ViTConfig(image_size=32, patch_size=8, num_hidden_layers=1, hidden_size=32,
                        intermediate_size=48, num_attention_heads=4, num_labels=5)
        ),
        "google-bert/bert-base-uncased": t.BertForMaskedLM(t.BertConfig(**small)),
        "distilbert/distilbert-base-uncased": t.DistilBertForMaskedLM(
            t.DistilBertConfig(vocab_size=50, dim=32, n_layers=1, n_heads=4, hidden_dim=48)
        ),
        "distilbert/distilroberta-base": t.RobertaForMaskedLM(
            t.RobertaConfig(**small, type_vocab_size=1, max_position_embeddings=34)
        ),
        "answerdotai/ModernBERT-base": t.ModernBertForMaskedLM(
            t.ModernBertConfig(**small, pad_token_id=0, bos_token_id=1, eos_token_id=2,
                               cls_token_id=1, sep_token_id=2)
        ),
        "facebook/esm2_t6_8M_UR50D": t.EsmForMaskedLM(
            t.EsmConfig(**{**small, "vocab_size": 33}, position_embedding_type="rotary",
                        token_dropout=True, emb_layer_norm_before=False, pad_token_id=1,
                        mask_token_id=32)
        ),
    }  # fmt: skip
    for name, model in models.items():
        if isinstance(model, t.MarianMTModel):
            model.generation_config.update(
                bad_words_ids=[[49]], max_length=24, num_beams=4, renormalize_logits=True
            )
        model.save_pretrained(tmp_path / "hub" / name)
    return tmp_path / "hub"


@pytest.mark.slow
def test_every_check_passes_where_it_can_run(tmp_path, fake_docker, hub):
    status, lines = verify(tmp_path, "--devices", "2", "--hub", hub, PATH=fake_docker)
    outcomes = {line.split(":")[0]: line for line in lines if line[:4] in ("pass", "fail", "skip")}
    skipped = "skipped hub, timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    assert status == 0, "\n".join(lines)
    assert set(outcomes) == {
        *("pass    devices", "pass    devices, weights", "pass    devices, throughput"),
        *("pass    docker", "pass    docker, Transformer", "pass    docker, GPT"),
        *("pass    docker, ViT", "pass    docker, BERT", "pass    hub, distilbert/distilgpt2"),
        *("pass    docker, T5", "pass    docker, BART", "pass    hub, google-t5/t5-small"),
        *("pass    hub, google/flan-t5-small", "pass    hub, facebook/bart-base"),
        *("pass    hub, Helsinki-NLP/opus-mt-en-de", "pass    hub, WinKawaks/vit-tiny-patch16-224"),
        *("pass    hub, google-bert/bert-base-uncased", "pass    hub, answerdotai/ModernBERT-base"),
        "pass    hub, facebook/esm2_t6_8M_UR50D",
        *(
            f"pass    hub, distilbert/{name}"
            for name in ("distilbert-base-uncased", "distilroberta-base")
        ),
        skipped,
    }
    assert not list((tmp_path / "runs").iterdir()) and not list(tmp_path.glob("ports-*"))


@pytest.mark.slow
def test_what_cannot_run_is_skipped_with_the_reason(tmp_path):
    status, lines = verify(tmp_path, "--hub", tmp_path, PATH="")
    assert status == 0, "\n".join(lines)
    assert "skipped devices: there is no GPU (--devices 2 rehearses it on the CPU)" in lines
    assert "skipped docker: docker is not on the path" in lines
    assert sum(line.startswith("skipped hub, ") for line in lines) == 12


@pytest.mark.slow
def test_a_failure_is_printed_with_its_reason_and_sets_the_status(tmp_path, hub):
    (hub / "distilbert" / "distilgpt2" / "model.safetensors").unlink()
    status, lines = verify(tmp_path, "hub", "--hub", hub)
    assert status == 1
    [failed] = [line for line in lines if line.startswith("fail")]
    assert failed.startswith("fail    hub, distilbert/distilgpt2: ")
    assert "has no model.safetensors" in failed
