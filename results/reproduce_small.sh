#!/usr/bin/env bash
# From two sets of photos to the network of weights/ and its numbers, on two CPU cores or a GPU.
#
#   FACES=datasets/faces PERSONS=datasets/persons GROUND_TRUTH=datasets/wider/eval_tools/ground_truth \
#   FACE_TEACHER=mobilenet0.25_Final.pth PERSON_TEACHER=mobilenet0.25_2cls6anchors_130324_epoch_150.pth \
#   bash results/reproduce_small.sh
#
#   FACES           half of WIDER FACE val's photos, faces labelled (1,492 to train on, 135 to validate)
#   PERSONS         photos of 640x640 with persons labelled (1,561 to train on, 148 to validate)
#   GROUND_TRUTH    ground_truth/ of WIDER FACE's eval_tools.zip
#   FACE_TEACHER    one-class parent, in weights/ of github.com/biubug6/Pytorch_Retinaface
#   PERSON_TEACHER  published two-class network, in weights/ of github.com/NN-RTK/Pytorch_Retinaface_2cls
#   OUT             where everything goes (default: runs/small)
#   PROCESSES       training processes (default: 2, with a GPU 1)
#   TRAIN_OPTIONS   more options of train_changeclass.py, e.g. "--epochs 2"
#   PYTHON          interpreter (default: that of .venv, else python3)
#
# A set is a folder with train/wider_train_gt.txt, val/wider_val_gt.txt, and a dataset.json beside each that
# names the class that is labelled and the folder of the images. prep_data.py lays it out:
#
#   python3 prep_data.py unpack WIDER_val.zip wider_face_split.zip eval_tools.zip --save_folder datasets/wider
#   python3 prep_data.py widerface datasets/wider/wider_face_split/wider_face_val_bbx_gt.txt \
#       --images datasets/wider/WIDER_val/images --output datasets/wider/gt.txt
#   python3 prep_data.py split datasets/wider/gt.txt --save_folder datasets/faces
#   python3 prep_data.py import labels/ --images photos/ --category 0=person --output datasets/all/gt.txt
#   python3 prep_data.py split datasets/all/gt.txt --save_folder datasets/persons
#
# Started again, it goes on where it was stopped. Two cores (AMD EPYC) train 15 photos of 512x512 a second: an
# epoch of 313 steps takes 3.6 minutes, all runs together 3 hours. Disk: below 1 GB.
set -euo pipefail
# shellcheck source=results/steps.sh
source "$(dirname "$0")/steps.sh"

need FACES train/wider_train_gt.txt "photos with faces labelled"
need PERSONS train/wider_train_gt.txt "photos with persons labelled"
need GROUND_TRUTH "" "WIDER FACE's ground truth"
need FACE_TEACHER "" "the one-class parent"
need PERSON_TEACHER "" "the published two-class network"
OUT=${OUT:-runs/small}
share_out

# Without boxes: what a face is, the parent alone says.
names_only() {
    grep '^#' "$FACES/train/wider_train_gt.txt" > "$FACES/train/names_only.txt"
}

# Photos where the median person is smaller than 32x32 of 640x640 pixels, to be seen more often.
small_persons() {
    "$PYTHON" - "$PERSONS/train/wider_train_gt.txt" "$PERSONS/train/small_persons.txt" << 'END'
import sys

import numpy as np

from data.annotations import iter_annotations, write_annotations

areas = ((a, a.boxes_xywh_norm[:, 2:].prod(1)) for a in iter_annotations(sys.argv[1]) if len(a))
write_annotations(sys.argv[2], (a for a, area in areas if np.median(area) < (32 / 640) ** 2))
END
}

# learn NAME OPTIONS...: a run on the three lists with both teachers, its network in $OUT/NAME.
learn() {
    local name=$1
    shift
    step "$name" train "$OUT/$name" --num_workers "$workers" \
        --training_dataset "$FACES/train/names_only.txt" "$PERSONS/train/wider_train_gt.txt" \
        "$PERSONS/train/small_persons.txt" --image_size 512 --zoom_out 1.5 --batch_size 10 --freeze_bn --amp \
        --teacher "$FACE_TEACHER" "$PERSON_TEACHER" --optimizer adamw --clip_grad 50 --schedule cosine \
        --val_dataset "$FACES/val/wider_val_gt.txt" "$PERSONS/val/wider_val_gt.txt" "$@"
}

# The tail of a run: faces weighted more, small steps.
tail=(--distil 8 0.5 --shared_lr_factor 0.7 --warmup 30)
parent=(--parent "$FACE_TEACHER")
# Layers that bring most of the faces back for the persons they cost.
layers=(--layers body.stage2)
# Of persons, too, what the teacher says goes before the background of the labels.
both=(--trust_teacher face person)

step names_only names_only
step small_persons small_persons
learn run4 --repeat 0.8 1 5 --init_from_face "$FACE_TEACHER" --distil 3 0.75 --lr 1.2e-3 --shared_lr_factor 0.5 \
    --warmup 100 --epochs 22 --ema 0.998 --val_every 4
learn run5 --repeat 2 0.5 2 --weights "$(last run4)" "${tail[@]}" --lr 5e-4 --epochs 3 --ema 0.995 --val_every 3
mix run5_mixed "$(last run5)" "${parent[@]}" --share 0.3
learn run6 --repeat 1.5 0.7 3 --weights "$OUT/run5_mixed.pth" "${tail[@]}" \
    --lr 3e-4 --epochs 2 --ema 0.99 --val_every 2
mix run6_mixed "$(last run6)" "${parent[@]}" --share 0.25
learn run7 --repeat 1.5 0.7 3 --weights "$OUT/run6_mixed.pth" "${tail[@]}" \
    --lr 3e-4 --epochs 2 --ema 0.99 --val_every 2
mix run7_mixed "$(last run7)" "${parent[@]}" --share 0.05

# From here on boxes are compared by GIoU, and networks are averaged.
learn run8 --repeat 1.5 0.7 3 --weights "$OUT/run7_mixed.pth" "${tail[@]}" --loc_loss giou \
    --lr 3e-4 --epochs 2 --ema 0.99 --val_every 2
learn run13 --repeat 1.5 0.7 3 --weights "$OUT/run7_mixed.pth" "${tail[@]}" --loc_loss giou --distil 8 1 "${both[@]}" \
    --lr 3e-4 --epochs 2 --ema 0.99 --val_every 2
mix mean13 "$(last run8)" "$(last run13)"
learn run15 --repeat 1.2 0.8 5 --weights "$OUT/mean13.pth" "${tail[@]}" --loc_loss giou --distil 12 0.5 \
    --lr 3e-4 --epochs 8 --ema 0.998 --val_every 4
mix mean15 "$(last run15)" "$OUT/mean13.pth"
mix start16 "$OUT/mean15.pth" "${parent[@]}" --share 0.15 "${layers[@]}"
learn run16 --repeat 1.2 0.8 5 --weights "$OUT/start16.pth" "${tail[@]}" --loc_loss giou --distil 12 1 "${both[@]}" \
    --lr 2.5e-4 --epochs 3 --ema 0.995 --val_every 3
mix network "$OUT/mean15.pth" "$(last run16)" "${parent[@]}" --share 0.07 "${layers[@]}"
export FACES PERSONS GROUND_TRUTH PYTHON
step score bash results/score.sh "$OUT/network.pth" "$OUT/score"
echo "$OUT/network.pth is the network; the numbers above go to results/accuracy.csv"
