#!/usr/bin/env bash
# From the network of reproduce_small.sh to that of weights/: photos of more kinds, both classes labelled in each.
#
#   FIRST=runs/small/network.pth FACES=datasets/faces PERSONS=datasets/persons SCENES=datasets/scenes \
#   CLOTHING=datasets/clothing FLICKR=datasets/flickr ANIMALS=datasets/animals BOXES=datasets/boxes \
#   FACE_TEACHER=mobilenet0.25_Final.pth GROUND_TRUTH=datasets/wider/eval_tools/ground_truth \
#   bash results/reproduce_kinds.sh
#
#   FIRST           the network of reproduce_small.sh
#   FACES, PERSONS  its sets
#   SCENES          photos of COCO and Open Images, persons labelled (3,727 to train on, 341 to validate):
#                   github.com/brianhuster/human-dataset, commit 9d1b33dd
#   CLOTHING        photos of one large person, nothing labelled (2,098): github.com/bearpaw/clothing-co-parsing
#   FLICKR          everyday photos, nothing labelled (1,000): github.com/quantumnaan/sic_translator
#   ANIMALS         photos of animals, nothing labelled (4,607): images/ of
#                   github.com/mateusrafael4/Atividade_programacao_pose_estimation, commit dab5c740
#   BOXES           folder with faces.json, persons.json, scenes.json, clothing.json, flickr.json, animals.json: what
#                   two larger detectors found in the photos to train on, COCO files with scores, category 1 face, 2
#                   person. Ours were SCRFD-2.5G for faces (models/scrfd.onnx of the package scrfd 0.3.0, on each
#                   photo and on tiles of it; its weights are for research) and YOLOX-nano at 416 px for persons
#                   (Apache-2.0; yolox_nano.onnx in github.com/Kazuhito00/Image-Processing-Node-Editor)
#   FACE_TEACHER    one-class parent, in weights/ of github.com/biubug6/Pytorch_Retinaface
#   GROUND_TRUTH    ground_truth/ of WIDER FACE's eval_tools.zip
#   OUT, PROCESSES, TRAIN_OPTIONS, PYTHON    as in reproduce_small.sh (OUT: runs/kinds)
#
# Started again, it goes on where it was stopped. Two cores (AMD EPYC) train 25 photos of 416x416 a second, with the
# teacher; all runs together take about five hours there, but for run28, which takes six, and run38, which takes nine; an
# H200 did them in 6 minutes and, beside another run, in 10.
#
# The network of weights/ was trained by these runs in earlier versions of the scripts, each run in one process and
# some beside each other, with the seeds in another order; its lists followed a few more rules (bodies below a face
# without a person's box, groups of persons in one box and faces below 8 pixels are ignored). run28 and run38 saw 900 of
# the photos of clothing and 1,400 of those of animals, all made smaller, and run38 was stopped in epoch 19 of 21; run29
# and run30 were stopped after 11 of 20 and 5 of 11 epochs of their cosine. This recipe as a whole has not been run.
set -euo pipefail
# shellcheck source=results/steps.sh
source "$(dirname "$0")/steps.sh"

need FIRST "" "the network of reproduce_small.sh"
for name in FACES PERSONS SCENES CLOTHING FLICKR ANIMALS; do
    need "$name" train/wider_train_gt.txt "photos"
done
need BOXES scenes.json "what larger detectors found"
need FACE_TEACHER "" "the one-class parent"
need GROUND_TRUTH "" "WIDER FACE's ground truth"
OUT=${OUT:-runs/kinds}
share_out

# found NAME LIST CLASS BOX IGNORE OUTPUT: adds boxes of a class from $BOXES/NAME.json.
found() {
    local category=1
    [[ $3 == face ]] || category=2
    "$PYTHON" prep_data.py pseudo_label "$2" --classes "$3" --detections "$BOXES/$1.json" \
        --category "$category=$3" --confidence_threshold "$4" --ignore_from "$5" --output "$6"
}

# both_classes NAME SET [PERSON FACE]: the list with both classes, $OUT/lists/NAME/both.txt. PERSON and FACE are two
# scores each: from which a box counts, and from which it is ignored; 1 where the truth has all boxes that count.
both_classes() {
    local name=$1 persons=(${3:-0.5 0.2}) faces=(${4:-0.5 0.15})
    mkdir -p "$OUT/lists/$name/persons"
    found "$name" "$2/train/wider_train_gt.txt" person "${persons[@]}" "$OUT/lists/$name/persons/list.txt"
    found "$name" "$OUT/lists/$name/persons/list.txt" face "${faces[@]}" "$OUT/lists/$name/both.txt"
}

step list_faces both_classes faces "$FACES" "0.5 0.2" "1 0.5"
step list_persons both_classes persons "$PERSONS" "1 0.5"
step list_scenes both_classes scenes "$SCENES" "1 0.5"
step list_clothing both_classes clothing "$CLOTHING"
step list_flickr both_classes flickr "$FLICKR"
step list_animals both_classes animals "$ANIMALS" "0.6 0.3" "0.7 0.3"

# learn_all NAME OPTIONS...: a run on all lists, its network in $OUT/NAME.
learn_all() {
    local name=$1
    shift
    step "$name" train "$OUT/$name" --num_workers "$workers" \
        --training_dataset "$OUT"/lists/{faces,scenes,persons,clothing,flickr,animals}/both.txt \
        --image_size 416 --windows 0.5 2 --aspect 1.4 --min_box 6 --batch_size 16 --freeze_bn --amp \
        --loc_loss giou --mine_batch --balance --optimizer adamw --shared_lr_factor 0.5 --clip_grad 20 "$@"
}

shares=(--repeat 0.5 0.25 0.3 0.07 0.15 0.07)
# The parent says what a face is where no box is.
faces_kept=(--teacher "$FACE_TEACHER" --trust_teacher face)

