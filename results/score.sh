#!/usr/bin/env bash
# Scores a network on the validation photos of reproduce_small.sh: the numbers of a row of accuracy.csv.
#
#   FACES=faces PERSONS=persons GROUND_TRUTH=eval_tools/ground_truth bash results/score.sh FILE [FOLDER]
#
#   FILE          checkpoint or ONNX file
#   FOLDER        where detections and numbers go (default: runs/score/NAME OF FILE)
#   FACES         data set with faces labelled, val/wider_val_gt.txt in it
#   PERSONS       data set with persons labelled, laid out alike; empty for a network that knows faces alone
#   GROUND_TRUTH  ground_truth/ of WIDER FACE's eval_tools.zip
#   PYTHON        interpreter (default: that of .venv, else python3)
set -euo pipefail
# shellcheck source=results/steps.sh
source "$(dirname "$0")/steps.sh"

MODEL=${1:-}
OUT=${2:-runs/score/$(basename "${MODEL%.*}")}
need MODEL "" "a checkpoint as the first argument"
need FACES val/wider_val_gt.txt "a data set with faces labelled"
need GROUND_TRUTH "" "WIDER FACE's ground truth"
[[ -z ${PERSONS:-} ]] || need PERSONS val/wider_val_gt.txt "a data set with persons labelled"

# dump NAME COORDINATES DATA_SET
dump() {
    "$PYTHON" test_widerface_personface.py --trained_model "$MODEL" --dataset "$2" --save_folder "$OUT/$1" \
        --dataset_list "$3/val/wider_val_gt.txt" --resume
}

dump pixels widerface "$FACES"
"$PYTHON" widerface_evaluate/evaluation.py --pred "$OUT/pixels" --gt "$GROUND_TRUTH" \
    --image_list "$FACES/val/wider_val_gt.txt" --json "$OUT/pixels.json"
for data_set in FACES ${PERSONS:+PERSONS}; do
    dump "$data_set" openimages "${!data_set}"
    "$PYTHON" wider_openimagespersonface_evaluate/evaluation.py --pred "$OUT/$data_set" \
        --gt "${!data_set}/val/wider_val_gt.txt" --json "$OUT/$data_set.json"
done
"$PYTHON" results/tables.py --measured "$OUT"/*.json
