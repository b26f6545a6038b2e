#!/usr/bin/env bash
# From the published archives of WIDER FACE, Open Images and MIAP to a network trained on all of them.
#
#   ARCHIVES=downloads FACE_TEACHER=mobilenet0.25_Final.pth \
#   PERSON_TEACHER=mobilenet0.25_2cls6anchors_130324_epoch_150.pth bash results/reproduce_full.sh
#
#   ARCHIVES        folder with WIDER_train.zip, WIDER_val.zip, wider_face_split.zip and eval_tools.zip, which
#                   a person has to fetch: python3 prep_data.py unpack says where
#   FACE_TEACHER    one-class parent, in weights/ of github.com/biubug6/Pytorch_Retinaface
#   PERSON_TEACHER  published two-class network, in weights/ of github.com/NN-RTK/Pytorch_Retinaface_2cls
#   OUT             where everything goes (default: runs/full)
#   PROCESSES       processes that label, train and detect (default: one a GPU, without GPU 1)
#   LIMIT           at most so many images of each split of Open Images (default: all)
#   VAL_SHARE       share of the training images that choose the network (default: 0.02)
#   TRAIN_OPTIONS   more options of train_changeclass.py, e.g. "--epochs 2 --image_size 320"
#   BASE_URL        a mirror of Open Images' servers
#   PYTHON          interpreter (default: that of .venv, else python3)
#
# Started again, it goes on where it was stopped; $OUT/done holds a file a step with its seconds.
#
# What it takes. Nobody has run it at full size; a slice of 38 generated images runs through in 77 s
# (tests/e2e/test_reproduce.py). The rest is counted from rates, for N images of Open Images: the published
# validation list has 18 % of the validation images, so N is about 300,000 of 1.74 million.
#
#   step         rate, and where it was measured                                         N = 300,000
#   download     0.3 MB an image (training set: 513 GB), at 100 Mbit/s 40 a second       2 h
#   openimages   0.7 us a row, 14.6 million rows; benchmarks/results/prep_data.md         10 s
#   label        39 ms an image of 1024x768; benchmarks/results/detection.md             6.5 h, both teachers
#   split, check 4.3 ms an image and core; benchmarks/results/training.md                11 min
#   train        15 images of 512x512 a second with both teachers (the run of weights/), 5.4 days
#                so 9.5 of 640x640; 40 epochs of 0.2 N + 4 x 12,600 images
#   dump         39 ms an image, 3,226 and about 7,600 of them                           7 min
#   evaluate     benchmarks/results/evaluation.md                                         4 s
#
# All on two cores (AMD EPYC). Estimates, as no GPU was at hand: one GPU and 16 cores train in 1 to 2 hours,
# held back by reading and augmenting, 88 images a second and core (benchmarks/results/training.md). A step of
# training keeps 53 MB an image (counted on the CPU, bfloat16, 640x640), so 64 images and the teachers take
# some 6 GB. Disk: 0.3 MB x N, 4 GB of WIDER FACE, 3 GB of tables and lists: 100 GB.
set -euo pipefail
# shellcheck source=results/steps.sh
source "$(dirname "$0")/steps.sh"

for archive in WIDER_train WIDER_val wider_face_split eval_tools; do
    need ARCHIVES "$archive.zip" "the four archives of WIDER FACE"
done
need FACE_TEACHER "" "the one-class parent"
need PERSON_TEACHER "" "the published two-class network"
OUT=${OUT:-runs/full}
VAL_SHARE=${VAL_SHARE:-0.02}
PROCESSES=${PROCESSES:-$(gpus)}
((PROCESSES)) || PROCESSES=1

open_images=$OUT/open_images
images=$open_images/train/images
wider=$OUT/wider
lists=$OUT/lists

prep() {
    "$PYTHON" prep_data.py "$@"
}

# download SPLIT WHAT_ELSE
download() {
    prep download --split "$1" "$2" --save_folder "$open_images" ${LIMIT:+--limit "$LIMIT"} \
        ${BASE_URL:+--base_url "$BASE_URL"}
}

# label IN OUT CLASS TEACHER: adds the boxes that the teacher finds.
label() {
    together prep_data.py pseudo_label "$lists/$1/wider_train_gt.txt" --images "$images" --classes "$3" \
        --trained_model "$4" --output "$lists/$2/wider_train_gt.txt"
}

