#!/bin/sh
# G600: 600 Omniglot characters, 15 drawings each to learn from in one pass and 5 to be told, 600 output units; starts are
# learned on 763 background characters, heads are chosen on 200 others, and the 600 are looked at last.
# Usage: sh reports/g600/run.sh [STORE [OPTIONS OF lifelong run]]; what is set below can be set before it.
set -eu
store=${1:-reports/g600/runs}
[ $# -eq 0 ] || shift
: "${SIZE:=28}" "${FEWSHOT:=400}" "${STEPS:=5000}" "${EPISODES:=10}" "${LENGTHS:=(600,)}" "${MODEL:=resnet}"
: "${SOURCE:=omniglot(classes=763, size=$SIZE)}" "${TURNED:=omniglot(classes=763, size=$SIZE, turned=True)}"
: "${SEARCH:=omniglot-g600(part='background', first=763, lengths=(200,), size=$SIZE)}" "${PRECISION:=bfloat16}"
: "${WHICH:=protonet gemcl supervised}" "${BATCH:=500}" "${LR:=0.002}" "${DEVICE:=cpu}"
set -- --batch-size "$BATCH" --device "$DEVICE" --quiet "$@"
mkdir -p "$store/starts"
for which in $WHICH; do
    source=$SOURCE
    halve=$(((FEWSHOT + 4) / 5))
    case $which in
        protonet) start="protonet(steps=$FEWSHOT, way=20, shots=5, queries=15, halve=$halve)" ;;
        gemcl) start="gemcl_features(steps=$FEWSHOT, halve=$halve)" ;;
        supervised)
            source=$TURNED
            start="supervised(steps=$STEPS, batch=64, lr=$LR, cosine=20, smoothing=0.1, augment=1, model='$MODEL')" ;;
        *) echo "there is no start $which here" >&2; exit 2 ;;
    esac
    file="$store/starts/$which.safetensors"
    lifelong pretrain "$source" "$start" --out "$file" --store "$store/starts" --precision "$PRECISION" \
        --device "$DEVICE" --quiet
    use="${start%%(*}(file='$file'"
    own="omniglot-g600(lengths=$LENGTHS, size=$SIZE)"
    if [ "$which" != supervised ]; then
        lifelong run "$own" "$use) + ncm" "$use) + gemcl(head='map')" "$use) + gemcl" --seeds "$EPISODES" \
            --store "$store/test" "$@"
        continue
    fi
    lifelong run "$SEARCH" "$use) + ncm" "$use) + ncm(distance='cosine')" "$use) + gemcl(alpha=2.0, beta=0.01)" \
        "$use) + ncm(distance='mahalanobis')" "$use, power=0.5) + ncm(distance='cosine')" \
        "$use, power=0.5, length=1) + ncm(distance='mahalanobis')" "$use, power=0.5, views=4) + ncm(distance='cosine')" \
        "$use, power=0.5, views=4) + ncm(distance='mahalanobis')" --seeds 5 --store "$store/search" "$@"
    best=$(python3 reports/g600/table.py best "$store" "$which")
    lifelong run "$own" "$use) + ncm(distance='cosine')" "$best" --seeds "$EPISODES" --store "$store/test" "$@"
done
python3 reports/g600/table.py table "$store"
