#!/bin/sh
# 600 Omniglot characters one image at a time, one pass, 1,000 output units: only a new output layer learns, on the
# features of a start: by Adam, as published, and by plain SGD from 0 on features of one length. Step sizes are chosen on
# search streams of other characters, by accuracy after 200 of them; all lengths are prefixes of one test stream.
# Usage: sh reports/o600/run.sh [STORE [OPTIONS OF tune AND run]]; what is set below can be set before it.
set -eu
store=${1:-reports/o600/runs}
[ $# -eq 0 ] || shift
: "${WHICH:=random supervised anml-first anml-second oml}" "${WIDTH:=64}" "${GATE:=28}" "${STEPS:=2000}" "${SIZE:=28}"
: "${SOURCE:=omniglot(classes=763, size=$SIZE)}" "${LRS:=[0.003, 0.001, 0.0003, 0.0001]}" "${SEEDS:=3}" "${TRIED:=2}"
: "${LENGTHS:=(10, 50, 100, 200, 300, 400, 500, 600)}" "${LR:=0.0001}"
# 200 background characters that no start has seen; those of the authors are other draws of evaluation characters instead:
# SEARCH="omniglot-o600(search=True)" and the option --overlap, together with SOURCE="omniglot(classes=963)".
: "${SEARCH:=omniglot-o600(part='background', first=763, classes=201, lengths=(200,), size=$SIZE)}"
# WHICH=file is FILE, a start of the kind KIND that there is; sums: with what is added to it; oml-begun begins with it.
: "${FILE:=}" "${KIND:=supervised}" "${PRECISION:=float32}" "${SGD:=[0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03]}"
stream="omniglot-o600(lengths=$LENGTHS, size=$SIZE)"
gated="model='anml_net(width=$WIDTH, gate=$GATE)'"
plain="model='oml_net(width=$WIDTH)'"
mkdir -p "$store/starts"

# OPTIMIZER STRATEGY...: each with the step size that was best on the search streams.
measured() {
    optimizer=$1
    shift
    # shellcheck disable=SC2086
    chosen=$(lifelong tune "$stream" "$@" --optimizer "$optimizer" --on "$SEARCH" --seeds "$TRIED" --store "$store" \
        --quiet $options)
    # shellcheck disable=SC2086
    lifelong run "$stream" --tuned "$chosen" --seeds "$SEEDS" --store "$store" --quiet $options
}
options="$*"
for which in $WHICH; do
    case $which in
        random) start="supervised(steps=1, lr=1e-9, $plain)" ;;
        supervised) start="supervised(steps=$STEPS, $plain)" ;;
        anml-first) start="anml(steps=$STEPS, $gated)" ;;
        anml-second) start="anml(steps=$STEPS, order='second', $gated)" ;;
        oml) start="oml(steps=$STEPS, classes=1, shots=20, others=0, remember=64, lr=$LR, $plain)" ;;
        oml-own) start="oml(steps=$STEPS, lr=$LR, $plain)" ;;
        # Trajectories of one class, for every class that is learned loses its row of the output layer.
        oml-begun) start="oml(begin='${FILE:?}', steps=$STEPS, classes=1, shots=20, others=0, remember=64, lr=$LR)" ;;
        file) start="$KIND(file" file=${FILE:?} ;;
        sums)
            use="$KIND(file='${FILE:?}', length=10"
            er="er(capacity=1000, replay=32)"
            measured "adam(lr=$LRS)" "$use)" "$use) + $er"
            measured "sgd(lr=$SGD)" "$use)" "$use, head='zero')" "$use, head='zero', power=0.5)" "$use, head='zero') + $er"
            # shellcheck disable=SC2086
            lifelong run "$stream" "$use) + ncm(distance='cosine')" "$use, power=0.5) + ncm(distance='cosine')" \
                --seeds "$SEEDS" --store "$store" --quiet $options
            continue ;;
        *) echo "there is no start $which here" >&2; exit 2 ;;
    esac
    if [ "$which" != file ]; then
        file="$store/starts/$which.safetensors"
        lifelong pretrain "$SOURCE" "$start" --out "$file" --store "$store/starts" --precision "$PRECISION" --quiet
    fi
    measured "adam(lr=$LRS)" "${start%%(*}(file='$file')" "${start%%(*}(file='$file', length=10)"
    measured "sgd(lr=$SGD)" "${start%%(*}(file='$file', head='zero', length=10)"
done
lifelong report --store "$store" --out "$store/.."
