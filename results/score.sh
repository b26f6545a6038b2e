#!/usr/bin/env bash
# Scores a network on the validation photos of reproduce_small.sh and reproduce_kinds.sh: the numbers of a row of
# accuracy.csv.
#
#   FACES=faces PERSONS=persons SCENES=scenes GROUND_TRUTH=eval_tools/ground_truth bash results/score.sh FILE [FOLDER]
#
#   FILE          checkpoint or ONNX file
#   FOLDER        where detections and numbers go (default: runs/score/NAME OF FILE)
#   FACES         data set with faces labelled, val/wider_val_gt.txt in it
#   PERSONS       data set with persons labelled, laid out alike; empty for a network that knows faces alone
#   SCENES        another data set with persons labelled, or empty
#   SCALES        sizes at which a photo is looked at: 1, the protocol, or auto, as detect.py does (default: 1)
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
for name in PERSONS SCENES; do
    [[ -z ${!name:-} ]] || need "$name" val/wider_val_gt.txt "a data set with persons labelled"
done

# dump NAME COORDINATES DATA_SET
dump() {
    "$PYTHON" test_widerface_personface.py --trained_model "$MODEL" --dataset "$2" --save_folder "$OUT/$1" \
        --dataset_list "$3/val/wider_val_gt.txt" --scales "${SCALES:-1}" --resume
}

dump pixels widerface "$FACES"
"$PYTHON" widerface_evaluate/evaluation.py --pred "$OUT/pixels" --gt "$GROUND_TRUTH" \
    --image_list "$FACES/val/wider_val_gt.txt" --json "$OUT/pixels.json"
for data_set in FACES ${PERSONS:+PERSONS} ${SCENES:+SCENES}; do
    dump "$data_set" openimages "${!data_set}"
    "$PYTHON" wider_openimagespersonface_evaluate/evaluation.py --pred "$OUT/$data_set" \
        --gt "${!data_set}/val/wider_val_gt.txt" --json "$OUT/$data_set.json"
done
"$PYTHON" results/tables.py --measured "$OUT"/*.json
