#!/bin/sh
# Split Omniglot as in table 2 of the OML paper (Javed & White 2019, arXiv:1905.12588): 50 tasks of 1 character and 20 of
# 5, one image at a time, one pass, memories of 200; from a standard, a pre-trained and an OML start. Starts are learned on
# 763 background characters, step sizes and strengths are chosen on the other 201, and the table is of evaluation characters.
# Usage: sh reports/split-omniglot/run.sh [STORE [OPTIONS OF tune AND run]]; what is set below can be set before it.
set -eu
store=${1:-reports/split-omniglot/runs}
[ $# -eq 0 ] || shift
: "${WHICH:=pre oml standard}" "${SHAPES:=50,1 20,5}" "${SEEDS:=10}" "${TRIED:=3}" "${MODEL:=oml_net(width=64)}"
: "${SOURCE:=omniglot(classes=763)}" "${PRE:=steps=2000}" "${FIRST:=763}"
: "${OML:=classes=1, shots=20, others=0, remember=64, steps=1500, lr=0.0003}"
# WHICH=file is a supervised start that there is, FILE: its features, of length 10.
: "${FILE:=}" "${RATES:=[0.001, 0.003, 0.01, 0.03, 0.1, 0.3]}" "${HEAD:=new}" "${BUDGET:=--epochs 1}"
: "${STRENGTHS:=[1, 30]}" "${MER=mer}"  # MER="": without the slowest of them
# EWC=", labels='sampled'": one backward pass an image; else one for every class, which is slow where all of a network moves.
: "${EWC:=}"
er="er(capacity=200)" ewc="ewc(strength=$STRENGTHS$EWC)"
starts="$store/starts" options="$*"
mkdir -p "$starts"

# OPTIMIZER STRATEGY...: each with the values that were best on the search stream.
measured() {
    optimizer=$1
    shift
    # shellcheck disable=SC2086
    chosen=$(lifelong tune "$stream" "$@" --optimizer "$optimizer" --on "$search" --seeds "$TRIED" --batch-size 1 \
        $BUDGET --store "$store" --quiet $options)
    # shellcheck disable=SC2086
    lifelong run "$stream" --tuned "$chosen" --seeds "$SEEDS" --batch-size 1 $BUDGET --store "$store" --quiet $options
}

learned() {
    lifelong pretrain "$SOURCE" "$2" --out "$starts/$1.safetensors" --store "$starts" --quiet
}

for shape in $SHAPES; do
    stream="split-omniglot(tasks=${shape%,*}, classes_per_task=${shape#*,})"
    search="split-omniglot(tasks=${shape%,*}, classes_per_task=${shape#*,}, part='background', first=$FIRST)"
    for which in $WHICH; do
        case $which in
            # The standard start is the pre-trained one, all of which moves on the stream.
            pre | standard) learned pre "supervised($PRE, model='$MODEL')" ;;
            oml) learned oml "oml($OML, model='$MODEL')" ;;
        esac
        case $which in
            pre) use="supervised(file='$starts/pre.safetensors')" ;;
            standard) use="supervised(file='$starts/pre.safetensors', adapt='all')" ;;
            oml) use="oml(file='$starts/oml.safetensors')" ;;
            file) use="supervised(file='$FILE', head='$HEAD', length=10)" ;;
            *) echo "there is no start $which here" >&2; exit 2 ;;
        esac
        measured "sgd(lr=$RATES)" "$use" "$use + joint" "$use + $er" "$use + $ewc" "$use + $er + $ewc"
        [ -z "$MER" ] || measured "sgd(lr=0.1)" "$use + mer(capacity=200, lr=$RATES)"  # its steps are its own
    done
done
lifelong report --store "$store" --out "$store/.." --reference parts