# dump COORDINATES IMAGES FOLDER [LIST]
dump() {
    together test_widerface_personface.py --trained_model "$OUT/train/best.pth" --dataset "$1" \
        --dataset_folder "$2" --save_folder "$3" ${4:+--dataset_list "$4"} --resume
}

# 1. What there is
step unpack prep unpack "$ARCHIVES"/{WIDER_train,WIDER_val,wider_face_split,eval_tools}.zip --save_folder "$wider"
step download_train download train --miap
step download_validation download validation --image_labels

# 2. Open Images: boxes of both classes on every image, all persons of MIAP where it has the image
step openimages prep openimages "$open_images/train/boxes.csv" --images "$images" \
    --output "$lists/boxes/wider_train_gt.txt"
step miap prep openimages "$open_images/train/boxes.csv" --miap "$open_images/train/miap-boxes.csv" \
    --images "$images" --output "$lists/miap/wider_train_gt.txt"
step label_persons label boxes persons person "$PERSON_TEACHER"
step merge prep merge "$lists/miap/wider_train_gt.txt" "$lists/persons/wider_train_gt.txt" --on_repeat first \
    --output "$lists/merged/wider_train_gt.txt"
step label_faces label merged faces face "$FACE_TEACHER"
step clean prep clean "$lists/faces/wider_train_gt.txt" --images "$images" \
    --output "$lists/clean/wider_train_gt.txt"
step split prep split "$lists/clean/wider_train_gt.txt" --images "$images" --val_share "$VAL_SHARE" \
    --save_folder "$lists/open_images"

# 3. WIDER FACE: faces; persons are unknown there, and the teacher's
step widerface prep widerface "$wider/wider_face_split/wider_face_train_bbx_gt.txt" \
    --images "$wider/WIDER_train/images" --output "$lists/wider/wider_train_gt.txt"
step split_wider prep split "$lists/wider/wider_train_gt.txt" --images "$wider/WIDER_train/images" \
    --val_share "$VAL_SHARE" --save_folder "$lists/wider_face"

for set in open_images wider_face; do
    for part in train val; do
        for look in check stats; do
            step "${look}_${set}_$part" prep "$look" "$lists/$set/$part/wider_${part}_gt.txt"
        done
    done
done

# 4. The network, chosen on what was split off
step train train "$OUT/train" --num_workers 8 \
    --training_dataset "$lists"/{open_images,wider_face}/train/wider_train_gt.txt --repeat 0.2 4 \
    --image_size 640 --zoom_out 1.5 --batch_size 64 \
    --init_from_face "$FACE_TEACHER" --freeze_bn --amp \
    --teacher "$FACE_TEACHER" "$PERSON_TEACHER" --distil 3 0.75 \
    --optimizer adamw --lr 1.2e-3 --shared_lr_factor 0.5 --clip_grad 50 --schedule cosine --warmup 500 \
    --epochs 40 --ema 0.9995 \
    --val_dataset "$lists"/{open_images,wider_face}/val/wider_val_gt.txt --val_every 2

# 5. Its numbers on the official validation sets
step dump_wider dump widerface "$wider/WIDER_val/images" "$OUT/detections/wider"
step evaluate_wider "$PYTHON" widerface_evaluate/evaluation.py --pred "$OUT/detections/wider" \
    --gt "$wider/eval_tools/ground_truth" --json "$OUT/wider.json"
val=$open_images/validation
step openimages_val prep openimages "$val/boxes.csv" --images "$val/images" \
    --output "$lists/val/wider_val_gt.txt"
step dump_openimages dump openimages "$val/images" "$OUT/detections/open_images" "$lists/val/wider_val_gt.txt"
step evaluate_openimages "$PYTHON" wider_openimagespersonface_evaluate/evaluation.py \
    --pred "$OUT/detections/open_images" --gt "$val/boxes.csv" --image_labels "$val/image-labels.csv" \
    --image_list "$lists/val/wider_val_gt.txt" --json "$OUT/open_images.json"
step convert "$PYTHON" convert_to_onnx.py --trained_model "$OUT/train/best.pth" --dynamic \
    --output "$OUT/train/best.onnx"
"$PYTHON" results/tables.py --measured "$OUT/wider.json" "$OUT/open_images.json"
