# What the scripts of this folder share; they source it.
# shellcheck shell=bash

PYTHON=${PYTHON:-$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python3)}

fail() {
    echo "error: $*" >&2
    exit 2
}

[[ -f prep_data.py ]] || fail "start this in the project's folder: bash results/$(basename "$0")"

# need VARIABLE PATH_BELOW WHAT: the variable is set, and the path is there below what it names.
need() {
    [[ -n ${!1:-} ]] || fail "$1 is not set; expected $3 (see the head of $0)"
    [[ -e ${!1}${2:+/$2} ]] || fail "$1=${!1}: no ${2:-such file or folder}; expected $3 (see the head of $0)"
}

# step NAME COMMAND...: runs the command unless $OUT/done/NAME says that it has ended well; that file holds
# its seconds, and a step is done again when it is removed.
step() {
    local name=$1 start=$SECONDS
    shift
    if [[ -e $OUT/done/$name ]]; then
        echo "== $name: done before"
        return
    fi
    echo "== $name: $*"
    "$@"
    mkdir -p "$OUT/done"
    echo "$((SECONDS - start))" > "$OUT/done/$name"
}

# together SCRIPT ARGUMENTS...: in $PROCESSES processes.
together() {
    if ((PROCESSES == 1)); then
        "$PYTHON" "$@"
    else
        "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node="$PROCESSES" "$@"
    fi
}

# train FOLDER ARGUMENTS...: goes on with a run that is in the folder; $TRAIN_OPTIONS come last and so win.
train() {
    local folder=$1
    shift
    [[ ! -e $folder/last.pth ]] || set -- "$@" --resume
    # shellcheck disable=SC2086 # several words
    together train_changeclass.py "$@" --save_folder "$folder" ${TRAIN_OPTIONS:-}
}

gpus() {
    nvidia-smi -L 2> /dev/null | grep -c '^GPU' || true
}

# share_out: sets PROCESSES unless it is given, and workers, the readers of each: for two cores, or for a GPU.
share_out() {
    if (($(gpus))); then
        PROCESSES=${PROCESSES:-1} workers=8
    else
        PROCESSES=${PROCESSES:-2} workers=1
    fi
}

# last NAME: the last network of a run.
last() {
    echo "$OUT/$1/mobilenet0.25_2cls6anchors_Final.pth"
}

# mix NAME ARGUMENTS...: a network made of others, as $OUT/NAME.pth.
mix() {
    step "$1" "$PYTHON" results/mix.py "${@:2}" --out "$OUT/$1.pth"
}
