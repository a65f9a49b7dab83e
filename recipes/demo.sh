# `make demo` runs this: the whole job in a few minutes on 2 cores.
# Trains a small Transformer on the sample corpus, scores it on held-out sentences,
# exports it, and queries the export through TensorFlow Serving's C++ loader.
set -euo pipefail
run=$1
polyhead=${POLYHEAD:-polyhead}
python=${PYTHON:-python}
start=$SECONDS

echo "== train: English to German, from scratch"
"$polyhead" train translation --data sample --restart --out "$run" \
    --vocab-size 500 --tokens 2048 --buckets 2 --dropout 0.1 --warmup 200 --epochs 8

echo "== evaluate: held-out sentences"
"$polyhead" evaluate "$run"

echo "== export, and the same translations through the server's loader"
sentences=("The old farmer gives the small child a red apple."
           "Today the cat must sleep under the table because the dog has found a ball.")
version=$("$polyhead" export "$run" "$run/export")
echo "$version"
"$polyhead" translate "$run" "${sentences[@]}" | tee "$run/predicted.txt"
"$python" -m polyhead.serving.loader "$version" "${sentences[@]}" | tee "$run/served.json"
"$python" - "$run" <<'END'
import json, sys
predicted = open(f"{sys.argv[1]}/predicted.txt", encoding="utf-8").read().splitlines()
served = json.load(open(f"{sys.argv[1]}/served.json", encoding="utf-8"))["text"]
sys.exit(None if served == predicted else "the export's translations are not the model's")
END
echo "== done in $((SECONDS - start)) s: curve in $run/curve.png, server files in $run/export"
