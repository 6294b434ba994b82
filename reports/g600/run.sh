#!/bin/sh
# G600: 600 Omniglot characters, 15 drawings each to learn from in one pass and 5 to be told, 600 output units; starts are
# learned on 763 background characters, heads are chosen on 200 others, and the 600 are looked at last.
# Usage: sh reports/g600/run.sh [STORE [OPTIONS OF tune AND run]]; what is set below can be set before it.
set -eu
store=${1:-reports/g600/runs}
[ $# -eq 0 ] || shift
: "${SIZE:=28}" "${FEWSHOT:=400}" "${STEPS:=5000}" "${EPISODES:=10}" "${LENGTHS:=(600,)}" "${MODEL:=resnet}"
: "${SOURCE:=omniglot(classes=763, size=$SIZE)}" "${TURNED:=omniglot(classes=763, size=$SIZE, turned=True)}"
: "${SEARCH:=omniglot-g600(part='background', first=763, lengths=(200,), size=$SIZE)}" "${PRECISION:=bfloat16}"
: "${WHICH:=protonet gemcl supervised}" "${BATCH:=500}" "${LR:=0.002}" "${DEVICE:=cpu}" "${AUGMENT:=1}" "${SMOOTHING:=0.1}"
: "${NAME:=}" "${BEGIN:=}" "${ASK:=all}"  # ASK=validation: nearest cosine means of the 200 alone
set -- --batch-size "$BATCH" --device "$DEVICE" --store "$store" --quiet "$@"
own="omniglot-g600(lengths=$LENGTHS, size=$SIZE)"
mkdir -p "$store/starts"
for which in $WHICH; do
    source=$SOURCE
    halve=${HALVE:-$(((FEWSHOT + 4) / 5))}
    case $which in
        protonet) start="protonet(steps=$FEWSHOT, way=20, shots=5, queries=15, halve=$halve)" ;;
        gemcl) start="gemcl_features(steps=$FEWSHOT, halve=$halve)" ;;
        supervised)
            source=$TURNED
            start="supervised(steps=$STEPS, batch=64, lr=$LR, cosine=20, smoothing=$SMOOTHING, augment=$AUGMENT, \
model='$MODEL')" ;;
        tuned)  # BEGIN, a supervised start, goes on with episodes
            source=$TURNED
            start="protonet(begin='${BEGIN:?}', steps=$FEWSHOT, way=60, shots=5, queries=1, lr=0.0001, halve=$halve)" ;;
        *) echo "there is no start $which here" >&2; exit 2 ;;
    esac
    file="$store/starts/${NAME:-$which}.safetensors"
    lifelong pretrain "$source" "$start" --out "$file" --store "$store/starts" --precision "$PRECISION" \
        --device "$DEVICE" --quiet
    use="${start%%(*}(file='$file'"
    case $which-$ASK in
        *-validation) lifelong run "$SEARCH" "$use) + ncm(distance='cosine')" --seeds "$EPISODES" "$@" ;;
        protonet-* | gemcl-*)
            lifelong run "$own" "$use) + ncm" "$use) + gemcl(head='map')" "$use) + gemcl" --seeds "$EPISODES" "$@" ;;
        *)
            chosen=$(lifelong tune "$own" "$use, power=[1.0, 0.5], quarter_turns=[1, 4]) + ncm(distance=['cosine', 'mahalanobis'])" \
                --on "$SEARCH" --seeds 5 "$@")
            lifelong run "$own" --tuned "$chosen" "$use) + ncm(distance='cosine')" --seeds "$EPISODES" "$@" ;;
    esac
done
lifelong report --store "$store" --out "$store/.."
