"""Downloads Multi30k (Elliott et al. 2016), with checksums."""

from pathlib import Path

import pooch
import requests

ADDRESS = "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/"

# SHA-256 of the files there; "raw" is the original text, "tok" lowercased, normalized, tokenized.
MULTI30K = {
    "raw/train.en.gz": "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f",
    "raw/train.de.gz": "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6",
    "raw/val.en.gz": "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28",
    "raw/val.de.gz": "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a",
    "raw/test_2016_flickr.en.gz": "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9",
    "raw/test_2016_flickr.de.gz": "9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8",
    "tok/train.lc.norm.tok.en": "08925f8e0572bcd5a006702fc5fe20e2d77c6917d4eebd576fc20de6693c2119",
    "tok/train.lc.norm.tok.de": "cb5a23529b65ec2061f1dc446192a9c37382b63cc75f81a0be59d34894b3a505",
    "tok/val.lc.norm.tok.en": "46573ce391ae227f1c72f873392436a20ef18e0a6d518098cfbd70b77c8572ec",
    "tok/val.lc.norm.tok.de": "97232bd273eceb7207f689527386a97e4be2616b18ada47576bdaf96c8ae1f00",
    "tok/test_2016_flickr.lc.norm.tok.en": "5b7f32627cf99eced828311b955dae9800bb52bc8b91cf8b6526829e605b29d2",
    "tok/test_2016_flickr.lc.norm.tok.de": "c6a33d39d48f9f510de147651316cd9d918e09ad0219df734a2f16b6baccacc4",
}


def download_multi30k(folder, address=ADDRESS, files=MULTI30K, say=print):
    """Downloads Multi30k's English and German train, val and test_2016_flickr to ``folder``.

    For research use: CC BY-NC-SA 4.0 per the paper's release. Complete files are kept; others
    appear only after their checksum is verified.

    Raises:
        ConnectionError: there is no network, or a file does not exist; the message names the
            address.
        ValueError: a file's checksum differs; the message names it.
    """
    pooch.get_logger().setLevel("WARNING")
    for name, checksum in files.items():
        say(f"{address}{name}")
        try:
            pooch.retrieve(address + name, f"sha256:{checksum}", fname=Path(name).name, path=folder)
        except requests.RequestException as error:
            raise ConnectionError(f"cannot download {address}{name}: {error}") from None
        except ValueError as error:
            raise ValueError(f"{address}{name} has changed: {error}") from None
