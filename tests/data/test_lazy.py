import subprocess
import sys

import pytest

import polyhead.data


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_names_are_imported_on_first_use():
    run(
        "import sys\n"
        "import polyhead.files, polyhead.data.tokenizers as tokenizers\n"
        "assert tokenizers.load('nowhere') is None\n"
        "heavy = {'tensorflow', 'tensorflow_text', 'sentencepiece', 'tokenizers', 'numpy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    assert set(polyhead.data.__all__) <= set(dir(polyhead.data))
    for name in polyhead.data.__all__:
        assert getattr(polyhead.data, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'polyhead.data' has no attribute 'Nothing'"):
        _ = polyhead.data.Nothing


@pytest.mark.slow
def test_images_do_not_need_text_libraries_and_text_names_the_missing_one(tmp_path):
    run(f"""
import sys
for name in ("tensorflow_text", "sentencepiece", "tokenizers"):
    sys.modules[name] = None
import numpy as np
from polyhead.data import BytePairs, LabelledImages, image_batches
from polyhead.zoo import ViT
images = LabelledImages(np.zeros((4, 8, 8, 3), "uint8"), [0, 1, 0, 1], ("a", "b"))
sizes = dict(num_layers=1, dim=16, num_heads=2, image_size=(8, 8), patch_size=4, num_classes=2)
model = ViT.preset("ti-16", **sizes)
model.compile()
model.fit(image_batches(images, (8, 8), 4, augment="strong", mix=True), verbose=0)
model.export({str(tmp_path)!r})
ids = {{chr(i): i for i in (*range(33, 127), *range(161, 173), *range(174, 324))}}
ids = {{piece: i for i, piece in enumerate(ids)}}
try:
    BytePairs(ids, [], {{"<|endoftext|>": 256}}).encode(["a"])
except ImportError as error:
    assert "no wheel for Windows" in str(error), error
else:
    raise AssertionError("text was tokenized")
""")
