#!/bin/sh
# Starts that were learned on other angles and on other permutations, with replay and regularisation: rotated and permuted
# MNIST as in GEM (20 tasks of 1,000 digits, one pass, batch 10), tested on 1,000 digits each. A start is learned on 100
# angles or permutations that no stream has, and keeps its output layer (which knows the ten digits) or begins with a new
# one. Step sizes and strengths are chosen on streams of other seeds, by training examples that were held out.
# Usage: sh reports/domains/run.sh [STORE [OPTIONS OF tune AND run]]
set -eu
store=${1:-reports/domains/runs}
[ $# -eq 0 ] || shift
: "${WHICH:=rotated permuted}" "${STARTS:=none supervised reptile oml}" "${MODEL:=mlp(hidden=(100, 100))}" "${STEPS:=2000}"
: "${RATES:=[0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3]}" "${STRENGTHS:=[0.1, 1.0, 10.0, 100.0]}" "${HEADS:=auto new}"
: "${SEEDS:=12}" "${TRIED:=2}" "${MORE:=}"
starts="$store/starts" options="$*"
mkdir -p "$starts"
for which in $WHICH; do
    case $which in
        rotated) stream="rotated-mnist-gem(test_examples=1000$MORE)" ;;
        permuted) stream="permuted-mnist(tasks=20, examples=1000, test_examples=1000$MORE)" ;;
        *) echo "there is no stream $which here" >&2; exit 2 ;;
    esac
    for start in $STARTS; do
        file="$starts/$which-$start.safetensors" model=
        case $start in
            none) use=finetune model=$MODEL ;;
            supervised) learned="supervised(steps=$STEPS, model='$MODEL')" ;;
            reptile) learned="reptile(steps=$STEPS, way=10, model='$MODEL')" ;;
            oml) learned="oml(steps=$STEPS, lr=0.001, model='$MODEL')" ;;
            *) echo "there is no start $start here" >&2; exit 2 ;;
        esac
        heads=none
        if [ "$start" != none ]; then
            lifelong pretrain "$which-mnist" "$learned" --out "$file" --store "$starts" --quiet
            heads=$HEADS
        fi
        for head in $heads; do  # auto: kept, for the classes are the same
            [ "$start" = none ] || use="$start(file='$file', adapt='all', head='$head')"
            set -- "$use" "${use#finetune} + er(capacity=200)" "${use#finetune} + ewc(strength=$STRENGTHS)" \
                "${use#finetune} + er(capacity=200) + ewc(strength=$STRENGTHS)"
            for strategy; do  # what begins with a plus has no start
                shift
                set -- "$@" "${strategy# + }"
            done
            # shellcheck disable=SC2086
            chosen=$(lifelong tune "$stream" "$@" --optimizer "sgd(lr=$RATES)" ${model:+--model "$model"} --epochs 1 \
                --batch-size 10 --seeds "$TRIED" --store "$store" --quiet $options)
            # shellcheck disable=SC2086
            lifelong run "$stream" --tuned "$chosen" --epochs 1 --batch-size 10 --seeds "$SEEDS" --store "$store" --quiet \
                $options
        done
    done
done
for which in $WHICH; do
    for head in $HEADS; do
        case $head in
            new) use="*'new')*" also="*'new')*" ;;
            *) use="*adapt='all')*" also="*safetensors')*" ;;  # a default is not written
        esac
        lifelong report --store "$store" --reference parts --out "$store/../$which-$head" --stream "$which*" \
            --strategy finetune --strategy "er(*" --strategy "ewc*" --strategy "$use" --strategy "$also"
    done
done