learn_all run17 "${shares[@]}" --weights "$FIRST" --lr 6e-4 --warmup 50 --epochs 6 --ema 0.998
learn_all run18 "${shares[@]}" --weights "$(last run17)" --lr 4e-4 --warmup 20 --schedule cosine --epochs 2 --ema 0.98
learn_all run19 "${shares[@]}" --weights "$(last run17)" --lr 4e-4 --warmup 20 --schedule cosine --epochs 2 --ema 0.98 \
    "${faces_kept[@]}" --distil 4 1
mix mean19 "$(last run18)" "$(last run19)"
learn_all run20 "${shares[@]}" --weights "$OUT/mean19.pth" --lr 6e-4 --warmup 50 --epochs 13 --ema 0.999 \
    "${faces_kept[@]}" --distil 2 1 --seed 21
learn_all run21 "${shares[@]}" --weights "$OUT/mean19.pth" --lr 6e-4 --warmup 50 --epochs 13 --ema 0.999 \
    "${faces_kept[@]}" --distil 1 0.5 --seed 22
mix mean21 "$(last run20)" "$(last run21)"

# Towards persons, in smaller and smaller steps: each time one run with the parent's faces and one without.
# closer NUMBER START SEED EPOCHS RATE DISTIL SCENES: runs NUMBER and NUMBER + 1, and their average.
closer() {
    local options=(--repeat 0.3 "$7" 0.3 0.07 0.15 0.07 --weights "$OUT/$2.pth" --lr "$5" --warmup 20
        --schedule cosine --epochs "$4" --ema 0.99)
    # shellcheck disable=SC2086 # two weights
    learn_all "run$1" "${options[@]}" --seed "$3" "${faces_kept[@]}" --distil $6
    learn_all "run$(($1 + 1))" "${options[@]}" --seed "$(($3 + 1))"
    mix "mean$(($1 + 1))" "$(last "run$1")" "$(last "run$(($1 + 1))")"
}

closer 22 mean21 31 3 5e-4 "1 0.5" 0.4
closer 24 mean23 41 3 6e-4 "0.5 0.25" 0.5
closer 26 mean25 51 2 6e-4 "0.5 0.25" 0.5

# Long, with large batches, for a GPU: 40,000 photos an epoch.
large=(--batch_size 128 --lr 1.5e-3 --schedule cosine --ema 0.998 "${faces_kept[@]}")
learn_all run28 "${large[@]}" --repeat 6.7 4.6 3.3 0.95 2.8 0.6 --weights "$OUT/mean27.pth" --warmup 300 --epochs 13 \
    --distil 0.5 0.25 --seed 71
mix mean28 "$(last run28)" "$(last run28)" "$OUT/mean27.pth"
slowly=(--repeat 0.35 0.5 0.3 0.07 0.15 0.1 --weights "$OUT/mean28.pth" --lr 3e-4 --warmup 20 --schedule cosine --ema 0.998)
learn_all run29 "${slowly[@]}" --epochs 11 --seed 101
learn_all run30 "${slowly[@]}" --epochs 5 "${faces_kept[@]}" --distil 0.5 0.25 --seed 102
mix mean30 "$(last run29)" "$(last run30)" "$OUT/mean28.pth"

# More scenes, batches of 32; each time the mean of the runs, the parent's faces twice in it, and of the start.
# more NUMBER START SEED EPOCHS RATE: runs NUMBER and NUMBER + 1.
more() {
    local options=(--repeat 0.35 0.7 0.3 0.07 0.2 0.1 --weights "$OUT/$2.pth" --batch_size 32 --lr "$5" --warmup 20
        --schedule cosine --epochs "$4" --ema 0.998)
    learn_all "run$1" "${options[@]}" --seed "$3"
    learn_all "run$(($1 + 1))" "${options[@]}" --seed "$(($3 + 1))" "${faces_kept[@]}" --distil 0.5 0.25
}

more 31 mean30 111 13 5e-4
mix mean32 "$(last run31)" "$(last run32)"
more 33 mean32 121 6 5e-4
mix mean34 "$(last run33)" "$(last run34)" "$(last run31)" "$(last run32)" "$(last run32)" "$OUT/mean30.pth"
more 35 mean34 111 20 6e-4 # ours were stopped in their epochs 20 and 19, at a rate near zero
mix mean36 "$(last run35)" "$(last run36)" "$(last run36)" "$OUT/mean34.pth"
learn_all run38 "${large[@]}" --repeat 5.9 5.4 2.9 0.84 2.5 0.53 --weights "$OUT/mean36.pth" --warmup 200 --epochs 21 \
    --distil 0.25 0.1 --seed 122
mix lowered "$(last run38)" --lower_faces 0.8 --lower_large_faces 1.5 --lower_persons 0.8

# Where boxes end: the box head alone, on the boxes that people drew; five minutes on two cores.
step run41 train "$OUT/run41" --num_workers "$workers" --weights "$OUT/lowered.pth" \
    --training_dataset {"$FACES","$SCENES","$PERSONS"}/train/wider_train_gt.txt --repeat 2 2 2 \
    --image_size 416 --windows 0.5 2 --aspect 1.4 --min_box 6 --batch_size 32 --amp \
    --train_only BboxHead --loc_by_score --loc_loss giou --optimizer adamw --lr 1e-3 --warmup 50 --clip_grad 20 \
    --schedule cosine --epochs 2 --ema 0.99 --seed 141
mix network "$(last run41)"
export FACES PERSONS GROUND_TRUTH PYTHON
step score bash results/score.sh "$OUT/network.pth" "$OUT/score"
echo "$OUT/network.pth is the network; the numbers above go to results/accuracy.csv"
